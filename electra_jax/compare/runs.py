"""The runs of a comparison, one after the other, and what is known of each."""

import contextlib
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from electra_jax import files
from electra_jax.cli import Diverged, UserError
from electra_jax.compare.entries import HELD_OUT_MASK_RATE, OF_BUDGET, Entry
from electra_jax.finetune import described, opening, training, transfer
from electra_jax.finetune.tasks import learned_from
from electra_jax.infer import pairs, scores
from electra_jax.models.config import ElectraConfig
from electra_jax.pretrain import open_work, pretrain
from electra_jax.recipe import Recipe
from electra_jax.resume import MAY_CHANGE, flat
from electra_jax.store import names
from electra_jax.views import View
from electra_jax.watch.telemetry import format_secs, parse_line

ROWS = "rows.jsonl"
CURVE_POINTS = 20  # evaluations of a run, unless eval.every_steps is given
Row = Mapping[str, Any]
RecipeOf = Callable[[Entry, Mapping[str, Any]], Recipe]  # (entry, {"section.field": value}) -> its recipe with these values
FIELDS = {"entry", "budget_flops", "seed", "settings", "steps", "flops_per_step"}  # that every row has, and
FIELDS |= {"heldout", "curve", "compared", "warnings", "diverged", "scores", "tasks"}


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


class Tasks(NamedTuple):
    """What every run is fine-tuned on."""

    names: Sequence[str]
    rates: Sequence[float]
    recipe_of: transfer.RecipeOf

    def fits(self, model: ElectraConfig) -> None:
        """UserError where a task's files are missing, or where its rows are longer than the model can read."""
        for name in self.names:
            recipe = self.recipe_of(name, {})
            task = described.task_of(recipe.task)
            if line := opening.missing(recipe.task, learned_from(task.files), "--data"):
                raise UserError(line)
            training.row_length(recipe.finetune, task, model)
            self.settings_of(name)

    def settings_of(self, name: str) -> dict[str, Any]:
        return transfer.settings_of(self.recipe_of, name, self.rates)

    def measure(self, name: str, model: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
        def of(task: str, fields: Mapping[str, Any]):
            return self.recipe_of(task, {"init_from": str(model), **fields})

        found = transfer.measure(of, folder, name, self.rates)
        kept = ("title", "metric", "median", "mean", "deviation", "best", "scores", "rate", "by_rate")
        return {**{name: found[name] for name in kept}, "settings": self.settings_of(name)}


NO_TASKS = Tasks((), (), lambda task, fields: None)


def plan(
    entries: Sequence[Entry],
    recipe_of: RecipeOf,
    *,
    budgets_flops: Sequence[float],
    num_seeds: int,
    scratch: pathlib.Path,
    tasks: Tasks = NO_TASKS,
) -> list[Plan]:
    """Every run, in the order in which they are made: all entries with the first seed, then with the next. Nothing is trained yet, and
    everything is checked.

    UserError for an entry that cannot be trained or fine-tuned, for a budget that is less than a step of one, and for a config that
    decides what entries and budget do.
    """
    common = recipe_of(Entry("", (), {}), {})
    _check_common(common.given, common.objective.name)
    seeds, opened = range(common.seed, common.seed + num_seeds), {}
    for entry in entries:
        with _naming(entry):
            for seed in seeds if entry.begins_by_seed else seeds[:1]:
                work = open_work(recipe_of(entry, {"train.steps": 10**6, **entry.fields_of(seed)}), scratch)
                work.begin(work.parts.abstract_state)  # what init_from names is there, and fits
                opened[entry.name] = work
            tasks.fits(work.recipe.model)
    found = []
    for budget in budgets_flops:
        for seed in seeds:
            for entry in entries:
                with _naming(entry):
                    found.append(_planned(entry, opened[entry.name], recipe_of, budget, seed))
    return found


@contextlib.contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    """A UserError says which entry it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{entry.name}: {error}") from None


def _check_common(given: Set[str], objective: str) -> None:
    """UserError where the config, which is that of all entries, says what an entry or the budget decides."""
    for field in sorted(given & OF_BUDGET.keys()):
        raise UserError(f"--config.{field} is decided by {OF_BUDGET[field]}: leave it out")
    if objective != "electra":
        raise UserError(
            f"the config of all entries has the objective {objective}: leave it out there, and let entries have it (--entry={objective})"
        )


def _planned(entry: Entry, work: Any, recipe_of: RecipeOf, budget: float, seed: int) -> Plan:
    flops = work.parts.objective.flops(work.parts.batch_rows, work.first_batch.tokens.shape[1])
    steps = round(budget / flops)
    if steps < 1:
        raise UserError(f"a step takes {flops:.3g} FLOPs, and the budget is {budget:g}: raise --flops")
    every = max(1, round(steps / CURVE_POINTS))
    defaults = {"eval.every_steps": every, "checkpoint.every_steps": every, "eval.mask_rate": HELD_OUT_MASK_RATE}
    own = {"train.steps": steps, "seed": seed, **entry.fields_of(seed)}
    recipe = recipe_of(entry, own | {name: value for name, value in defaults.items() if name not in work.recipe.given})
    return Plan(entry, budget, seed, recipe, _settings(recipe.stored(), work.identity), flops, work.parts.objective.view)


def _settings(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a run learns and how it is measured, so that a row is not taken for one of another config."""
    measured = {"eval.max_rows", "eval.mask_rate"}
    kept = {name: value for name, value in flat(stored).items() if name in measured or not re.search(MAY_CHANGE, name)}
    return {name: value for name, value in kept.items() if name not in ("format", "preset", "seed")} | dict(identity)


def read(workdir: pathlib.Path) -> dict[tuple[str, float, int], Row]:
    """The last row of each run, by Plan.key."""
    return {(row["entry"], row["budget_flops"], row["seed"]): row for row in files.read_rows(workdir / ROWS, FIELDS)}


def make(
    plans: Sequence[Plan], workdir: pathlib.Path, *, minimal_pairs: Sequence[pairs.Pair] = (), tasks: Tasks = NO_TASKS
) -> Iterator[list[Row]]:
    """Makes what is still missing of the runs. Yields the rows of the whole file, also of runs that are not among the plans: at first as
    they are, then after each part.

    minimal_pairs: that each run is scored on. UserError where the file has a row of the same run with other settings.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    known = read(workdir)
    for each in plans:
        _refuse_other(known.get(each.key), each, tasks, workdir / ROWS)
    yield list(known.values())
    meter = _Meter([(each, part) for each in plans for part in _parts(known.get(each.key), bool(minimal_pairs), tasks.names)])
    for each in plans:
        for part in _parts(known.get(each.key), bool(minimal_pairs), tasks.names):
            row = dict(known.get(each.key, {}))
            if row.get("diverged"):  # since the parts were listed
                meter.leave_out(each, part)
                continue
            model = workdir / each.folder
            tuned = model.with_name(f"{model.name}-fine-tuning") / part
            with meter.of(each, part):
                if part == PRETRAINING:
                    row |= _pretrained(each, model)
                elif part == SCORES:
                    row["scores"] = _scored(model, minimal_pairs)
                else:
                    row["tasks"] = {**row["tasks"], part: tasks.measure(part, model, tuned)}
            files.add_row(workdir / ROWS, row)
            known[each.key] = row
            if part not in (PRETRAINING, SCORES):
                transfer.forget(tuned)  # only now that the row is written: if the process died before, the runs would be needed again
            yield list(known.values())


PRETRAINING, SCORES = "pretraining", "minimal pairs"


def _parts(row: Row | None, has_pairs: bool, tasks: Sequence[str]) -> list[str]:
    """What of a run is still to be done."""
    if row and row["diverged"]:
        return []
    wanted = [] if row else [PRETRAINING]
    wanted += [SCORES] if has_pairs and not (row and row["scores"]) else []
    return wanted + [task for task in tasks if not (row and task in row["tasks"])]


def _refuse_other(row: Row | None, each: Plan, tasks: Tasks, where: pathlib.Path) -> None:
    if row is None:
        return
    was = {name: row["settings"].get(name, value) for name, value in each.settings.items()}  # a field that came later was as it is now
    now = dict(each.settings)
    for task in tasks.names:
        if task in row["tasks"]:
            was |= {f"{task}: {name}": value for name, value in row["tasks"][task]["settings"].items()}
            now |= {f"{task}: {name}": value for name, value in tasks.settings_of(task).items()}
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{where} has a run of {each.title} with {name}={was.get(name)}, and this is {now.get(name)}: "
                "give the entry another name, or choose another --workdir"
            )


def _pretrained(each: Plan, folder: pathlib.Path) -> dict[str, Any]:
    metrics, diverged = {}, ""
    try:
        metrics = dict(pretrain(each.recipe, folder).metrics)
    except Diverged as error:
        diverged = str(error)
    lines = [line for line in map(parse_line, (folder / names.METRICS).read_bytes().splitlines()) if line and "eval/loss" in line]
    of_step, steps = {line["step"]: line for line in lines}, each.recipe.train.steps
    curve = {name: [_finite(of_step[step].get(name)) for step in sorted(of_step)] for name in each.view.compared}
    return {
        "entry": each.entry.name,
        "budget_flops": each.budget_flops,
        "seed": each.seed,
        "settings": each.settings,
        "steps": steps,
        "flops_per_step": each.flops_per_step,
        "heldout": metrics,
        "curve": {"step": sorted(of_step), **curve},
        "compared": dict(each.view.compared),
        "warnings": [] if diverged else [name for name, _ in each.view.warnings(metrics, steps, each.recipe.run)],
        "diverged": diverged,
        "scores": {},
        "tasks": {},
    }


def _finite(value: float | None) -> float | None:
    """As JSON has it, which knows no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _scored(folder: pathlib.Path, minimal_pairs: Sequence[pairs.Pair]) -> dict[str, Mapping[str, float]]:
    """{score: {field: accuracy}} by each score that the model has a head for. A score that another network gives than the one that is kept
    is named after it."""
    found = {}
    for kind, head in scores.kinds_of(folder).items():
        scorer = scores.load_scorer(folder, kind)
        totals = [each.total for each in scorer.score(text for pair in minimal_pairs for text in (pair.good, pair.bad))]
        title = kind if head.network == "discriminator" else f"{kind} of the {head.network}"
        found[title] = pairs.summary(pairs.accuracies(minimal_pairs, totals[0::2], totals[1::2]))
    return found


class _Meter:
    """One line before each part, with the time that all that is left will take: a part is expected to take as long as others like it."""

    def __init__(self, left: Sequence[tuple[Plan, str]]):
        self._left, self._count = [_alike(*each) for each in left], len(left)
        self._secs: dict[tuple, list[float]] = {}
        self._begin = time.monotonic()

    @contextlib.contextmanager
    def of(self, each: Plan, part: str) -> Iterator[None]:
        known = [secs for alike in self._secs.values() for secs in alike]
        expected = sum(np.mean(self._secs.get(alike, known)) for alike in self._left) if known else None
        eta = "" if expected is None else f", about {format_secs(expected)} left"
        begin = time.monotonic()
        done = f"{self._count - len(self._left)} of {self._count} parts done in {format_secs(begin - self._begin)}{eta}"
        print(f"compare: {done}; now {each.title}: {part}", file=sys.stderr, flush=True)
        yield
        self._secs.setdefault(_alike(each, part), []).append(time.monotonic() - begin)
        self.leave_out(each, part)

    def leave_out(self, each: Plan, part: str) -> None:
        self._left.remove(_alike(each, part))


def _alike(each: Plan, part: str) -> tuple:
    """The same for parts that take equally long."""
    return (part, each.budget_flops) if part == PRETRAINING else (part,)
