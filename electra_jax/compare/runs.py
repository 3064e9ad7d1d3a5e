"""The runs of a comparison, one after the other; each leaves a row."""

import contextlib
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax import files
from electra_jax.cli import UserError
from electra_jax.compare.entries import Entry
from electra_jax.infer import pairs, scores
from electra_jax.pretrain import open_work, pretrain
from electra_jax.recipe import Recipe
from electra_jax.resume import MAY_CHANGE
from electra_jax.store import names
from electra_jax.views import View
from electra_jax.watch.telemetry import format_secs, parse_line

ROWS = "rows.jsonl"
CURVE_POINTS = 20  # evaluations of a run, unless eval.every_steps is given
Row = Mapping[str, Any]
RecipeOf = Callable[[Entry, Mapping[str, Any]], Recipe]  # (entry, {"section.field": value}) -> its recipe with these values
FIELDS = {"entry", "budget_flops", "seed", "settings", "steps", "flops_per_step"}  # that every row has, and
FIELDS |= {"heldout", "curve", "compared", "warnings", "scores", "tasks"}


class Plan(NamedTuple):
    """A run that is to be made."""

    entry: Entry
    budget_flops: float
    seed: int
    recipe: Recipe
    settings: Mapping[str, Any]  # by which a row is known to be of this run
    flops_per_step: float
    view: View

    @property
    def key(self) -> tuple[str, float, int]:
        return self.entry.name, self.budget_flops, self.seed

    @property
    def title(self) -> str:
        return f"{self.entry.name}, {self.budget_flops:g} FLOPs, seed {self.seed}"

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.entry.folder) / f"flops-{self.budget_flops:g}" / f"seed-{self.seed}"


def plan(
    entries: Sequence[Entry],
    recipe_of: RecipeOf,
    *,
    budgets_flops: Sequence[float],
    num_seeds: int,
    scratch: pathlib.Path,
) -> list[Plan]:
    """Every run, in the order in which they are made: all entries with the first seed, then with the next. Nothing is trained yet, and
    everything is checked.

    UserError for an entry that cannot be trained, and for a budget that is less than a step of one.
    """
    opened = {entry.name: open_work(recipe_of(entry, {"train.steps": 10**6}), scratch) for entry in entries}
    found = []
    for budget in budgets_flops:
        for number in range(num_seeds):
            for entry in entries:
                work = opened[entry.name]
                flops = work.parts.objective.flops(work.parts.batch_rows, work.first_batch.tokens.shape[1])
                steps = round(budget / flops)
                if steps < 1:
                    raise UserError(f"{budget:g} FLOPs are less than a step of {entry.name}, which takes {flops:.3g}: raise --flops")
                every = max(1, round(steps / CURVE_POINTS))
                own = {"train.steps": steps, "seed": work.recipe.seed + number}
                defaults = {"eval.every_steps": every, "checkpoint.every_steps": every}
                recipe = recipe_of(entry, own | {name: value for name, value in defaults.items() if name not in work.recipe.given})
                given = sorted((work.recipe.given | entry.fields.keys()) - {"train.steps", "seed"})
                given = [name for name in given if not re.search(MAY_CHANGE, name)]
                settings = {"objective": recipe.objective.name, **{name: recipe.value(name) for name in given}, **work.identity}
                found.append(Plan(entry, budget, recipe.seed, recipe, settings, flops, work.parts.objective.view))
    return found


def make(
    plans: Sequence[Plan],
    workdir: pathlib.Path,
    *,
    minimal_pairs: Sequence[pairs.Pair] = (),
    tasks: Sequence[str] = (),
    fine_tune: Callable[[str, str, str], Mapping[str, Any]] | None = None,
) -> Iterator[Row]:
    """Yields the row of each run, from the file where it is complete.

    minimal_pairs: that each run is scored on. fine_tune(name of the run, its workdir, task) -> what finetune.transfer finds. UserError
    where the file has a row of the same run with other settings.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    known = {(row["entry"], row["budget_flops"], row["seed"]): row for row in files.read_rows(workdir / ROWS, FIELDS)}
    for each in plans:
        _refuse_other(known.get(each.key), each, workdir / ROWS)
    left = [(each, part) for each in plans for part in _parts(known.get(each.key), bool(minimal_pairs), tasks)]
    meter = _Meter(left)
    for each in plans:
        row = known.get(each.key)
        parts = _parts(row, bool(minimal_pairs), tasks)
        row = dict(row or {})
        for part in parts:
            with meter.of(each, part):
                if part == PRETRAINING:
                    row |= _pretrained(each, workdir / each.folder)
                elif part == SCORES:
                    row["scores"] = _scored(workdir / each.folder, minimal_pairs)
                else:
                    row["tasks"] = {**row["tasks"], part: fine_tune(each.title, str(workdir / each.folder), part)}
        if parts:
            files.add_row(workdir / ROWS, row)
        yield row


PRETRAINING, SCORES = "pretraining", "minimal pairs"


def _parts(row: Row | None, has_pairs: bool, tasks: Sequence[str]) -> list[str]:
    """What of a run is still to be done."""
    wanted = [] if row else [PRETRAINING]
    wanted += [SCORES] if has_pairs and not (row and row["scores"]) else []
    return wanted + [task for task in tasks if not (row and task in row["tasks"])]


def _refuse_other(row: Row | None, each: Plan, where: pathlib.Path) -> None:
    if row is None:
        return
    was, now = row["settings"], each.settings
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{where} has a run of {each.title} with {name}={was.get(name)}, and this is {now.get(name)}: "
                "give the entry another name, or choose another --workdir"
            )


def _pretrained(each: Plan, folder: pathlib.Path) -> dict[str, Any]:
    result, view = pretrain(each.recipe, folder), each.view
    lines = [line for line in map(parse_line, (folder / names.METRICS).read_bytes().splitlines()) if line and "eval/loss" in line]
    of_step = {line["step"]: line for line in lines}
    return {
        "entry": each.entry.name,
        "budget_flops": each.budget_flops,
        "seed": each.seed,
        "settings": each.settings,
        "steps": result.steps,
        "flops_per_step": each.flops_per_step,
        "heldout": dict(result.metrics),
        "curve": {"step": sorted(of_step)} | {name: [of_step[step].get(name) for step in sorted(of_step)] for name in view.compared},
        "compared": list(view.compared),
        "warnings": [name for name, _ in view.warnings(result.metrics, result.steps, each.recipe.run)],
        "scores": {},
        "tasks": {},
    }


def _scored(folder: pathlib.Path, minimal_pairs: Sequence[pairs.Pair]) -> dict[str, Mapping[str, float]]:
    """{kind of score: {field: accuracy}} by each score that the model has a head for."""
    found = {}
    for kind in scores.kinds_of(folder):
        scorer = scores.load_scorer(folder, kind)
        totals = [each.total for each in scorer.score(text for pair in minimal_pairs for text in (pair.good, pair.bad))]
        found[kind] = pairs.summary(pairs.accuracies(minimal_pairs, totals[0::2], totals[1::2]))
    return found


class _Meter:
    """One line before each part, with the time that all that is left will take: each kind of part as long as it took so far."""

    def __init__(self, left: Sequence[tuple[Plan, str]]):
        self._left, self._count = [_kind(*each) for each in left], len(left)
        self._secs: dict[tuple, list[float]] = {}
        self._begin = time.monotonic()

    @contextlib.contextmanager
    def of(self, each: Plan, part: str) -> Iterator[None]:
        known = [secs for of_kind in self._secs.values() for secs in of_kind]
        expected = sum(np.mean(self._secs.get(kind, known)) for kind in self._left) if known else None
        eta = "" if expected is None else f", about {format_secs(expected)} left"
        begin = time.monotonic()
        done = f"{self._count - len(self._left)} of {self._count} parts done in {format_secs(begin - self._begin)}{eta}"
        print(f"compare: {done}; now {each.title}: {part}", file=sys.stderr, flush=True)
        yield
        kind = _kind(each, part)
        self._left.remove(kind)
        self._secs.setdefault(kind, []).append(time.monotonic() - begin)


def _kind(each: Plan, part: str) -> tuple:
    """Parts of a kind take equally long."""
    return (part, each.budget_flops) if part == PRETRAINING else (part,)
