"""Our format and transformers' folders, there and back, and everything that may be wrong with a folder."""

import dataclasses
import io
import json
import os
import pathlib
import pydoc
import re
import shutil
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

import electra_jax
from electra_jax import files
from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.interop import formats, names, workdir
from electra_jax.interop.model import NETWORKS
from electra_jax.models.backbones import BACKBONES
from tests.interop.models import CONFIG, assert_equal, model
from tests.launch import runs

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary(size=CONFIG.vocab_size, start="piece", **options):
    return tokenizers.WordPiece([*SPECIALS, *(f"{start}{number}" for number in range(size - 5))], **options)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal_init", "rotary"])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_both_networks_there_and_back(format, positions, tmp_path):
    before = model(dataclasses.replace(CONFIG, positions=positions), vocabulary(), slots=True, step=5)
    formats.write(tmp_path / "out", before, format)
    after = formats.read(tmp_path / "out")
    assert_equal(before.params, after.params)
    assert after.tokenizer.sha256 == before.tokenizer.sha256
    theirs = dataclasses.asdict(before.config) | ({"positions": "learned"} if positions == "sinusoidal_init" else {})
    same = [name for name in theirs if name not in ("attention", "positions") or format == "huggingface"]
    assert {name: dataclasses.asdict(after.config)[name] for name in same if name != "attention"} == {
        name: theirs[name] for name in same if name != "attention"
    }
    if format == "electra_jax":
        assert_equal(before.slots.mu, after.slots.mu)
        assert_equal(before.slots.nu, after.slots.nu)
        assert after.slots.count == 17 and after.about["step"] == 5


HEADS = {"sequence_classification": 3, "token_classification": 5, "question_answering": 2, "classification": 4, "joint_answer": 2}


@pytest.mark.parametrize("task,labels", HEADS.items())
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_tasks_heads_and_their_labels(format, positions, task, labels, tmp_path):
    whole = model(dataclasses.replace(CONFIG, positions=positions), None, task, labels, labels=[f"is {n}" for n in range(labels)])
    params = {name: whole.params[name] for name in ("embeddings", "discriminator", task)}
    params["discriminator"] = {name: x for name, x in params["discriminator"].items() if name != "head"}
    before = dataclasses.replace(whole, params=params)
    formats.write(tmp_path / "out", before, format)
    after = formats.read(tmp_path / "out")
    assert_equal(before.params, after.params)
    assert after.task == task and after.about["labels"] == before.about["labels"]
    if format == "huggingface":  # what the card calls the outputs of its class
        card = (tmp_path / "out" / "discriminator" / "README.md").read_text()
        said = {
            "sequence_classification": "# [1, labels]",
            "token_classification": "# [1, length, labels]",
            "question_answering": "_logits",
        }
        assert ("hidden = model(" in card) == (task in ("classification", "joint_answer")) and said.get(task, "hidden") in card
    if format == "huggingface" and task != "joint_answer":
        path = tmp_path / "out" / "discriminator" / "config.json"
        fields = json.loads(path.read_text())
        path.write_text(json.dumps(fields | {"id2label": {**fields["id2label"], "9": "one more"}}))
        with pytest.raises(UserError, match=rf"bias is \[{labels}\] and should be \[{labels + 1}\]"):
            formats.read(tmp_path / "out")


@pytest.mark.parametrize("positions,reach", [("learned", 24), ("rotary", 40)])
def test_rows_of_a_task_that_are_longer_than_pretrainings(positions, reach, tmp_path):
    """Rotary positions have no table that bounds a row, but RoFormer has one, and would fail on the task's longer rows."""
    config, task = dataclasses.replace(CONFIG, positions=positions), {"kind": "class", "finetune": {"length": 40}}
    whole = model(config, vocabulary(), "classification", 2)
    params = {name: whole.params[name] for name in ("embeddings", "discriminator", "classification")}
    about = {"labels": ["no", "yes"], "task": task}
    formats.write(tmp_path / "out", dataclasses.replace(whole, params=params, about=about), "huggingface")
    folder = tmp_path / "out" / "discriminator"
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == reach
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == reach
    assert formats.read(folder).config.max_length == reach


def test_a_head_that_transformers_lacks_is_named_by_the_config(tmp_path):
    whole = model(CONFIG, None, "classification", 3)
    params = {name: whole.params[name] for name in ("embeddings", "discriminator", "classification")}
    formats.write(tmp_path / "out", dataclasses.replace(whole, params=params), "huggingface")
    folder = tmp_path / "out" / "discriminator"
    assert (folder / "task_head.py").read_text().startswith('"""ELECTRA\'s own classification head')
    assert json.loads((folder / "config.json").read_text())["electra_jax"] == {"head": "classification"}
    for words, section in (("head is 'pooler'", {"head": "pooler"}), ("head is None", {}), ("electra_jax is 7", 7)):
        change_config(folder, electra_jax=section)
        refused(folder, words)
    change_config(folder, electra_jax={"head": "classification"})
    (folder / "task_head.safetensors").unlink()  # a copy that is not whole must not pass for an encoder alone
    refused(folder, "task_head.safetensors is not there, and .*config.json says that the head lies in it: copy it there")


def test_an_encoder_that_was_an_mlms_goes_out_with_its_head(tmp_path):
    """BERT's encoder is a generator here; fine-tuned, it is what ELECTRA's encoder is, where its embeddings are as wide."""
    config = dataclasses.replace(CONFIG, embedding_size=CONFIG.hidden_size, generator_hidden_fraction=1.0)
    whole = model(config, None, "token_classification", 5)
    encoder = {name: x for name, x in whole.params["generator"].items() if name != "head"}
    params = {"embeddings": whole.params["embeddings"], "generator": encoder, "token_classification": whole.params["token_classification"]}
    formats.write(tmp_path / "out", dataclasses.replace(whole, params=params), "huggingface")
    after = formats.read(tmp_path / "out")
    assert after.about["architecture"] == "ElectraForTokenClassification" and after.networks == ("discriminator",)
    assert_equal(encoder, after.params["discriminator"])
    assert_equal(params["token_classification"], after.params["token_classification"])


@pytest.mark.parametrize("network", NETWORKS)
def test_one_network_alone(network, tmp_path):
    before = model(tokenizer=vocabulary())
    formats.write(tmp_path / "both", before, "huggingface")
    for source in (tmp_path / "both", tmp_path / "both" / network):
        after = formats.read(source, network=network)
        assert after.networks == (network,)
        assert_equal({name: before.params[name] for name in ("embeddings", network)}, after.params)
        encoder, there = (getattr(config, network) for config in (before.config, after.config))
        assert encoder == dataclasses.replace(there, attention=encoder.attention)
    formats.write(tmp_path / "ours", model(tokenizer=vocabulary(), slots=True), "electra_jax")
    slots = formats.read(tmp_path / "ours", network=network).slots
    assert {path.split("/")[0] for arrays in (slots.mu, slots.nu) for path in arrays} == {"embeddings", network}
    other = next(name for name in NETWORKS if name != network)
    with pytest.raises(UserError, match=f"no {other} in it"):
        formats.read(tmp_path / "both" / network, network=other)


def test_two_folders_are_joined_where_they_belong_together(tmp_path):
    first, second = model(tokenizer=vocabulary()), model(tokenizer=vocabulary(), seed=1)
    formats.write(tmp_path / "1", first, "huggingface")
    formats.write(tmp_path / "2", second, "huggingface")
    pair = f"{tmp_path}/1/generator,{tmp_path}/1/discriminator"
    assert_equal(formats.read(pair).params, first.params)
    apart = formats.read(f"{tmp_path}/1/generator,{tmp_path}/2/discriminator")
    assert apart.config.sharing == "none" and "the two have other values in embeddings/word, embeddings/position" in apart.notes[-1]
    assert_equal(apart.params["generator"]["embeddings"], first.params["embeddings"])
    assert_equal(apart.params["embeddings"], second.params["embeddings"])
    for pair, words in (
        (f"{tmp_path}/1/generator,{tmp_path}/2/generator", "one of them must be a discriminator"),
        (f"{tmp_path}/1,{tmp_path}/2", "one of them must be a discriminator"),
        ("a,b,c", "give one path, or two"),
    ):
        with pytest.raises(UserError, match=words):
            formats.read(pair)
    formats.write(tmp_path / "3", dataclasses.replace(first, tokenizer=vocabulary(start="other")), "huggingface")
    with pytest.raises(UserError, match="two different tokenizers"):
        formats.read(f"{tmp_path}/1/generator,{tmp_path}/3/discriminator")
    path = tmp_path / "3" / "generator" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 2}))
    with pytest.raises(UserError, match="the generator's num_heads is 2 and would be 1 here"):
        formats.read(f"{tmp_path}/3")


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("sizes", [(37, 11), (0, 11), (37, 0), (64, 64)])
def test_feed_forward_widths_of_any_size_there_and_back(sizes, format, tmp_path):
    config = dataclasses.replace(CONFIG, ffn_size=sizes[0], generator_ffn_size=sizes[1])
    before = model(config, vocabulary())
    formats.write(tmp_path / "out", before, format)
    after = formats.read(tmp_path / "out")
    assert_equal(before.params, after.params)
    for network in NETWORKS:
        assert after.config.encoder(network).ffn_size == config.encoder(network).ffn_size
        alone = formats.read(tmp_path / "out", network=network)
        assert alone.config.encoder(network).ffn_size == config.encoder(network).ffn_size
        if format == "huggingface":
            fields = json.loads((tmp_path / "out" / network / "config.json").read_text())
            assert fields["intermediate_size"] == config.encoder(network).ffn_size


def test_another_backbone_stays_in_our_own_format(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "two_kinds", "tests.toys.two_kinds")
    before = model(dataclasses.replace(CONFIG, backbone="two_kinds"), vocabulary())
    formats.write(tmp_path / "ours", before, "electra_jax")
    assert_equal(before.params, formats.read(tmp_path / "ours").params)
    with pytest.raises(UserError, match="no class for model.backbone=two_kinds"):
        formats.write(tmp_path / "theirs", before, "huggingface")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("factor,sizes", [(4, (0, 0)), (3, (48, 24))])
def test_configs_of_earlier_versions_have_a_factor(factor, sizes):
    fields = dataclasses.asdict(CONFIG)
    for name in ("ffn_size", "generator_ffn_size", "backbone"):
        del fields[name]
    config = workdir._config(fields | {"ffn_factor": factor, "dtype": "auto"}, "there")
    assert (config.ffn_size, config.generator_ffn_size) == sizes
    assert dataclasses.replace(config, ffn_size=0, generator_ffn_size=0) == CONFIG
    with pytest.raises(UserError, match="is not one of this version"):
        workdir._config(fields | {"ffn_factor": "wide"}, "there")


@pytest.mark.parametrize("trained, kept, loaded", [("bfloat16", "float32", "float32"), ("float64", "float64", "float64")])
def test_the_type_of_products_was_the_machines_that_trained(trained, kept, loaded):
    """A run stores what its platform chose; who loads it on another is given products in the type of the parameters."""
    fields = dataclasses.asdict(CONFIG) | {"dtype": trained, "param_dtype": kept, "attention": "rows"}
    config = workdir._config(fields, "there")
    assert (config.dtype, config.param_dtype, config.attention) == (loaded, kept, "auto")


def test_a_tokenizer_that_cannot_be_read_is_named_where_it_lies(tmp_path):
    formats.write(tmp_path / "out", model(tokenizer=vocabulary()), "electra_jax")
    (tmp_path / "out" / "tokenizer" / "vocab.txt").write_text("[PAD]\n")
    refused(tmp_path / "out", rf"^tokenizer {tmp_path}/out/tokenizer/vocab.txt: the vocabulary has no \[UNK\]")


def test_a_step_named_from_within_the_checkpoints(tmp_path, monkeypatch):
    """The tokenizer lies beside the folder that one stands in."""
    formats.write(tmp_path / "out", model(tokenizer=vocabulary(), step=5), "electra_jax")
    monkeypatch.chdir(tmp_path / "out" / "checkpoints")
    assert formats.read("5").tokenizer is not None and formats.read("../checkpoints/5").tokenizer is not None


def test_three_lines_from_python(tmp_path):
    formats.write(tmp_path / "out", model(tokenizer=vocabulary()), "huggingface")
    config, params, tokenizer = electra_jax.load(tmp_path / "out")
    electra_jax.save(tmp_path / "again", config, params, tokenizer)
    assert_equal(params, electra_jax.load(tmp_path / "again")[1])
    batch = electra_jax.encode(["piece3 piece4", "piece5"], tokenizer, config.max_length)
    assert batch.tokens.tolist() == [[2, 8, 9, 3], [2, 10, 3, 0]]
    scores = electra_jax.discriminator_apply(params, config, batch)
    alone = electra_jax.discriminator_apply(params, config, electra_jax.encode(["piece5"], tokenizer, 24))
    assert scores.shape == (2, 4)
    assert electra_jax.encode(["piece5 " * 40], tokenizer, config.max_length).tokens.shape == (1, 24)
    for texts, length, words in (("piece5", 24, "a list of texts"), (["piece5"], 1, "at least 2")):
        with pytest.raises(UserError, match=words):
            electra_jax.encode(texts, tokenizer, length)
    np.testing.assert_allclose(scores[1, :3], alone[0], rtol=1e-5)


def test_special_pieces_in_a_text_are_themselves(real_text, tmp_path):
    words = vocabulary()
    ids = [words.cls_id, *words.encode_batch(["piece3"])[0], words.mask_id, *words.encode_batch(["piece4"])[0], words.sep_id]
    assert electra_jax.encode(["piece3 [MASK] piece4"], words, 24).tokens.tolist() == [ids]
    assert electra_jax.encode(["[MASK]", ""], words, 24).tokens.tolist() == [[2, words.mask_id, 3], [2, 3, 0]]
    assert words.mask_id not in electra_jax.encode(["[mask]"], words, 24).tokens


def test_the_package_tells_what_it_has():
    assert set(electra_jax.__all__) <= set(dir(electra_jax)) and "encode" in pydoc.render_doc(electra_jax)
    assert re.fullmatch(r"\d+\.\d+\.\d+", electra_jax.__version__)


def test_a_name_of_the_package_stays_what_it_was():
    """Loading the function `pretrain` loads a module of the same name, which Python puts in the package under that name."""
    code = "import electra_jax; assert electra_jax.pretrain is electra_jax.pretrain and callable(electra_jax.pretrain)"
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_config_names_the_tokenizers_padding(tmp_path):
    tokenizer = tokenizers.WordPiece([*SPECIALS[::-1], *vocabulary().vocabulary[5:]])
    formats.write(tmp_path / "out", model(tokenizer=tokenizer), "huggingface")
    assert json.loads((tmp_path / "out" / "generator" / "config.json").read_text())["pad_token_id"] == 4 == tokenizer.pad_id


def test_what_transformers_trains_a_head_by_is_kept(tmp_path):
    fields = {"problem_type": "multi_label_classification", "classifier_dropout": 0.2}
    whole = dataclasses.replace(model(CONFIG, None, "sequence_classification", 3), about={"task": fields})
    params = {name: whole.params[name] for name in ("embeddings", "discriminator", "sequence_classification")}
    params["discriminator"] = {name: x for name, x in params["discriminator"].items() if name != "head"}
    formats.write(tmp_path / "1", dataclasses.replace(whole, params=params), "huggingface")
    formats.convert(str(tmp_path / "1" / "discriminator"), str(tmp_path / "2"))
    formats.convert(str(tmp_path / "2"), str(tmp_path / "3"))
    assert json.loads((tmp_path / "3" / "discriminator" / "config.json").read_text()).items() >= fields.items()


@pytest.mark.parametrize(
    "words,options",
    [
        ("byte_fallback", dict(byte_fallback=True)),
        ("treat_whitespace_as_suffix", dict(treat_whitespace_as_suffix=True)),
        ("split_by_whitespace", dict(split_by_whitespace=False)),
        ("remove_extra_whitespaces", dict(remove_extra_whitespaces=False)),
        ("that a user defined", dict(user_defined_symbols=["<x>"])),
        ("neither unigram nor BPE", dict(model_type="word")),
    ],
)
def test_a_sentencepiece_model_whose_ids_nothing_there_gives_does_not_go_out(words, options, real_text, tmp_path):
    size = 1200 if "byte_fallback" in options else 800
    common = dict(
        sentence_iterator=iter(real_text.read_text().splitlines()),
        model_writer=(written := io.BytesIO()),
        vocab_size=size,
        minloglevel=2,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        control_symbols=["[MASK]"],
        hard_vocab_limit=False,
    )
    sentencepiece.SentencePieceTrainer.train(**common | options)
    tokenizer = tokenizers.SentencePiece(written.getvalue())
    there = model(dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match=words):
        formats.write(tmp_path / "out", there, "huggingface")
    assert not list(tmp_path.iterdir())


def test_names_of_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = model(tokenizer=vocabulary())
    formats.write("a, b/ö/out", there, "huggingface")
    assert_equal(formats.read("a, b/ö/out").params, there.params)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    formats.write("link", there, "electra_jax")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "checkpoints").is_dir()
    with pytest.raises(UserError, match="write to a folder here"):
        electra_jax.save("gs://bucket/x", there.config, there.params, there.tokenizer)
    with pytest.raises(RuntimeError), files.whole_folder("new/deep/x") as folder:
        (folder / "file").touch()
        raise RuntimeError
    with pytest.raises(UserError, match="since a moment ago"), files.whole_folder("raced"):
        (tmp_path / "raced").mkdir()
        (tmp_path / "raced" / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a, b", "empty", "link", "raced"]


def test_what_cannot_be_saved_is_said_and_nothing_is_written(tmp_path):
    there = model(tokenizer=vocabulary())
    arrays = names.flat(there.params)
    kernel = "generator/layers/ffn/output/kernel"
    for params, words in (
        ({**arrays, kernel: arrays[kernel][:1]}, rf"{kernel} is \[1, 32, 8\] and should be \[2, 32, 8\]"),
        ({path: x for path, x in arrays.items() if path != kernel}, rf"{kernel} is missing"),
        ({**arrays, "generator/layer": arrays[kernel]}, "generator/layer is not known"),
        ({"generator/head/bias": arrays["generator/head/bias"]}, "embeddings/word is missing"),
        ({}, "discriminator/head/out/kernel is missing"),
    ):
        with pytest.raises(UserError, match=words):
            electra_jax.save(tmp_path / "out", there.config, names.nested(params), there.tokenizer)
    with pytest.raises(UserError, match="'onnx' is no format"):
        electra_jax.save(tmp_path / "out", there.config, there.params, there.tokenizer, "onnx")
    with pytest.raises(UserError, match="the tokenizer has 60 pieces and the embeddings have 61 rows"):
        config = dataclasses.replace(CONFIG, vocab_size=61)
        electra_jax.save(tmp_path / "out", config, model(config).params, there.tokenizer)
    assert not list(tmp_path.iterdir())
    bfloat16 = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), there.params)
    (tmp_path / "out").mkdir()  # an empty one may be there
    electra_jax.save(tmp_path / "out", there.config, bfloat16, there.tokenizer)
    assert_equal(electra_jax.load(tmp_path / "out")[1], jax.tree.map(lambda x: x.astype(jnp.float32), bfloat16))


def test_a_word_piece_tokenizers_options_travel(tmp_path):
    all_options = (
        dict(lower_case=False),
        dict(lower_case=True, strip_accents=False),
        dict(lower_case=False, strip_accents=True, chinese_chars=False),
    )
    for number, options in enumerate(all_options):
        tokenizer = vocabulary(**options)
        for format in formats.FORMATS:
            out = tmp_path / f"{format}{number}"
            formats.write(out, model(tokenizer=tokenizer), format)
            assert formats.read(out).tokenizer.options == tokenizer.options


# --- What may be wrong


@pytest.fixture
def folder(tmp_path):
    formats.write(tmp_path / "out", model(tokenizer=vocabulary()), "huggingface")
    return tmp_path / "out" / "discriminator"


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder, words):
    with pytest.raises(UserError, match=words) as caught:
        formats.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_tensor_that_does_not_fit_is_named_with_the_nearest(folder):
    def change(tensors):
        tensors["electra.encoder.layer.1.attention.self.querry.weight"] = tensors.pop("electra.encoder.layer.1.attention.self.query.weight")
        for i in range(2):
            del tensors[f"electra.encoder.layer.{i}.output.dense.bias"]
        tensors["discriminator_predictions.dense.weight"] = np.zeros((16, 15), np.float32)
        tensors["something.else"] = np.zeros(3, np.float32)

    change_weights(folder, change)
    said = refused(folder, "is missing")
    for words in (
        "electra.encoder.layer.1.attention.self.query.weight is missing (nearest: electra.encoder.layer.1.attention.self.querry.weight)",
        "electra.encoder.layer.0,1.output.dense.bias is missing",
        "something.else is not known",
        "discriminator_predictions.dense.weight is [16, 15] and should be [16, 16]",
    ):
        assert words in said, said


@pytest.mark.parametrize(
    "fields,words",
    [
        (dict(hidden_size="16"), "hidden_size is '16'"),
        (dict(hidden_size=None), "hidden_size is None"),
        (dict(hidden_size=True), "hidden_size is True"),
        (dict(vocab_size=2**70), "vocab_size is 1180591620717411303424"),
        (dict(layer_norm_eps=float("nan")), "layer_norm_eps is nan"),
        (dict(num_attention_heads=3), "must be a multiple"),
        (dict(num_attention_heads=0), "must be a multiple"),
        (dict(intermediate_size=63), "intermediate.dense.weight is \\[64, 16\\] and should be \\[63, 16\\]"),
        (dict(intermediate_size=0), "intermediate_size is 0: it must be at least 1"),
        (dict(num_hidden_layers=10**9), "num_hidden_layers 1000000000 and the weights have 2"),
        (dict(num_hidden_layers=0), "num_layers is 0"),
        (dict(vocab_size=61), "should be \\[61, 8\\]"),
        (dict(hidden_size=32, intermediate_size=128), "should be"),
        (dict(hidden_act="relu"), "hidden_act is 'relu'"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type"),
        (dict(is_decoder=True), "is_decoder"),
        (dict(rotary_value=True), "rotary_value"),
        (dict(architectures=["ElectraForMaskedLM"]), "generator_predictions"),
        (dict(architectures=["ElectraForCausalLM"]), "ElectraForCausalLM of model_type electra is not read"),
        (dict(architectures="ElectraModel"), "it must name one class"),
        (dict(model_type="deberta-v2"), "DeBERTa is another architecture"),
        (dict(model_type=None), "model_type is None"),
        (dict(layer_norm_eps="small"), "it must be a number"),
    ],
)
def test_a_config_that_contradicts_the_weights_or_itself(folder, fields, words):
    change_config(folder, **fields)
    refused(folder, words)


def test_files_that_are_cut_absent_or_none_of_these(folder, tmp_path):
    weights = (folder / "model.safetensors").read_bytes()
    for length in (0, 5, 100, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:length])
        refused(folder, "no whole safetensors file")
    (folder / "model.safetensors").write_bytes(weights)
    config = (folder / "config.json").read_text()
    for text, words in (("{", "not JSON"), ("[1]", "not a JSON object"), ("[" * 100_000, "not JSON")):
        (folder / "config.json").write_text(text)
        refused(folder, words)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").unlink()
    refused(folder, "no model is known in it")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x"}}))
    refused(folder, "does not say which file")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    refused(folder, "gone.safetensors: no whole safetensors file")
    refused(tmp_path / "nowhere", "no such file or folder")
    (tmp_path / "file.txt").write_text("text")
    refused(tmp_path / "file.txt", "no model is known in it")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no model is known in it")


def test_a_tokenizer_of_another_size_is_refused_by_name(folder):
    shutil.rmtree(folder.parent / "generator")
    vocabulary(61).save(folder)
    refused(folder, "the tokenizer has 61 pieces and the embeddings have 60 rows")


def test_one_parameter_under_two_names_and_numbers_that_are_none(folder):
    name = "electra.embeddings.LayerNorm.weight"
    change_weights(folder, lambda tensors: tensors.update({name.replace("weight", "gamma"): tensors[name] + 1}))
    assert {name, name.replace("weight", "gamma")} <= set(refused(folder, "are one parameter").split())
    change_weights(folder, lambda tensors: tensors.pop(name.replace("weight", "gamma")))
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name].astype(np.int32)}))
    refused(folder, f"{name} cannot be read .its type is int32")


def test_other_turns_than_those_of_rotary_positions(tmp_path):
    formats.write(tmp_path / "out", model(dataclasses.replace(CONFIG, positions="rotary")), "huggingface")
    folder = tmp_path / "out" / "generator"
    name = "roformer.encoder.embed_positions.weight"
    change_weights(folder, lambda tensors: tensors.update({name: np.zeros((24, 8), np.float32)}))
    refused(folder, f"{name} is not the table of sines and cosines.*freeze it there and train again")


def test_a_table_of_turns_that_was_trained_a_little_is_another_one(tmp_path):
    """transformers trains it with the rest: a few steps move it by less than half precision rounds, and the outputs by more than that."""
    formats.write(tmp_path / "out", model(dataclasses.replace(CONFIG, positions="rotary")), "huggingface")
    folder, name = tmp_path / "out" / "generator", "roformer.encoder.embed_positions.weight"
    assert "embed_positions.requires_grad_(False)" in (folder / "README.md").read_text()
    tables = []
    change_weights(folder, lambda tensors: tables.append(tensors[name].copy()))
    for type_ in (np.float16, jnp.bfloat16):  # read in float32, as a folder in half precision is
        change_weights(folder, lambda tensors, type_=type_: tensors.update({name: tables[0].astype(type_).astype(np.float32)}))
        formats.read(folder)
    change_weights(folder, lambda tensors: tensors.update({name: tables[0] + np.float32(1e-3)}))
    refused(folder, "embed_positions.weight is not the table of sines and cosines")


@pytest.mark.parametrize("length, words", [(2**31 - 1, "max_position_embeddings is 2147483647"), (1 << 20, "is not the table")])
def test_a_length_of_any_size_costs_no_memory_before_it_is_compared(tmp_path, length, words):
    formats.write(tmp_path / "out", model(dataclasses.replace(CONFIG, positions="rotary")), "huggingface")
    change_config(tmp_path / "out" / "generator", max_position_embeddings=length)
    tracemalloc.start()
    refused(tmp_path / "out" / "generator", words)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10 << 20


def test_a_pipe_in_a_workdir_is_refused_and_not_waited_for(tmp_path):
    formats.write(tmp_path / "run", model(tokenizer=vocabulary()), "electra_jax")
    name = tmp_path / "run" / "tokenizer" / "vocab.txt"
    name.unlink()
    os.mkfifo(name)
    refused(tmp_path / "run", "vocab.txt: it is no ordinary file")


def test_the_tokenizer_of_another_run_is_refused(tmp_path):
    formats.write(tmp_path / "run", model(tokenizer=vocabulary()), "electra_jax")
    vocabulary(start="other").save(tmp_path / "run" / "tokenizer")
    refused(tmp_path / "run", "the tokenizer there is not the one that the run was trained with")


def test_nothing_half_written(folder, tmp_path, monkeypatch):
    before = model(tokenizer=vocabulary())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("electra_jax.interop.cards.card", full)
    with pytest.raises(OSError):
        formats.write(tmp_path / "new", before, "huggingface")
    assert not (tmp_path / "new").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    with pytest.raises(UserError, match="is there already"):
        formats.write(folder, before, "huggingface")
    (tmp_path / "empty").mkdir()
    formats.write(tmp_path / "empty", before, "huggingface")
    assert_equal(formats.read(tmp_path / "empty").params, before.params)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "write_bytes", lambda *_: pathlib.Path("/dev/full").open("w").write("x" * 100_000))
    with pytest.raises(OSError, match="No space left"):
        formats.write(tmp_path / "out", model(), "huggingface")
    assert not list(tmp_path.iterdir())


def test_the_card_states_what_was_trained(tmp_path):
    about = dict(source="runs/x", step=1234, metrics={"eval/rtd_auc": 0.75}, data=[{"sha256": "abc"}])
    about["config"] = {"seed": 7, "train": {}, "init_from": "runs/before"}
    trained = dataclasses.replace(model(dataclasses.replace(CONFIG, positions="rotary"), vocabulary()), about=about)
    formats.write(tmp_path / "out", trained, "huggingface")
    card = (tmp_path / "out" / "discriminator" / "README.md").read_text()
    rows = ("| steps | 1234 |", "| eval/rtd_auc | 0.75 |", "| began with | before |")
    for words in (*rows, '"sha256": "abc"', '"seed": 7', "RoFormerModel", "rtd_head", "lower_case=True"):
        assert words in card
    assert (tmp_path / "out" / "discriminator" / "rtd_head.py").is_file()
    assert "\nlicense: " in card


def test_the_card_has_no_path_of_the_machine_and_nothing_unescaped(tmp_path):
    about = dict(source="/home/someone/runs/a|b", name="<b>tiny</b>", step=3, data=[{"path": "/home/someone/rows"}])
    about["config"] = {"train": {}, "init_from": "../someone/before", "data": {"path": "/home/someone/rows,gs://bucket/rows"}}
    formats.write(tmp_path / "out", dataclasses.replace(model(tokenizer=vocabulary()), about=about), "huggingface")
    card = (tmp_path / "out" / "generator" / "README.md").read_text()
    assert "someone" not in card and str(tmp_path) not in card and "<b>" not in card.replace("\\<b\\>", "")
    assert "| source | a\\|b |" in card and '"path": "rows,gs://bucket/rows"' in card


def test_the_card_of_a_model_from_elsewhere_names_no_steps(tmp_path):
    formats.write(tmp_path / "hub", model(tokenizer=vocabulary()), "huggingface")
    pair = f"{tmp_path}/hub/discriminator,{tmp_path}/hub/generator"
    formats.convert(pair, str(tmp_path / "ours"))
    formats.convert(str(tmp_path / "ours"), str(tmp_path / "out"))
    card = (tmp_path / "out" / "generator" / "README.md").read_text()
    assert "| converted from | discriminator,generator |" in card and "| steps |" not in card


def test_rotary_order_is_a_permutation_of_each_head(tmp_path):
    before = model(dataclasses.replace(CONFIG, positions="rotary"))
    formats.write(tmp_path / "out", before, "huggingface")
    there = safetensors.numpy.load_file(tmp_path / "out" / "discriminator" / "model.safetensors")
    mine = names.flat(before.params)["discriminator/layers/attention/query/kernel"][1]  # [in, heads x 8]
    rows = there["encoder.layer.1.attention.self.query.weight"]  # [heads x 8, in], neighbours turn together
    np.testing.assert_array_equal(rows[8 + 2 * 3], mine[:, 8 + 3])
    np.testing.assert_array_equal(rows[8 + 2 * 3 + 1], mine[:, 8 + 4 + 3])
