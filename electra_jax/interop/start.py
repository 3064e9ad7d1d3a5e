"""Continuing from a model (config.init_from): the first state of a run, from a model that is there already.

What is taken over, and the rule for what is not there:

- the embeddings, and the networks that the source has, or the one that is asked for; a network that is not taken begins as ever;
- a network under another name where that is asked for ("discriminator:generator"); a head that this objective has not is left out;
- embeddings of another `model.sharing`, where the one here can hold them (models/sharing.py);
- another vocabulary: the rows of tokens that both have are kept. The others begin as the mean of those and a fresh draw (after
  Hewitt 2021, "Initializing new word embeddings for pretrained language models"), and their bias as the mean of the kept ones;
- more positions than the table has: it is repeated (Longformer, arXiv 2004.05150, section 5); fewer: it is cut;
- the optimizer's memory only if asked for, and then of both networks: new rows and positions have none. The schedule begins anew.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.interop import names
from electra_jax.interop.model import NETWORKS, Model
from electra_jax.interop.workdir import MOMENT
from electra_jax.models import heads, sharing
from electra_jax.models.config import ElectraConfig
from electra_jax.store import checkpoints
from electra_jax.types import TrainState


def values(
    abstract_state: TrainState, config: ElectraConfig, source: Model, tokenizer: Tokenizer, *, with_slots: bool, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """({path in the state: its first value}, lines for a person). UserError where the source does not fit the state, in whatever way."""
    where = source.about["source"]
    source = _shared_as(source, config, with_slots)
    networks = source.networks
    if with_slots and (source.slots is None or networks != NETWORKS):
        lacks = "has no memory of an optimizer" if source.slots is None else f"has no {' and no '.join(set(NETWORKS) - set(networks))}"
        raise UserError(f"init_slots: {where} {lacks}: leave it out, and the optimizer begins anew")
    _refuse_other_shape(config, source)
    fit, notes = _fitting(config, source, tokenizer, seed)
    shapes = {path: tuple(x.shape) for path, x in checkpoints.flatten(abstract_state)[0].items()}
    taken = _used(source, {"/".join(path.split("/")[1:3]) for path in shapes if path.startswith("params/")}, notes)
    found = {f"params/{path}": fit(path, x) for path, x in names.flat(taken).items()}
    if with_slots:
        found |= _slots(list(shapes), source, lambda path, x: fit(path, x, memory=True))
    if wrong := [path for path, x in found.items() if shapes.get(path) != x.shape]:
        raise UserError(f"init_from: {where} has {', '.join(wrong)}, which have no place in this model: is it of another objective?")
    new = sorted({"/".join(path.split("/")[1:3]) for path in shapes if path.startswith("params/") and path not in found})
    begins = f"; anew: {', '.join(new)}" if new else ""
    memory = f", with the optimizer's memory of {source.slots.count:,} updates" if with_slots else ""
    return found, [f"init_from {where}: {', '.join(taken)} taken over{memory}{begins}", *notes]


def _used(source: Model, parts: set[str], notes: list[str]) -> dict[str, Any]:
    """Embeddings and networks of the source, without what has no place among `parts`, the first two names of each path here: a network or
    a head that the objective here has not. Adds a line for each to the notes; UserError if no network is left."""
    networks = {part.split("/")[0] for part in parts}
    unused = [name for name in source.networks if name not in networks]
    if unused == list(source.networks):
        has = " and ".join(sorted(networks - {"embeddings"}))
        raise UserError(
            f"init_from: {source.about['source']} has a {unused[0]}, and the objective here a {has}: "
            f"--config.init_network={unused[0]}:discriminator takes it under that name"
        )
    taken = {"embeddings": source.params["embeddings"]} if "embeddings" in source.params else {}
    for name in source.networks:
        if name in networks:
            lacks = [head for head in heads.NAMES if head in source.params[name] and f"{name}/{head}" not in parts]
            unused += [f"{name}/{head}" for head in lacks]
            taken[name] = {part: tree for part, tree in source.params[name].items() if part not in lacks}
    if unused:
        notes.append(f"init_from: {', '.join(unused)} left out: the objective here has no such part")
    return taken


def _shared_as(source: Model, config: ElectraConfig, with_slots: bool) -> Model:
    """The source as `config.sharing` holds it. UserError where it cannot."""
    there, kind, where = source.config.sharing, config.sharing, source.about["source"]
    if there == kind:
        return source
    if with_slots:
        raise UserError(f"init_slots: model.sharing is {there} in {where} and {kind} here: leave it out, and the optimizer begins anew")
    if source.networks == NETWORKS:
        params = sharing.reshared(source.params, source.config, kind)
    elif source.networks == ("generator",) and kind in ("none", "gdes"):
        params = {"generator": {**source.params["generator"], "embeddings": source.params["embeddings"]}}
    else:
        params = source.params if source.networks == ("discriminator",) and kind in ("none", "all") else None
    if params is None:
        raise UserError(f"init_from: what {where} has does not fit model.sharing={kind}: --config.model.sharing=none")
    return dataclasses.replace(source, params=jax.tree.map(np.asarray, params), config=dataclasses.replace(source.config, sharing=kind))


def placed(state: TrainState, found: Mapping[str, np.ndarray]) -> TrainState:
    """`state` with these values, each where the array lies that it replaces, on any number of hosts; every seed gets the same."""

    def put(path: str, x: jax.Array) -> jax.Array:
        if path not in found:
            return x
        value = np.broadcast_to(np.asarray(found[path], x.dtype), x.shape)
        return jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index])

    arrays, treedef = checkpoints.flatten(state)
    return treedef.unflatten([put(path, x) for path, x in arrays.items()])


def _slots(paths: list[str], source: Model, fit: Callable) -> dict[str, np.ndarray]:
    out, missing = {}, []
    for path in paths:
        if match := MOMENT.match(path):
            there = getattr(source.slots, match[2])
            if match[3] in there:
                out[path] = fit(match[3], there[match[3]])
            else:
                missing.append(f"{match[2]} of {match[3]}")
    taken = {(match[2], match[3]) for path in out if (match := MOMENT.match(path))}
    there = {(kind, path) for kind in ("mu", "nu") for path in getattr(source.slots, kind)}
    missing += [f"place for {kind} of {path}" for kind, path in sorted(there - taken)]
    if missing or not out:
        raise UserError(
            f"init_slots: {source.about['source']} was trained with another optimizer (no {', '.join(missing[:4])}"
            f"{' ...' if len(missing) > 4 else ''}): leave init_slots out, or choose its optimizer.name"
        )
    counts = {path for path in paths if path.endswith("/count") and any(other.startswith(path[: -len("count")] + "mu/") for other in out)}
    return out | {path: np.int32(source.slots.count) for path in counts}


def _refuse_other_shape(config: ElectraConfig, source: Model) -> None:
    """By field, because equal shapes may mean another function (the number of heads)."""
    there, mend = source.config, {}
    for name in ("backbone", "embedding_size", "type_vocab_size", "layer_norm_eps"):
        mend[name] = getattr(there, name)
    rotary = [each.positions == "rotary" for each in (there, config)]
    mend["positions"] = config.positions if rotary[0] == rotary[1] else there.positions
    if "discriminator" in source.networks:
        mend |= {name: getattr(there, name) for name in ("hidden_size", "num_layers", "head_size")}
        if there.discriminator.ffn_size != (config.ffn_size or 4 * there.hidden_size):
            mend["ffn_size"] = there.discriminator.ffn_size
    if "generator" in source.networks:
        width, depth = (mend.get(name, getattr(config, name)) for name in ("hidden_size", "num_layers"))
        generator = there.generator
        mend |= {"head_size": mend.get("head_size", config.head_size)}
        if generator.ffn_size != (config.generator_ffn_size or 4 * generator.hidden_size):
            mend["generator_ffn_size"] = generator.ffn_size
        if generator.hidden_size != round(width * config.generator_hidden_fraction):
            mend["generator_hidden_fraction"] = generator.hidden_size / width
        if generator.num_layers != round(depth * config.generator_layers_fraction):
            mend["generator_layers_fraction"] = generator.num_layers / depth
        if generator.num_heads != max(1, generator.hidden_size // mend["head_size"]):
            mend["head_size"] = generator.head_size
    here = {name: getattr(config, name) for name in mend}
    here |= {name: here[name] or "four times the width" for name in ("ffn_size", "generator_ffn_size") if name in mend}
    differ = {name: value for name, value in mend.items() if value != here[name]}
    if differ:
        said = ", ".join(f"{name} {value} and here {here[name]}" for name, value in differ.items())
        flags = " ".join(f"--config.model.{name}={value}" for name, value in differ.items())
        raise UserError(f"init_from: the model in {source.about['source']} is another one ({said}): {flags}")


def _fitting(config: ElectraConfig, source: Model, tokenizer: Tokenizer, seed: int) -> tuple[Callable, list[str]]:
    """(fit(path, array, memory=False) -> the array for this vocabulary and as many positions; lines for a person)."""
    notes: list[str] = []
    rows = _shared_rows(source, tokenizer, notes)  # None: the same ids
    length = source.config.max_length
    if config.positions != "rotary" and config.max_length != length:
        how = "repeated" if config.max_length > length else "cut"
        notes.append(f"init_from: the table of {length} positions is {how} to {config.max_length}")

    def fit(path: str, x: np.ndarray, memory: bool = False) -> np.ndarray:
        if path.endswith("embeddings/position"):
            return np.resize(x, (config.max_length, x.shape[1])) if not memory else _padded(x, config.max_length)
        if rows is None or not re.search(r"(^|/)embeddings/word$|head/bias$", path):
            return x
        here, there = rows
        out = np.zeros((tokenizer.vocab_size, *x.shape[1:]), x.dtype)
        if not memory:
            out += x[there].mean(0, dtype=np.float64).astype(x.dtype)
            if x.ndim > 1:
                out += np.random.default_rng(seed).normal(0.0, config.init_std, out.shape).astype(x.dtype)
        out[here] = x[there]
        return out

    return fit, notes


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((max(0, length - len(x)), *x.shape[1:]), x.dtype)])[:length]


def _shared_rows(source: Model, tokenizer: Tokenizer, notes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """(ids here, ids there) of the tokens that both vocabularies have; None where every id means the same."""
    there = source.tokenizer
    if there is None:
        if source.config.vocab_size != tokenizer.vocab_size:
            raise UserError(
                f"init_from: {source.about['source']} has {source.config.vocab_size} embeddings and no tokenizer, and the data has "
                f"{tokenizer.vocab_size} pieces: put its tokenizer there, so that shared tokens can be found"
            )
        notes.append("init_from: there is no tokenizer there; its ids are taken for the data's")
        return None
    if there.sha256 == tokenizer.sha256:
        return None
    same_kind = there.kind == tokenizer.kind
    theirs = {key: number for number, key in reversed(list(enumerate(_meanings(there, same_kind))))}
    pairs = [(number, theirs[key]) for number, key in enumerate(_meanings(tokenizer, same_kind)) if key in theirs]
    if pairs == [(number, number) for number in range(tokenizer.vocab_size)] and there.vocab_size == tokenizer.vocab_size:
        notes.append(f"init_from: the same pieces with other options: {there.options} there and {tokenizer.options} in the data")
        return None
    notes.append(f"init_from: another vocabulary: {len(pairs):,} of {tokenizer.vocab_size:,} tokens keep their embeddings")
    here, there_ids = np.array(pairs, np.int64).reshape(-1, 2).T
    return here, there_ids


def _meanings(tokenizer: Tokenizer, same_kind: bool) -> list[Any]:
    """What each id stands for, alike in WordPiece ("##ing", "the") and SentencePiece ("ing", "▁the").

    WordPiece begins a word with each sign of punctuation, and SentencePiece goes on with it: between the two kinds that is one.
    """
    special = {getattr(tokenizer, f"{name}_id"): name for name in ("pad", "unk", "cls", "sep", "mask")}
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    strip: Mapping[str, str] = {"wordpiece": r"^##(?=.)", "sentencepiece": r"^▁(?=.)"}
    pattern = re.compile(strip.get(tokenizer.kind, r"(?!)"))

    def meaning(number: int, piece: str) -> tuple[bool, str]:
        text = pattern.sub("", piece)
        either = not same_kind and not any(char.isalnum() for char in text)
        return either or bool(tokenizer.word_starts[number]), text

    return [special[number] if number in special else meaning(number, piece) for number, piece in enumerate(pieces)]
