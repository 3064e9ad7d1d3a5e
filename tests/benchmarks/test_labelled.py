"""The tables of fine-tuning and prediction, with a tiny model, few rows and few rounds."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest

from benchmarks import finetuning, labelled, predicting, rows, step, suite
from electra_jax.data import tokenizers
from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.interop import formats
from electra_jax.models.config import PRESETS
from electra_jax.recipe import Recipe
from tests.benchmarks.sides import ENVIRONMENT

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_ROWS, STEPS = 64, 2


def tiny() -> Recipe:
    """Learned positions, as transformers' ELECTRA has, and one layer."""
    recipe = step.recipe(suite.load_config(ROOT), "tiny", 8, 64)
    fields = {"num_layers": 1, "vocab_size": 40, "positions": "learned", "max_length": 128}
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **fields))


@pytest.fixture(scope="module")
def published() -> FinetuneRecipe:
    return FinetuneRecipe.parse(suite.load_config(ROOT, "finetune.py")("sst2"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    words = [f"w{number}" for number in range(40 - len(SPECIALS) - 1)]
    WordPiece([*SPECIALS, "##x", *words]).save(folder / "vocabulary")
    (folder / "text.txt").write_text(" ".join(f"{word} {word}x {word}xx" for word in words))
    return labelled.make(folder / "made", tiny(), folder / "vocabulary", folder / "text.txt", NUM_ROWS)


def test_sentences_have_the_lengths_of_sst2():
    lengths = rows.sentence_lengths(10_000)
    assert abs(lengths.mean() - 13.319) < 0.01 and lengths.min() == 3 and lengths.max() >= 55
    assert sum(rows.SENTENCES) == 67_349 and rows.SHORTEST_SENTENCE + len(rows.SENTENCES) - 1 == 66
    assert (rows.sentence_lengths(10_000) == lengths).all() and (np.sort(lengths) != lengths).any()


def test_the_task_and_the_model_are_the_same_for_both_sides(given):
    examples, tokenizer = labelled.examples(given.task), tokenizers.load(pathlib.Path(given.ours) / "tokenizer")
    counted = [len(pieces) + 2 for pieces in tokenizer.encode_batch([text for text, _ in examples])]
    assert counted == rows.sentence_lengths(NUM_ROWS).tolist()
    assert [label for _, label in examples] == [number % 2 for number in range(NUM_ROWS)]
    ours, theirs = (formats.read(path) for path in (given.ours, given.theirs))
    assert ours.task == theirs.task == labelled.HEAD and theirs.about["architecture"] == "ElectraForSequenceClassification"
    assert (ours.params["embeddings"]["word"] == theirs.params["embeddings"]["word"]).all()


def test_what_is_padding_is_no_work():
    config = PRESETS["small"]
    assert labelled.real_flops(config, [8, 8], 3.0) == 6 * labelled.real_flops(config, [8], 1.0)
    assert labelled.real_flops(config, [4, 12], 1.0) < labelled.real_flops(config, [12, 12], 1.0)


def test_a_turn_takes_each_row_of_an_epoch_once(published, given):
    stored = labelled.recipe(published, given, seeds=2).stored()
    turn = finetuning.tuning(stored, (), STEPS)()
    assert turn["rows"] == 2 * NUM_ROWS and turn["steps"] == STEPS and np.isfinite(turn["loss"])
    lengths = rows.sentence_lengths(NUM_ROWS)
    assert turn["flops"] == pytest.approx(2 * labelled.real_flops(tiny().model, lengths, 3.0))


@pytest.mark.slow  # make kill: each side compiles in a process of its own
def test_the_tables_without_the_peers(monkeypatch, published, given):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    table = finetuning.table(published, "tiny", given, NUM_ROWS, STEPS, 1, ENVIRONMENT)
    assert [line[0] for line in table.rows] == [finetuning.OURS, finetuning.SEEDS, finetuning.THEIRS]
    assert all(len(line) == len(table.columns) and float(line[2]) > 0 and "%" in line[-1] for line in table.rows[:-1])
    assert table.rows[-1][1] == "not installed: pip install torch transformers"
    assert "% (" in table.caption and table.caption.endswith(" of a step.")
    assert table.figures["turns"][finetuning.SEEDS][0]["rows"] == finetuning.NUM_SEEDS * NUM_ROWS
    table = predicting.table("tiny", given, NUM_ROWS, 1, ENVIRONMENT)
    assert [line[0] for line in table.rows] == [predicting.OURS, predicting.THEIRS, predicting.SORTED]
    assert len(table.rows[0]) == len(table.columns) and float(table.rows[0][-2]) > 0
    assert "not installed" in table.rows[-1][1]
