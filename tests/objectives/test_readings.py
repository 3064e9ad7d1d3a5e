"""How a person reads an objective: marked sentences, the line of an evaluation, and the rows that are shown."""

import re

import numpy as np
import pytest

from electra_jax.objectives import marking, readings
from electra_jax.types import Batch
from electra_jax.views import Examples
from electra_jax.watch import report

EXAMPLE = {
    "tokens": ["[CLS]", "the", "dog", "sat", "on", "play", "##ed", "mat", ".", "[SEP]", "[PAD]"],
    "originals": ["[CLS]", "the", "cat", "sat", "on", "play", "##ing", "mat", ".", "[SEP]", "[PAD]"],
    "replaced": [False, False, True, False, False, False, True, False, False, False, False],
    "scores": [0.99, 0.01, 0.934, 0.2, 0.02, 0.05, 0.31, 0.714, 0.0, 0.99, 0.99],
}


def lines(*examples, colour=False) -> list[str]:
    return report.plain_lines(Examples("", "", [list(marking.marked(**example)) for example in examples]), colour)


def test_marked_sentences_in_a_terminal():
    plain = "the [cat -> dog 0.93] sat on play[ing -> ed 0.31] [mat? 0.71] ."
    assert lines(EXAMPLE, EXAMPLE) == [plain, plain]
    (coloured,) = lines(EXAMPLE, colour=True)
    marks = {"32": "[cat -> dog 0.93]", "33": "[ing -> ed 0.31]", "31": "[mat? 0.71]"}
    assert dict(re.findall(r"\x1b\[(\d+)m(.*?)\x1b\[0m", coloured)) == marks
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


def test_sentencepiece_words_are_joined_again():
    example = {
        "tokens": ["[CLS]", "▁a", "▁cat", "s", "▁##", "!", "[SEP]"],
        "originals": ["[CLS]", "▁a", "▁dog", "s", "▁##", "!", "[SEP]"],
        "replaced": [False, False, True, False, False, False, False],
        "scores": [0.0] * 7,
    }
    assert lines(example) == ["a [dog -> cat 0.00]s ##!"]


def test_a_sampled_special_token_is_shown_and_control_characters_are_not():
    example = {"tokens": ["[PAD]", "a\x1b[2J"], "originals": ["end", "a\x1b[2J"], "replaced": [True, False], "scores": [0.9, 0.1]}
    assert lines(example) == ["[end -> [PAD] 0.90] a?[2J"]


def test_columns_of_different_lengths_are_an_error():
    with pytest.raises(ValueError):
        lines(EXAMPLE | {"scores": [0.1]})


def test_examples_are_the_first_rows_as_the_discriminator_saw_them():
    tokens = np.array([[2, 7, 8, 3], [2, 9, 3, 0]])
    batch = Batch(tokens, (tokens > 0).astype(np.int32), *(np.zeros_like(tokens) for _ in range(2)), np.arange(2))
    outputs = {
        "tokens": np.array([[2, 7, 6, 3], [2, 9, 3, 0]]),
        "replaced": np.array([[0, 0, 1, 0], [0, 0, 0, 0]], bool),
        "logits": np.array([[0.0, -2.0, 2.0, 0.0], [0.0, 0.1, 0.0, 9.0]], np.float32),
    }
    names = {2: "[CLS]", 3: "[SEP]"}
    found = marking.suspicion(batch, outputs, lambda ids: [names.get(i, f"w{i}") for i in ids])
    assert report.plain_lines(found) == ["w7 [w8 -> w6 0.88]", "[w9? 0.52]"]
    first, second = found.sentences[0]
    assert (first.over, second.over, second.tip) == ("", "w8", "replaced with probability 0.88; it was: w8")
    assert second.shade == pytest.approx(1 / (1 + np.exp(-2.0)))


@pytest.mark.parametrize("parts", [(readings.GENERATOR, readings.RTD), (readings.DRAWN, readings.RTD), (readings.MASKED_LM,)])
def test_every_metric_of_an_evaluation_is_shown_or_named(parts):
    view = readings.view(parts, marking.suspicion)
    metrics = {name: 0.25 for name in view.shown}
    assert view.headline(metrics) and view.verdict(metrics).startswith("On held-out text: The ")
    curves = {curve.metric for panel in view.panels for curve in panel.curves if curve.metric.startswith("eval/")}
    assert curves <= set(view.shown)


def test_the_line_of_an_evaluation():
    view = readings.view((readings.GENERATOR, readings.RTD), marking.suspicion)
    line = "held-out MLM loss 0.250 (word frequencies alone: 0.250), RTD AUC 0.250 (chance: 0.500)"
    assert view.headline({name: 0.25 for name in view.shown}) == line
