"""A kind of tokenizer is one added file and one line in the dict: a toy of characters, trained by name, saved, loaded, used."""

import dataclasses
import itertools

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.config import DataConfig
from electra_jax.data.prepare import PrepareOptions, prepare
from electra_jax.data.rows import loader
from electra_jax.data.rows.opening import open_rows

TEXT = ["some words of text", "and some more"]


@pytest.fixture
def characters(monkeypatch):
    monkeypatch.setitem(tokenizers.KINDS, "characters", "tests.toys.characters")


def test_an_added_kind_is_trained_by_name_saved_and_loaded(characters, tmp_path):
    assert tokenizers.trained_names() == ("wordpiece", "unigram", "bpe", "characters")
    trained = tokenizers.train("characters", TEXT, 100)
    assert trained.pieces(trained.encode_batch(["so me"])[0]) == ["s", "##o", "m", "##e"]
    ids, spans = trained.encode_with_spans(["so me"])[0]
    assert len(ids) == 4 and spans.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5]]
    trained.save(tmp_path / "t")
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"alphabet.chars", tokenizers.CONFIG} <= set(tokenizers.file_names())
    (tmp_path / "t" / "vocab.txt").write_text("of another kind")  # the config says which kind the folder is
    (tmp_path / "other.chars").write_text(trained.alphabet)
    for path in (tmp_path / "t", tmp_path / "t" / "alphabet.chars", tmp_path / "other.chars"):
        assert tokenizers.load(path).sha256 == trained.sha256
    (tmp_path / "t" / tokenizers.CONFIG).unlink()
    (tmp_path / "t" / "vocab.txt").unlink()
    assert tokenizers.load(tmp_path / "t").kind == "characters"


def test_messages_name_the_added_kind(characters, tmp_path):
    with pytest.raises(UserError, match=r"no vocab.txt, tokenizer.json, SentencePiece .model or alphabet.chars in this folder"):
        tokenizers.load(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"charakters: .*; or one to train: wordpiece, unigram, bpe, characters$"):
        prepare(PrepareOptions((str(tmp_path / "a.txt"),), str(tmp_path / "o"), tokenizer="charakters"))


def test_a_kind_that_this_version_does_not_have_is_one_line(tmp_path):
    tokenizers.train_wordpiece(TEXT * 3, 60).save(tmp_path)
    config = tmp_path / tokenizers.CONFIG
    config.write_text(config.read_text().replace('"kind": "wordpiece"', '"kind": "characters"'))
    with pytest.raises(UserError, match=r"is of kind 'characters', and this version .* has wordpiece, sentencepiece: use the version that"):
        tokenizers.load(tmp_path)


def test_from_text_to_batches_of_the_added_kind(characters, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"this is document {n}, of some words" for n in range(200)))
    options = PrepareOptions(
        (str(tmp_path / "a.txt"),), str(tmp_path / "rows"), tokenizer="characters", vocab_size=100, length=32, packing="dense", heldout=0.1
    )
    manifest = prepare(options, workers=1, progress=False)
    assert manifest["tokenizer"]["kind"] == "characters"
    again = dataclasses.replace(options, output=str(tmp_path / "again"), tokenizer=str(tmp_path / "rows" / "tokenizer"), vocab_size=None)
    shards = [[shard["crc32"] for shard in m["splits"]["train"]["shards"]] for m in (manifest, prepare(again, workers=1, progress=False))]
    assert shards[0] == shards[1]
    data = open_rows(
        DataConfig(path=str(tmp_path / "rows"), length=32),
        length=32,
        vocab_size=manifest["tokenizer"]["vocab_size"],
        max_length=32,
        eval_batch_rows=4,
        eval_max_rows=0,
        num_devices=1,
        seed=0,
        scratch=tmp_path,
    )
    feed = loader.batches(data.stream, start_step=0, global_batch=4)
    [batch] = itertools.islice(feed, 1)
    feed.close()
    assert data.tokenizer.kind == "characters" and np.array_equal(data.vocabulary.word_starts, data.tokenizer.word_starts)
    assert "document" in data.tokenizer.decode(batch.tokens.ravel())
