"""Training on from another model: what is taken, what begins anew, and what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.interop import names, start
from electra_jax.interop.model import NETWORKS, only
from electra_jax.models.config import ElectraConfig
from electra_jax.train import optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from tests import tiny
from tests.interop.models import CONFIG, model
from tests.interop.test_formats import SPECIALS, vocabulary


@functools.cache
def fresh(config=CONFIG, name="adamw"):
    rule = optimizer.make_optimizer(OptimizerConfig(name=name), ScheduleConfig(10), 100)
    return jax.jit(lambda key: step.init_state(key, tiny.objective(config), rule))(rng.root_key(0))


def begun(source, config=CONFIG, tokenizer=None, with_slots=False, name="adamw"):
    state = fresh(config, name)
    abstract = jax.eval_shape(lambda: state)
    found, notes = start.values(abstract, config, source, tokenizer or vocabulary(), with_slots=with_slots, seed=0)
    return start.placed(state, found), notes


def flat(tree):
    return {path: np.asarray(x) for path, x in names.flat(tree).items()}


def moments(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


def test_both_networks_and_a_fresh_optimizer():
    source = model(tokenizer=vocabulary(), slots=True, source="there")
    state, notes = begun(source)
    for path, x in flat(source.params).items():
        np.testing.assert_array_equal(flat(state.params)[path], x)
    assert all(not x.any() for x in moments(state).values()) and int(state.step) == 0
    assert notes == ["init_from there: embeddings, discriminator, generator taken over"]


def test_one_network_and_the_other_as_ever():
    source = only(model(tokenizer=vocabulary(), source="there"), "discriminator", "there")
    state, notes = begun(source)
    before = flat(fresh().params)
    for path, x in flat(state.params).items():
        there = before if path.startswith("generator/") else flat(source.params)
        np.testing.assert_array_equal(x, there[path], err_msg=path)
    assert "anew: generator/head, generator/layers" in notes[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizers_memory_on_request_and_the_schedule_anew(name):
    source = model(tokenizer=vocabulary(), slots=True, source="there")
    kept = {path.split("/nu/")[1] for path in moments(fresh(name=name)) if "/nu/" in path}
    assert (len(kept) < len(source.slots.nu)) == (name == "muon")  # which has no second moment of the layers' matrices
    slots = source.slots._replace(nu={path: x for path, x in source.slots.nu.items() if path in kept})
    source = dataclasses.replace(source, slots=slots)
    state, notes = begun(source, with_slots=True, name=name)
    found = moments(state)
    mine = [path for path in found if "/mu/" in path]
    assert len(mine) == len(flat(source.params))
    for path in mine:
        np.testing.assert_array_equal(found[path], source.slots.mu[path.split("/mu/")[1]])
    counts = {path: int(x) for path, x in found.items() if path.endswith("count")}
    remembered = {path for path in counts if any(other.startswith(path.removesuffix("count") + "mu") for other in found)}
    assert remembered and {counts[path] for path in remembered} == {17} and {counts[p] for p in counts.keys() - remembered} <= {0}
    assert int(state.step) == 0  # what the schedule goes by
    assert "the optimizer's memory of 17 updates" in notes[0]


def test_memory_that_does_not_fit_is_refused():
    with_one = only(model(tokenizer=vocabulary(), slots=True, source="there"), "generator", "there")
    without = model(tokenizer=vocabulary(), source="there")
    for source, words in ((without, "has no memory of an optimizer"), (with_one, "has no discriminator")):
        with pytest.raises(UserError, match=words):
            begun(source, with_slots=True)
    source = model(tokenizer=vocabulary(), slots=True, source="there")
    source = dataclasses.replace(source, slots=source.slots._replace(nu={}))  # Muon's
    with pytest.raises(UserError, match="trained with another optimizer .no nu of discriminator"):
        begun(source, with_slots=True)
    with pytest.raises(UserError, match="trained with another optimizer .no place for nu of discriminator/layers/attention/key/kernel"):
        begun(model(tokenizer=vocabulary(), slots=True, source="there"), with_slots=True, name="muon")


def test_another_vocabulary_keeps_the_rows_of_shared_tokens():
    theirs = vocabulary()
    pieces = [*SPECIALS[::-1], "new", *theirs.vocabulary[20:50], "##piece3", "newer"]
    here = tokenizers.WordPiece(pieces)
    config = dataclasses.replace(CONFIG, vocab_size=len(pieces))
    source = model(tokenizer=theirs, slots=True, source="there")
    state, notes = begun(source, config, here, with_slots=True)
    word, there = flat(state.params)["embeddings/word"], flat(source.params)["embeddings/word"]
    kept = {number: theirs.vocabulary.index(piece) for number, piece in enumerate(pieces) if piece in theirs.vocabulary}
    assert len(kept) == 35 and f"35 of {len(pieces)} tokens keep their embeddings" in " ".join(notes)
    for number, piece in enumerate(pieces):
        if number in kept:
            np.testing.assert_array_equal(word[number], there[kept[number]], err_msg=piece)
        else:  # "##piece3" goes on with a word where "piece3" begins one
            mean = there[list(kept.values())].mean(0)
            assert config.init_std / 2 < np.abs(word[number] - mean).max() < 6 * config.init_std, piece
    bias, bias_there = flat(state.params)["generator/head/bias"], flat(source.params)["generator/head/bias"]
    np.testing.assert_array_equal(bias[list(kept)], bias_there[list(kept.values())])
    np.testing.assert_allclose(bias[5], bias_there[list(kept.values())].mean(), rtol=1e-5)
    (mu,) = (x for path, x in moments(state).items() if path.endswith("mu/embeddings/word"))
    np.testing.assert_array_equal(mu[list(kept)], source.slots.mu["embeddings/word"][list(kept.values())])
    assert not mu[5].any()


def test_sentencepiece_and_wordpiece_share_tokens_by_what_they_mean(real_text):
    lines = real_text.read_text().splitlines()
    wordpiece = tokenizers.train_wordpiece(lines, 700)
    sentence = tokenizers.train_sentencepiece(lines, 700, lower_case=True)
    shared = dict(zip(*(x.tolist() for x in start._shared_rows(model(tokenizer=wordpiece), sentence, [])), strict=True))
    assert len(shared) > 150
    for number, there in shared.items():
        (piece,), (its,) = sentence.pieces([number]), wordpiece.pieces([there])
        if not any(char.isalnum() for char in its):  # a word of its own in WordPiece, and a piece within one in SentencePiece
            assert its.removeprefix("##") == piece.removeprefix("▁")
        elif its not in SPECIALS:
            assert ("##" + piece if not piece.startswith("▁") else piece[1:]) == its
    assert shared[sentence.mask_id] == wordpiece.mask_id
    signs = {number: piece for number, piece in enumerate(sentence.vocabulary) if piece in set(",.:;?()") & set(wordpiece.vocabulary)}
    assert len(signs) > 4 and all(wordpiece.vocabulary[shared[number]] == piece for number, piece in signs.items())


def test_special_tokens_are_shared_whatever_their_names(real_text):
    from sentencepiece import sentencepiece_model_pb2 as protos

    lines = real_text.read_text().splitlines()
    sentence = tokenizers.train_sentencepiece(lines, 700, lower_case=True)
    proto = protos.ModelProto.FromString(sentence._model)
    for piece in proto.pieces:
        piece.piece = dict(tokenizers.SentencePiece.NAMES).get(piece.piece, piece.piece)
    renamed = tokenizers.SentencePiece(proto.SerializeToString())
    assert renamed.pieces([renamed.cls_id]) == ["<s>"] and renamed.sha256 != sentence.sha256
    notes = []
    assert start._shared_rows(model(tokenizer=renamed), sentence, notes) is None
    assert "the same pieces" in notes[0]


@pytest.mark.parametrize("length", [10, 24, 60])
def test_positions_are_repeated_or_cut(length):
    source = model(tokenizer=vocabulary(), slots=True, source="there")
    state, notes = begun(source, dataclasses.replace(CONFIG, max_length=length), with_slots=True)
    table, there = flat(state.params)["embeddings/position"], flat(source.params)["embeddings/position"]
    (mu,) = (x for path, x in moments(state).items() if path.endswith("mu/embeddings/position"))
    for position in range(length):
        np.testing.assert_array_equal(table[position], there[position % 24])
        memory = source.slots.mu["embeddings/position"][position] if position < 24 else 0.0  # a new position has none
        np.testing.assert_array_equal(mu[position], memory)
    assert (length == 24) == (len(notes) == 1)


def test_same_pieces_other_case_is_said_and_no_tokenizer_taken_at_its_word():
    source = model(tokenizer=vocabulary(lower_case=False), source="there")
    assert "the same pieces with other options" in " ".join(begun(source)[1])
    assert "its ids are taken for the data's" in " ".join(begun(model(source="there"))[1])
    with pytest.raises(UserError, match="60 embeddings and no tokenizer, and the data has 61"):
        begun(model(source="there"), dataclasses.replace(CONFIG, vocab_size=61), vocabulary(61))


@pytest.mark.parametrize(
    "change,flag",
    [
        (dict(hidden_size=32), "--config.model.hidden_size=32"),
        (dict(head_size=4), "--config.model.head_size=4"),
        (dict(num_layers=3), "--config.model.num_layers=3"),
        (dict(ffn_size=37), "--config.model.ffn_size=37"),
        (dict(generator_ffn_size=37), "--config.model.generator_ffn_size=37"),
        (dict(hidden_size=32, ffn_size=64, generator_hidden_fraction=0.25, generator_ffn_size=32), "--config.model.hidden_size=32"),
        (dict(embedding_size=12), "--config.model.embedding_size=12"),
        (dict(generator_hidden_fraction=1.0), "--config.model.generator_hidden_fraction=1.0"),
        (dict(generator_layers_fraction=0.5), "--config.model.generator_layers_fraction=0.5"),
        (dict(positions="rotary"), "--config.model.positions=rotary"),
        (dict(type_vocab_size=3), "--config.model.type_vocab_size=3"),
        (dict(layer_norm_eps=1e-5), "--config.model.layer_norm_eps=1e-05"),
    ],
)
def test_another_shape_is_refused_with_the_flags_that_mend_it(change, flag):
    there = dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match="another one") as caught:
        begun(model(there, vocabulary(), source="there"))
    flags = [word for word in str(caught.value).split() if word.startswith("--config.model.")]
    assert flag in flags
    mended = {word.split(".")[2].split("=")[0]: word.split("=")[1] for word in flags}
    fields = {field.name: type(getattr(CONFIG, field.name)) for field in dataclasses.fields(ElectraConfig)}
    config = dataclasses.replace(CONFIG, **{name: fields[name](value) for name, value in mended.items()})
    begun(model(there, vocabulary(), source="there"), config)


def test_another_number_of_heads_is_seen_in_one_network_too():
    """The shapes are the same, and the function is not."""
    source = model(dataclasses.replace(CONFIG, head_size=4), vocabulary(), source="there")
    for network in NETWORKS:
        with pytest.raises(UserError, match="--config.model.head_size=4"):
            begun(only(source, network, "there"))


def test_dropout_and_the_kind_of_learned_positions_may_differ():
    begun(model(dataclasses.replace(CONFIG, dropout=0.3, positions="sinusoidal_init"), vocabulary(), source="there"))
