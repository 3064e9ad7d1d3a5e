"""Scores of sentences that have BLiMP's lengths: by the discriminator in one pass, by the generator token by token, and as transformers'
users write the latter."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import rows, step
from benchmarks.processes import Side, Turns, measure
from benchmarks.tables import Table, number, times
from electra_jax.data import tokenizers
from electra_jax.interop import formats
from electra_jax.interop.model import Model
from electra_jax.recipe import Recipe

Run = Callable[[], dict[str, float]]
RTD, PLL, THEIRS = "electra_jax, rtd", "electra_jax, pll", "transformers, pll, every token in a row of its own"
MORE = 2  # times as many sentences for rtd, whose turn would be too short to time


def write(folder: str, stored: Mapping[str, Any], vocabulary: str, text: str, num_rows: int) -> Run:
    """The sentences, and one model with random weights in the format of each side. Both networks have the discriminator's size, so that
    each score is of equally large a model."""
    import jax
    import numpy as np

    from electra_jax.models import electra

    into, tokenizer = pathlib.Path(folder), tokenizers.load(vocabulary)
    words = pathlib.Path(text).read_text(encoding="utf-8", errors="replace")
    made = rows.sentences(words, tokenizer, rows.sentence_lengths(num_rows, rows.SCORED_SENTENCES))
    into.mkdir(parents=True)
    (into / "sentences.txt").write_text("\n".join(made) + "\n", encoding="utf-8")
    whole = dict(generator_hidden_fraction=1.0, generator_layers_fraction=1.0)
    config = dataclasses.replace(Recipe.parse(stored).model, dtype="float32", attention="auto", scan_layers=False, **whole)
    params = jax.tree.map(np.asarray, electra.init_params(jax.random.key(0), config))
    model = Model(config, params, tokenizer, about={"name": "random weights"})
    formats.write(str(into / "ours"), model, "electra_jax")
    formats.write(into / "theirs", model, "huggingface")
    return lambda: {}


def scoring(model: str, sentences: str, kind: str, num_rows: int) -> Run:
    """A turn scores the first sentences of a file."""
    from electra_jax.infer import scores
    from electra_jax.parallel import process

    process.take_cores_as_devices()
    texts = pathlib.Path(sentences).read_text(encoding="utf-8").splitlines()[:num_rows]
    scorer = scores.load_scorer(model, kind)

    def run() -> dict[str, float]:
        found = [each.total for each in scorer.score(texts)]
        return {"rows": len(found), "total": sum(found)}

    return run


def table(
    preset: str, recipe: Recipe, folder: pathlib.Path, vocabulary: pathlib.Path, text: pathlib.Path, num_rows: int, rounds: int, environment
) -> Table:
    arguments = {"folder": str(folder), "stored": recipe.stored(), "vocabulary": str(vocabulary), "text": str(text)}
    measure([Side("files", "benchmarks.scoring:write", {**arguments, "num_rows": MORE * num_rows})], 1)
    given = {"sentences": str(folder / "sentences.txt"), "num_rows": num_rows}
    ours = {"model": str(folder / "ours"), **given}
    turns = measure(
        [
            Side(PLL, "benchmarks.scoring:scoring", {**ours, "kind": "pll"}),
            Side(RTD, "benchmarks.scoring:scoring", {**ours, "kind": "rtd", "num_rows": MORE * num_rows}),
            Side(THEIRS, "benchmarks.peers:pll", {"model": str(folder / "theirs" / "generator"), **given}, needs=("torch", "transformers")),
        ],
        rounds,
        optional=[THEIRS],
    )
    _, dtype = step.peak_side(environment["platform"])
    return Table(
        "score",
        f"`{preset}`, a generator as large as the discriminator, {num_rows} sentences of BLiMP's lengths ({MORE * num_rows:,} for rtd), "
        f"{dtype}; {rounds} rounds.",
        ("side", "sentences/s", "peak MiB", "our rtd in x of it", "our pll in x of it"),
        [_line(name, turns) for name in turns.samples] + [[name, reason] for name, reason in turns.failed.items()],
        {"turns": turns.samples},
    )


def _line(side: str, turns: Turns) -> list[str]:
    ratios = ["1" if side == ours else times(turns.rates(ours, side, "rows")) for ours in (RTD, PLL)]
    return [side, number(turns.rate(side, "rows").median), number(turns.peak(side)), *ratios]
