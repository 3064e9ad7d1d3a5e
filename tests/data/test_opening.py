"""Prepared folders opened for a run: what the run is given, and each way in which they do not fit its config."""

import dataclasses
import shutil

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.config import DataConfig
from electra_jax.data.rows import order, records
from electra_jax.data.rows.counts import unigram_entropy
from electra_jax.data.rows.opening import open_rows
from electra_jax.options import parse

MODEL = dict(length=None, vocab_size=600, max_length=32, eval_batch_rows=6, eval_max_rows=100, num_devices=4, seed=3)


@pytest.fixture
def config(rows):
    return DataConfig(path=str(rows), length=32)


def test_what_a_run_is_given(config, rows, tmp_path):
    data = open_rows(config, **MODEL, scratch=tmp_path)
    np.testing.assert_array_equal(data.stream.rows(np.arange(50)), order.Stream([str(rows)], None, 3).rows(np.arange(50)))
    tokenizer, manifest = tokenizers.load(rows / "tokenizer"), records.load_manifest(rows)
    assert data.identity == {"data": [manifest["sha256"]], "tokenizer": tokenizer.sha256}
    assert data.summaries == [records.summary(manifest)]
    assert data.vocabulary[:3] == (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert [len(valid) for _, valid in data.heldout] == [8] * 13  # 6 rows, rounded up for 4 devices
    assert sum(valid.sum() for _, valid in data.heldout) == 100
    counts, held = np.array(records.load_token_counts(rows)), np.zeros(600, np.int64)
    for batch, valid in data.heldout:
        held += np.bincount(batch.tokens[valid].ravel(), minlength=600)
    counts[[0, 2, 3, 4]] = held[[0, 2, 3, 4]] = 0
    assert data.unigram_entropy == unigram_entropy(counts, held)
    whole = open_rows(config, **MODEL | {"eval_max_rows": 0}, scratch=tmp_path)
    assert sum(valid.sum() for _, valid in whole.heldout) == manifest["splits"]["heldout"]["rows"]


def test_several_folders_are_mixed(config, rows, tmp_path):
    config = dataclasses.replace(config, path=f"{rows},{rows}", weights=(0.7, 0.3))
    data = open_rows(config, **MODEL, scratch=tmp_path)
    assert len(data.identity["data"]) == len(data.summaries) == 2
    np.testing.assert_array_equal(data.stream.rows(np.arange(9)), order.Stream([str(rows)] * 2, (0.7, 0.3), 3).rows(np.arange(9)))


def test_what_does_not_fit_the_config_is_one_line(config, rows, tmp_path):
    def refused(message, config=config, **model):
        with pytest.raises(UserError) as error:
            open_rows(config, **{**MODEL, **model}, scratch=tmp_path)
        assert str(error.value) == message

    refused("no data: --config.data.path=FOLDER, a folder that launch/prepare.py wrote (several: A,B)", DataConfig(path=","))
    refused(
        f"the rows in {rows} are 32 tokens long and the config says 128: leave --config.data.length out, or prepare the data again "
        "with --length=128",
        length=128,
    )
    refused(
        f"the rows in {rows} were made with a vocabulary of 600 and the config says 700: leave --config.model.vocab_size out, or "
        "prepare the data again with the other tokenizer",
        vocab_size=700,
    )
    refused("rows of 32 tokens need as many positions and model.max_length is 16: --config.model.max_length=32", max_length=16)
    open_rows(config, **{**MODEL, "max_length": None}, scratch=tmp_path)
    shutil.copytree(rows, tmp_path / "copy")
    tokenizers.train_wordpiece(["other words"] * 9, 60).save(tmp_path / "copy" / "tokenizer")
    refused(
        f"{tmp_path / 'copy'}/tokenizer is not the tokenizer that made the rows there: prepare the data again",
        dataclasses.replace(config, path=str(tmp_path / "copy")),
    )


def test_the_config_checks_its_own_values():
    message = r"data.weights is \('a', 0.3\): it must be one number for each folder, such as \(0.7, 0.3\)"
    with pytest.raises(UserError, match=message):
        DataConfig(weights=("a", 0.3))
    config = parse(DataConfig, {"path": "a,b", "weights": [0.7, 0.3]}, "data")
    assert (config.folders, config.weights, config.length) == (["a", "b"], (0.7, 0.3), 128)
    with pytest.raises(UserError, match="--config.data.lenght: no such field; did you mean 'length'"):
        parse(DataConfig, {"lenght": 1}, "data")


def test_the_naive_guess_knows_the_weights_of_a_mixture(config, rows, tmp_path, monkeypatch):
    """What a generator sees most often it can guess most often: the frequencies are those of what is trained on."""
    counts = np.array(records.load_token_counts(rows))
    flat = np.full_like(counts, counts.sum() // len(counts))
    shutil.copytree(rows, tmp_path / "other")
    monkeypatch.setattr(records, "load_token_counts", lambda folder: flat.copy() if folder.endswith("other") else counts.copy())
    first, even, second = (
        open_rows(dataclasses.replace(config, path=f"{rows},{tmp_path}/other", weights=weights), **MODEL, scratch=tmp_path).unigram_entropy
        for weights in ((0.99, 0.01), (0.5, 0.5), (0.01, 0.99))
    )
    assert first < even < second and second == pytest.approx(np.log(600 - 4), rel=0.05)


def test_a_mixture_of_other_held_out_shares_is_refused(config, rows, tmp_path):
    """A document is held out by a hash and the share: with two shares it could be held out in one folder and trained on in the other."""
    shutil.copytree(rows, tmp_path / "other")
    manifest = records.load_manifest(rows)
    manifest["options"] = {**manifest["options"], "heldout": 0.5}
    records.save_manifest(tmp_path / "other", manifest)
    with pytest.raises(UserError, match="0.1 of the documents in .* and 0.5 in .*/other are held out: .*--heldout"):
        open_rows(dataclasses.replace(config, path=f"{rows},{tmp_path}/other"), **MODEL, scratch=tmp_path)


def test_a_mixture_of_two_split_rules_is_refused(config, rows, tmp_path):
    shutil.copytree(rows, tmp_path / "older")
    manifest = records.load_manifest(rows)
    manifest["options"] = {name: value for name, value in manifest["options"].items() if name != "split_rule"}
    records.save_manifest(tmp_path / "older", manifest)
    with pytest.raises(UserError, match="hold out documents by two versions' rules: prepare the older one again"):
        open_rows(dataclasses.replace(config, path=f"{rows},{tmp_path}/older"), **MODEL, scratch=tmp_path)
