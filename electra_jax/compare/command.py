"""What launch/compare.py does."""

import math
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from electra_jax import options
from electra_jax.cli import UserError
from electra_jax.compare import figure, runs, table
from electra_jax.compare.entries import Entry
from electra_jax.files import write_whole
from electra_jax.finetune import transfer
from electra_jax.infer import pairs

TABLE, FIGURE = "table.md", "figure.svg"


def budgets(words: Sequence[str]) -> list[float]:
    """FLOPs, ascending. UserError unless each is a number above 0."""
    try:
        found = sorted({float(word) for word in words})
    except ValueError:
        found = []
    if not found or not all(0 < value < math.inf for value in found):
        raise UserError(f"--flops={','.join(words)}: write numbers of floating-point operations, such as 1e14, or 5e13,2e14")
    return found


def tasks(
    names: Sequence[str], known: Mapping[str, Any], data: str | None, rates: Sequence[str], recipe_of: transfer.RecipeOf
) -> runs.Tasks:
    """UserError for a task that is not known, and where there is no folder of data."""
    for name in names:
        options.one_of("--tasks", name, known)
    if names and not data:
        raise UserError("--tasks needs --data, the folder with the tasks' folders")
    return runs.Tasks(names, transfer.rates_of(rates), recipe_of)


def compare(
    entries: Sequence[Entry],
    recipe_of: runs.RecipeOf,
    workdir: str,
    budgets_flops: Sequence[float],
    num_seeds: int,
    pairs_path: str | None,
    chosen: runs.Tasks,
) -> str:
    """Makes all runs, and writes table and figure anew after each part of one; returns the table. See electra_jax.compare."""
    folder = pathlib.Path(workdir)
    minimal_pairs = pairs.read(pairs_path) if pairs_path else []
    with tempfile.TemporaryDirectory() as scratch:
        plans = runs.plan(entries, recipe_of, budgets_flops=budgets_flops, num_seeds=num_seeds, scratch=pathlib.Path(scratch), tasks=chosen)
    for rows in runs.make(plans, folder, minimal_pairs=minimal_pairs, tasks=chosen):
        if rows:
            write_whole(folder / TABLE, table.table(rows))
            write_whole(folder / FIGURE, figure.draw(rows))
    print(f"{folder / TABLE} has this table, and {folder / FIGURE} the curves", file=sys.stderr)
    return table.table(rows)
