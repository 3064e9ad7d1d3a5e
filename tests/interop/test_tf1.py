"""Google's TF1 checkpoints, written by TensorFlow itself: the small ones that lie in tf1/, and anew where TensorFlow is installed."""

import importlib.util
import shutil

import google_crc32c
import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.interop import formats, names, tf1
from electra_jax.models import costs
from electra_jax.models.config import PRESETS
from tests.interop import google
from tests.interop.google import value

RENAMED = {  # ours, without its network -> Google's
    "attention/query": "attention/self/query",
    "attention/key": "attention/self/key",
    "attention/value": "attention/self/value",
    "attention/output": "attention/output/dense",
    "attention_norm": "attention/output/LayerNorm",
    "ffn/intermediate": "intermediate/dense",
    "ffn/output": "output/dense",
    "ffn_norm": "output/LayerNorm",
}


def expected(path: str, layer: int | None) -> str:
    """Google's name of a path, by a second way than interop.names."""
    network, rest = path.split("/", 1)
    leaf = {"scale": "gamma"}.get(rest.rsplit("/", 1)[1] if "/" in rest else rest, rest.rsplit("/", 1)[-1])
    if network == "embeddings":
        return (
            "electra/embeddings/"
            + {
                "word": "word_embeddings",
                "position": "position_embeddings",
                "type": "token_type_embeddings",
                "norm/scale": "LayerNorm/gamma",
                "norm/bias": "LayerNorm/beta",
            }[rest]
        )
    scope = {"discriminator": "electra", "generator": "generator"}[network]
    if rest.startswith("project/"):
        return f"{scope}/embeddings_project/{leaf}"
    if rest.startswith("layers/"):
        part = rest.removeprefix("layers/").rsplit("/", 1)[0]
        leaf = "beta" if part.endswith("norm") and leaf == "bias" else leaf
        return f"{scope}/encoder/layer_{layer}/{RENAMED[part]}/{leaf}"
    return {
        "head/dense/kernel": f"{network}_predictions/dense/kernel",
        "head/dense/bias": f"{network}_predictions/dense/bias",
        "head/out/kernel": f"{network}_predictions/dense_1/kernel",
        "head/out/bias": f"{network}_predictions/dense_1/bias",
        "head/norm/scale": f"{network}_predictions/LayerNorm/gamma",
        "head/norm/bias": f"{network}_predictions/LayerNorm/beta",
        "head/bias": f"{network}_predictions/output_bias",
    }[rest]


def assert_exact(model, sizes, slots):
    trees = {"": model.params, **({"/adam_m": names.nested(model.slots.mu), "/adam_v": names.nested(model.slots.nu)} if slots else {})}
    shapes, seen = google.variables(**sizes), set()
    for slot, tree in trees.items():
        for path, x in names.flat(tree).items():
            for layer, part in enumerate(x) if "/layers/" in path else [(None, x)]:
                name = expected(path, layer)
                np.testing.assert_array_equal(part, value(name + slot, shapes[name]), err_msg=name + slot)
                seen.add(name + slot)
    assert seen == {name + slot for name in shapes for slot in trees}
    assert (model.slots is not None) == slots and model.about["step"] == 1234


@pytest.mark.parametrize("path,slots", [("", False), ("model.ckpt-1234", False), ("model.ckpt-1234.index", False), ("with_slots", True)])
def test_what_tensorflow_wrote_is_read_exactly(path, slots):
    model = formats.read(google.FOLDER / path)
    assert_exact(model, google.SMALL, slots)
    if slots:
        assert model.slots.count == 1234
        assert len(list((google.FOLDER / "with_slots").glob("*.data-*-of-00002"))) == 2


def test_the_heads_are_what_one_says():
    config = formats.read(google.FOLDER, head_size=4).config
    assert [(x.num_heads, x.head_size) for x in (config.discriminator, config.generator)] == [(4, 4), (1, 4)]


def test_it_becomes_ours_with_its_slots_and_a_folder_of_transformers(tmp_path):
    before = formats.convert(str(google.FOLDER / "with_slots"), str(tmp_path / "ours"))
    after = formats.read(tmp_path / "ours")
    assert_exact(after, google.SMALL, True)
    assert after.slots.count == 1234 and after.config.generator == before.config.generator
    assert formats.convert(str(google.FOLDER / "with_slots"), str(tmp_path / "bare"), with_slots=False).slots is None
    assert formats.read(tmp_path / "bare").slots is None
    formats.convert(str(google.FOLDER), str(tmp_path / "hub"), format="huggingface")
    for path, x in names.flat(formats.read(tmp_path / "hub").params).items():
        np.testing.assert_array_equal(x, names.flat(before.params)[path])


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(google.FOLDER, tmp_path / "tf1")
    return tmp_path / "tf1"


def refused(path, words, **options):
    with pytest.raises(UserError, match=words) as caught:
        formats.read(path, **options)
    assert "\n" not in str(caught.value)


def test_damage_is_noticed_wherever_it_is(copy):
    index, data = copy / "model.ckpt-1234.index", copy / "model.ckpt-1234.data-00000-of-00001"
    whole = index.read_bytes()
    for at in range(0, len(whole), 41):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        # The last 48 bytes hold the handle of the meta index, which nothing needs, and padding.
        if at < len(whole) - 48:
            refused(copy, "checksum|block|whole TF1")
    for length in (0, 10, len(whole) - 1):
        index.write_bytes(whole[:length])
        refused(copy, "no whole TF1 checkpoint")
    index.write_bytes(whole)
    values = data.read_bytes()
    for at in range(3, len(values) - 8, 1009):
        data.write_bytes(values[:at] + bytes([values[at] ^ 1]) + values[at + 1 :])
        refused(copy, "has another checksum than was written")
    data.write_bytes(values[:-1])
    refused(copy, "cut short")
    data.unlink()
    refused(copy, "no such file: a TF1 checkpoint is PREFIX.index")


def test_what_is_no_pretraining_checkpoint_of_electra(copy, monkeypatch):
    whole = tf1.index(copy / "model.ckpt-1234")

    def with_names(change, words, **options):
        monkeypatch.setattr(tf1, "index", lambda prefix: change(dict(whole)))
        refused(copy, words, **options)

    with_names(lambda found: {name.replace("electra/", "bert/"): x for name, x in found.items()}, "no checkpoint of ELECTRA")
    with_names(lambda found: found | {"generator/embeddings/word_embeddings": found["global_step"]}, "embeddings of its own")
    with_names(lambda found: {n: x for n, x in found.items() if not n.endswith("layer_0/attention/self/query/kernel")}, "is missing")
    lost = "electra/encoder/layer_1/output/dense/bias"
    with_names(lambda found: {n: x for n, x in found.items() if n != lost}, f"{lost} is missing")
    with_names(lambda found: found | {"electra/pooler/kernel": found["global_step"]}, "electra/pooler/kernel is not known")


def test_what_a_checkpoint_may_say_and_no_released_one_does(copy, monkeypatch):
    table = dict(tf1._table((copy / "model.ckpt-1234.index").read_bytes()))
    entry = b"electra/embeddings/LayerNorm/beta"
    for key, more, words in (  # a field of a protocol buffer that comes again is the one that counts
        (b"", b"\x10\x01", "a big-endian machine's"),
        (entry, b"\x3a\x00", f"{entry.decode()} is cut into slices: save it whole"),
        (entry, b"\x08\x07", f"{entry.decode()} has a type that no parameter has"),
        (entry, b"\x18\x05", "a file that the header does not count"),
    ):
        monkeypatch.setattr(tf1, "_table", lambda data, changed={**table, key: table[key] + more}: changed.items())
        refused(copy, words)
    stored = b"block" + b"\x01"  # the byte that says snappy
    crc = google_crc32c.value(stored)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    with pytest.raises(tf1._Bad, match="its blocks are compressed"):
        tf1._block(stored + masked.to_bytes(4, "little"), 0, 5)


def test_a_step_that_is_no_number_and_names_that_nearly_fit(copy, monkeypatch):
    whole, real = tf1.index(copy / "model.ckpt-1234"), tf1.values
    for step in (np.array([1]), np.array(-1), np.array(np.nan)):
        monkeypatch.setattr(tf1, "values", lambda name, entry, step=step: step if name == "global_step" else real(name, entry))
        refused(copy, "global_step is .*: it must be one number from 0 up")
    monkeypatch.undo()
    monkeypatch.setattr(tf1, "index", lambda prefix: {name.replace("/query/", "/qery/"): x for name, x in whole.items()})
    refused(copy, r"query/kernel is missing \(nearest: \S+/qery/kernel\)")


def test_several_checkpoints_in_one_folder(copy):
    for file in list(copy.glob("model.ckpt-1234.*")):
        shutil.copy(file, copy / file.name.replace("1234", "99"))
    assert formats.read(copy).about["source"].endswith("model.ckpt-1234")  # as the file `checkpoint` says
    (copy / "checkpoint").unlink()
    refused(copy, "2 checkpoints in it")
    assert formats.read(copy / "model.ckpt-99").about["source"].endswith("model.ckpt-99")


def test_the_published_shapes_are_recognised():
    sizes = {
        "small": dict(hidden=256, generator_hidden=64),
        "small_pp": dict(hidden=256, generator_hidden=256),
        "base": dict(hidden=768, generator_hidden=256, embedding=768),
        "large": dict(hidden=1024, generator_hidden=256, embedding=1024),
    }
    for preset, change in sizes.items():
        layers = PRESETS[preset].num_layers
        shapes = google.variables(**{**dict(vocab=30522, embedding=128, layers=layers, generator_layers=layers, positions=512), **change})
        config = tf1._config(shapes, ("discriminator", "generator"), google.FOLDER, 64)
        found = [name for name, there in PRESETS.items() if tf1._same_shape(there, config, ("discriminator", "generator"))]
        assert found[0] == preset and costs.num_params(config) == costs.num_params(PRESETS[preset])


@pytest.mark.parametrize("networks", [("discriminator", "generator"), ("discriminator",), ("generator",)])
def test_feed_forward_widths_are_those_of_the_tensors(networks):
    shapes = google.variables(**google.SMALL, ffn=37, generator_ffn=5)
    config = tf1._config(shapes, networks, google.FOLDER, 4)
    wanted = {"discriminator": 37, "generator": 5}
    assert {name: config.encoder(name).ffn_size for name in networks} == {name: wanted[name] for name in networks}


@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="TensorFlow is in the extra [tf1]: make tf1")
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("size", ["small", "odd"])
def test_anew_by_tensorflow(size, slots, sharded, tmp_path):
    sizes = dict(vocab=30522, embedding=128, hidden=256, layers=12, generator_hidden=64, generator_layers=12, positions=512)
    if size == "odd":
        sizes = dict(
            vocab=77, embedding=24, hidden=24, layers=1, generator_hidden=8, generator_layers=1, positions=9, ffn=37, generator_ffn=5
        )
    google.write(tmp_path / "electra", sizes, slots=slots, sharded=sharded)
    assert_exact(formats.read(tmp_path), sizes, slots)
