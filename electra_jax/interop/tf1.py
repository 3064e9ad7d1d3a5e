"""Google's TF1 checkpoints, read without TensorFlow: `PREFIX.index` and `PREFIX.data-00000-of-00001`.

The index is a sorted table of keys and values in LevelDB's format (github.com/google/leveldb doc/table_format.md); its values are
protocol buffers that say where in the data files each tensor lies (tensorflow/core/protobuf/tensor_bundle.proto). Every block and
every tensor has a CRC-32C, which is compared.
"""

import contextlib
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.files import read_ordinary
from electra_jax.interop import model as models
from electra_jax.interop import names
from electra_jax.interop.model import Model, Slots
from electra_jax.models.config import PRESETS, ElectraConfig

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
# tensorflow/core/framework/types.proto
_DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 9: np.dtype("<i8"), 19: np.dtype("<f2")}
_PASSED_OVER = re.compile(r"(^|/)(global_step|temperature)$")
_SLOT = re.compile(r"^(.*)/(adam_m|adam_v)$")


class _Bad(Exception):
    """Bytes that no checkpoint has; the message says in a few words."""


class Entry(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    file: pathlib.Path
    offset: int
    size: int
    crc: int


# --- The table of the index


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Bad("a number runs past its end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _unmasked(crc: int) -> int:
    """TensorFlow and LevelDB store a CRC rotated and moved, lest one be taken of bytes that hold one."""
    rotated = (crc - 0xA282EAD8) % 2**32
    return (rotated >> 17 | rotated << 15) % 2**32


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + 5 > len(data):
        raise _Bad("a block lies past the end")
    block, kind = data[offset : offset + size], data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    if google_crc32c.value(data[offset : offset + size + 1]) != _unmasked(crc):
        raise _Bad("a block has another checksum than was written")
    if kind:
        raise _Bad("its blocks are compressed, which TensorFlow's Saver does not do")
    return block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value): each key says how many bytes it shares with the one before."""
    if len(block) < 4:
        raise _Bad("a block is too short")
    (num_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end, at, key = len(block) - 4 - 4 * num_restarts, 0, b""
    while at < end:
        shared, at = _varint(block, at)
        new, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + new + length > end:
            raise _Bad("a key or value runs past its block")
        key = key[:shared] + block[at : at + new]
        yield key, block[at + new : at + new + length]
        at += new + length


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER_BYTES or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise _Bad("it does not end as a table does")
    footer = data[-_FOOTER_BYTES:]
    at = _varint(footer, _varint(footer, 0)[1])[1]  # past the handle of the meta index, which is empty
    offset, at = _varint(footer, at)
    size, _ = _varint(footer, at)
    for _, handle in _entries(_block(data, offset, size)):
        start, at = _varint(handle, 0)
        length, _ = _varint(handle, at)
        yield from _entries(_block(data, start, length))


# --- The messages in it


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + size], "little"), at + size
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise _Bad("a message has a field of no known kind")
        if at > len(message):
            raise _Bad("a field runs past its message")
        yield number, value


def _shape(message: bytes) -> tuple[int, ...]:
    return tuple(dict(_fields(dim)).get(1, 0) for number, dim in _fields(message) if number == 2)


def index(prefix: pathlib.Path) -> dict[str, Entry]:
    """{name: where its tensor lies}, of `PREFIX.index`. UserError where it or a data file is absent, cut short or damaged."""
    path = prefix.with_name(prefix.name + ".index")
    with _explained(path):
        table = dict(_table(read_ordinary(path)))
        header = dict(_fields(table.pop(b"", b"")))
        num_shards = header.get(1, 0)
        if not 0 < num_shards < 100_000 or header.get(2, 0) != 0:
            raise _Bad("its header names no data files, or a big-endian machine's")
        files = [prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{num_shards:05d}") for number in range(num_shards)]
        sizes = {}
        entries = {}
        for key, message in table.items():
            fields = list(_fields(message))
            entry = dict(fields)
            if 7 in entry:
                raise _Bad(f"{key.decode(errors='replace')} is cut into slices: save it whole (without a partitioner)")
            shape, shard = _shape(entry.get(2, b"")), entry.get(3, 0)
            dtype = _DTYPES.get(entry.get(1, 0))
            if dtype is None:
                raise _Bad(f"{key.decode(errors='replace')} has a type that no parameter has")
            offset, size = entry.get(4, 0), entry.get(5, 0)
            if shard >= num_shards:
                raise _Bad("a tensor lies in a file that the header does not count")
            if files[shard] not in sizes:
                sizes[files[shard]] = os.stat(files[shard]).st_size
            if size != dtype.itemsize * int(np.prod(shape, dtype=object)) or offset + size > sizes[files[shard]]:
                raise UserError(f"{files[shard]}: cut short, or of another checkpoint than {path.name}: copy both anew")
            entries[key.decode()] = Entry(dtype, shape, files[shard], offset, size, entry.get(6, 0))
        return entries


def values(name: str, entry: Entry) -> np.ndarray:
    with _explained(entry.file), open(entry.file, "rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
        if len(data) != entry.size or google_crc32c.value(data) != _unmasked(entry.crc):
            raise _Bad(f"{name} has another checksum than was written")
        return np.frombuffer(data, entry.dtype).reshape(entry.shape)


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise UserError(f"{error.filename or path}: {words}: a TF1 checkpoint is PREFIX.index with its PREFIX.data-*") from None
    except (_Bad, UnicodeDecodeError, struct.error, TypeError, OverflowError) as error:  # fields of another kind than they should be
        raise UserError(f"{path}: no whole TF1 checkpoint ({error}): copy its files anew") from None


# --- ELECTRA in it


def prefix_of(path: pathlib.Path) -> pathlib.Path | None:
    """What a person may mean: PREFIX, PREFIX.index, or a folder with one checkpoint, or with a `checkpoint` file that names the newest."""
    if path.is_file() and path.name.endswith(".index"):
        return path.with_name(path.name[: -len(".index")])
    if path.name and path.with_name(path.name + ".index").is_file():
        return path
    if not path.is_dir():
        return None
    found = sorted(path.glob("*.index"))
    if len(found) > 1:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            newest = re.search(r'^model_checkpoint_path: "(.*)"', (path / "checkpoint").read_text(), re.M)
            if newest and (match := path / f"{pathlib.PurePath(newest[1]).name}.index") in found:
                found = [match]
    if len(found) > 1:
        listed = ", ".join(file.stem for file in found[:4])
        raise UserError(f"{path}: {len(found)} checkpoints in it ({listed} ...): name one, FOLDER/{found[0].stem}")
    return found[0].with_name(found[0].stem) if found else None


def read(path: pathlib.Path, head_size: int = 64, with_slots: bool = True) -> Model:
    """Generator and discriminator, with Adam's slots if asked for and where the file has them (the released ones do not). Raises UserError.

    The file does not say how many heads there are: width // `head_size`, 64 in all published models.
    """
    prefix = prefix_of(path)
    entries = index(prefix)
    found = {name: entry.shape for name, entry in entries.items() if not (_PASSED_OVER.search(name) or _SLOT.match(name))}
    networks = _networks(found, prefix)
    config = _config(found, networks, prefix, head_size)
    tensors, shapes = names.tf1_tensors(config, networks), models.shapes(config)
    get = lambda name: values(name, entries[name])  # noqa: E731
    params = names.nested(names.assemble(tensors, shapes, found, get, str(prefix)))
    slots = _slots(entries, tensors, shapes, prefix) if with_slots else None
    vocabulary = prefix.parent / "vocab.txt"
    tokenizer = tokenizers.load(vocabulary) if vocabulary.is_file() else None
    models.check_vocabulary(tokenizer, config, str(prefix))
    step = _global_step(entries, prefix)
    preset = next((name for name, there in PRESETS.items() if name != "tiny" and _same_shape(there, config, networks)), None)
    notes = [f"{prefix}: the shape of {preset}" if preset else f"{prefix}: a shape of no published model"]
    notes += [] if tokenizer else [f"{prefix}: there is no vocab.txt beside it"]
    about = {"source": str(prefix), "step": step, "name": preset and f"ELECTRA-{preset}"}
    return Model(config, params, tokenizer, slots, about=about, notes=tuple(notes))


def _networks(found: dict, prefix: pathlib.Path) -> list[str]:
    starts = {name.split("/")[0] for name in found}
    networks = [name for name in models.NETWORKS if f"{name}_predictions" in starts]
    if "electra" not in starts or not networks:
        listed = ", ".join(sorted(starts)[:6])
        raise UserError(f"{prefix}: no checkpoint of ELECTRA's pretraining: there is no electra/ or no head in it ({listed})")
    if any(name.startswith("generator/embeddings/") for name in found):
        raise UserError(f"{prefix}: its generator has embeddings of its own (untied_generator_embeddings), which has no place here")
    return networks


def _config(found: dict, networks: Sequence[str], prefix: pathlib.Path, head_size: int) -> ElectraConfig:
    def size(name: str, axis: int) -> int:
        shape = found.get(name, ())
        if axis >= len(shape):
            near = f" (nearest: {match})" if (match := names.nearest(name, found)) else ""
            raise UserError(f"{prefix}: {name} is missing{near}, or has no axis {axis}: it says how large the model is")
        return shape[axis]

    def depth(scope: str) -> int:
        return 1 + max((int(m[1]) for name in found if (m := re.match(rf"{scope}/encoder/layer_(\d{{1,6}})/", name))), default=-1)

    def width(scope: str) -> int:
        return size(f"{scope}/encoder/layer_0/attention/self/query/kernel", 1)

    def ffn_field(scope: str) -> int:
        return models.ffn_field(size(f"{scope}/encoder/layer_0/intermediate/dense/kernel", 1), width(scope))

    scope = "electra" if "discriminator" in networks else "generator"
    hidden_size, num_layers = width(scope), depth(scope)
    its_generator = {}
    if "generator" in networks:
        its_generator["generator_hidden_fraction"] = width("generator") / hidden_size if hidden_size else 0
        its_generator["generator_layers_fraction"] = depth("generator") / num_layers if num_layers else 0
        its_generator["generator_ffn_size"] = ffn_field("generator")
    try:
        return ElectraConfig(
            vocab_size=size("electra/embeddings/word_embeddings", 0),
            embedding_size=size("electra/embeddings/word_embeddings", 1),
            max_length=size("electra/embeddings/position_embeddings", 0),
            type_vocab_size=size("electra/embeddings/token_type_embeddings", 0),
            hidden_size=hidden_size,
            num_layers=num_layers,
            head_size=head_size,
            ffn_size=ffn_field(scope),
            **its_generator,
        )
    except UserError as error:
        raise UserError(f"{prefix}: {error}") from None


def _same_shape(preset: ElectraConfig, config: ElectraConfig, networks: Sequence[str]) -> bool:
    fields = ("embedding_size", "hidden_size", "num_layers", "num_heads", "ffn_size")
    return all(getattr(preset.encoder(n), f) == getattr(config.encoder(n), f) for n in networks for f in fields)


def _slots(entries: dict[str, Entry], tensors: Sequence[names.Tensor], shapes: dict, prefix: pathlib.Path) -> Slots | None:
    if not any(_SLOT.match(name) for name in entries):
        return None
    moments = []
    for kind in ("adam_m", "adam_v"):
        there = [tensor._replace(name=f"{tensor.name}/{kind}") for tensor in tensors]
        found = {name: entry.shape for name, entry in entries.items() if name.endswith(f"/{kind}")}
        moments.append(names.assemble(there, shapes, found, lambda name: values(name, entries[name]), str(prefix)))
    return Slots(*moments, _global_step(entries, prefix) or 0)


def _global_step(entries: dict[str, Entry], prefix: pathlib.Path) -> int | None:
    if "global_step" not in entries:
        return None
    step = values("global_step", entries["global_step"])
    if step.shape or not 0 <= step < 2**31:
        raise UserError(f"{prefix}: global_step is {step.tolist()!r}: it must be one number from 0 up")
    return int(step)
