"""Our sides and their figures, with a tiny model and few rounds."""

import dataclasses
import importlib.util
import math
import pathlib
import re

import numpy as np
import pytest

from benchmarks import growth, ours, parts, rows, step, suite
from benchmarks.processes import Turns
from electra_jax.models import costs
from electra_jax.models.config import PRESETS
from electra_jax.recipe import Recipe
from tests.benchmarks.sides import ENVIRONMENT

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tiny(**model) -> Recipe:
    """Compiles in a few seconds: one layer, and AdamW instead of Muon."""
    recipe = step.recipe(suite.load_config(ROOT), "tiny", 8, 64)
    optimizer = dataclasses.replace(recipe.optimizer, name="adamw")
    fields = {"vocab_size": 2000, "num_layers": 1, **model}
    return dataclasses.replace(recipe, optimizer=optimizer, model=dataclasses.replace(recipe.model, **fields))


def test_exponents():
    xs = [128, 256, 512, 1024]
    assert growth.exponent(xs, [3.0 * x**1.5 for x in xs]) == pytest.approx(1.5)
    samples = {str(x): [{"wall": 2.0 * x, "program_mib": 100.0 + x, "peak_mib": 7.0}] * 3 for x in xs}
    line = growth._exponents("rows", [(x,) for x in xs], Turns(samples, {}), 2**30 + 0.0)
    assert "1.00 (1.00 to 1.00)" in line[4] and line[6] in ("0.00", "-0.00")
    assert line[2] == "924 rows would fill the device's 1 GiB"  # 1024 MiB less 100, a MiB a row


def test_rows():
    full, padded, packed = (rows.make(kind, 30522, 8, 512) for kind in rows.KINDS)
    assert rows.useful_tokens(full) == 8 * 512 and (full.tokens[:, -1] == rows.SEP).all()
    lengths = (padded.segments > 0).sum(1)
    assert (padded.segments.max(1) == 1).all() and abs(lengths.mean() - 275) < 15  # the mean of IMDB's reviews cut at 512
    assert packed.segments.max() > 1 and rows.useful_tokens(packed) > 0.95 * 8 * 512
    assert (packed.positions[packed.tokens == rows.CLS] == 0).all()


def test_parts_of_an_instruction():
    name = 'fusion(x), metadata={{op_name="jit(train_step)/{}"}}'.format
    assert parts.part_of(name("transpose(jvp(generator))/Block/dot_general")) == "generator"
    assert parts.part_of(name("jvp(generator)/vocabulary/dot_general")) == "vocabulary"
    assert parts.part_of(name("sample/cumsum")) == "vocabulary"
    assert parts.part_of(name("transpose(jvp(discriminator))/dot_general")) == "discriminator"
    assert parts.part_of(name("add")) == parts.part_of("copy(x)") == "optimizer"


def test_every_product_of_the_step_belongs_to_its_part():
    """By the sizes: what has the vocabulary's is the vocabulary's, forward and backward, and nothing else is."""
    text = ours.build(tiny(vocab_size=1999)).compile().compiled.as_text()
    products = [line for line in text.splitlines() if re.search(r'op_name="[^"]*dot_general"', line)]
    large = {parts.part_of(line) for line in products if re.search(r"\[(?:\d+,)*1999(?:,\d+)*\]", line.split("=", 1)[1])}
    assert large == {"vocabulary"}
    assert {parts.part_of(line) for line in products} >= {"generator", "vocabulary", "discriminator"}


@pytest.mark.parametrize("name", ["generator", "mlm", "discriminator", "optimizer"])
def test_each_part_runs_by_itself(name):
    assert parts.part(tiny().stored(), name, steps=2)() == {"steps": 2}


def test_floors_are_the_flops_of_a_step():
    floors = parts.floors(step.recipe(suite.load_config(ROOT), "small", 32, 128))
    flops = sum(floors[name] for name in ("generator", "vocabulary", "discriminator"))
    assert math.isclose(flops, 32 * costs.train_flops(PRESETS["small"], 128, 19), rel_tol=1e-9)


def test_the_figure_is_the_same_for_the_same_numbers(tmp_path):
    bars = {"measured here": {"generator": (0.2, 0.1), "feed": (0.001, 0.0001)}}
    for name in ("a.svg", "b.svg"):
        parts.draw(bars, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_peers_that_are_missing_have_a_row_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    case = step.Case("step tiny", "tiny", 8, 64, tuple(step.PEERS))
    table = step.table(case, tiny(), ENVIRONMENT, 2, str(tmp_path))
    assert [line[0] for line in table.rows] == ["electra_jax", *step.PEERS]
    assert all("not installed: pip install" in line[1] for line in table.rows[1:])
    assert float(table.rows[0][1]) > 0 and "%" in table.rows[0][-1]
    assert ["txtai TokenDetection", "not installed: pip install torch transformers txtai"] in table.rows
    (run,) = table.figures["runs"]
    ours = run["electra_jax"]
    assert len(ours) == 2 and ours[0]["flops"] > 0 and all(np.isfinite(sample["loss"]) for sample in ours)
