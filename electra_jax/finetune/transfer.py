"""What a model is worth: it is fine-tuned on many tasks, each at the best of several learning rates, for a table over models and tasks.

The rate is chosen with one seed, scored on a held-out part of the training rows (task.dev_from_train). The dev set is used only once, to
score all seeds at the chosen rate.

workdir/MODEL/TASK/rate-R/   a run with one rate, by which the rate is chosen
workdir/MODEL/TASK/seeds/    the run of all seeds
rows.jsonl                   one line per model and task, added when its runs are complete. Tables are made from this file alone, so that
                             the runs may be deleted
"""

import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from electra_jax import files
from electra_jax.cli import Diverged, UserError
from electra_jax.finetune import completed
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import OWN
from electra_jax.store import names
from electra_jax.watch.telemetry import parse_line

HELD_OUT = 0.1  # the share of the training rows that the rate is chosen on
Row = Mapping[str, Any]
# (task, fields) -> its recipe for all seeds, in which `fields` replace other values
RecipeOf = Callable[[str, Mapping[str, Any]], FinetuneRecipe]
_FIELDS = {"model", "task", "settings", "title", "metric", "median", "deviation", "rate", "secs"}  # which `table` and `run` read


def run(
    recipe_of: RecipeOf,
    workdir: pathlib.Path,
    rows: pathlib.Path,
    *,
    model: str,
    tasks: Sequence[str],
    rates: Sequence[float],
) -> Iterator[Row]:
    """Yields the row of each task. A row that the file `rows` has already is taken from there; otherwise the task is trained, and its row
    is added to the file.

    UserError if the file has a row of this model and task that was trained with other settings. Models are told apart by their names: the
    caller must give each its own.
    """
    known = {(row["model"], row["task"]): row for row in read(rows)}
    for folder in (workdir, rows.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        settings = settings_of(recipe_of, task, rates)
        if (row := known.get((model, task))) is None:
            row = {"model": model, "task": task, **measure(recipe_of, workdir / model / task, task, rates), "settings": settings}
            files.add_row(rows, row)
            forget(workdir / model / task)  # only now that the row is written: if the process died before, the runs would be needed again
        elif changed := sorted(name for name in row["settings"].keys() | settings if row["settings"].get(name) != settings.get(name)):
            was, now = row["settings"].get(changed[0]), settings.get(changed[0])
            raise UserError(f"{rows} has {model} on {task} with {changed[0]}={was}, and this is {now}: choose another --name or --rows")
        yield row


def settings_of(recipe_of: RecipeOf, task: str, rates: Sequence[float]) -> dict[str, Any]:
    """Settings that a row is compared by; paths are not among them. UserError for a field that is decided elsewhere."""
    recipe = recipe_of(task, {})
    for field, source in (("optimizer.learning_rate", "is chosen from --rates"), ("task.name", "is given by --tasks")):
        if field in recipe.given:
            raise UserError(f"{field} {source} here: leave it out")
    given = recipe.given - {"task.path", "init_from", "seed", "seeds"}
    return {"seed": recipe.seed, "seeds": recipe.seeds, "rates": list(rates), **{name: recipe.value(name) for name in sorted(given)}}


def measure(recipe_of: RecipeOf, folder: pathlib.Path, task: str, rates: Sequence[float]) -> dict[str, Any]:
    """The row of a task, without the names of model and task and the settings. A rate at which training diverges has no score, and is not
    chosen. What is trained already in `folder` is not trained again. UserError if it was trained from another model, and Diverged if
    every rate diverges."""
    found: dict[str, float | None] = {}
    secs = 0.0
    for rate in rates if len(rates) > 1 else ():
        fields = {"seeds": 1, "optimizer.learning_rate": rate, "task.dev_from_train": HELD_OUT}
        try:
            trial = completed.ensure(recipe_of(task, fields), folder / f"rate-{rate:g}")
            found[f"{rate:g}"] = trial["summary"]["dev"][trial["headline"]]["median"]
        except Diverged as error:
            found[f"{rate:g}"], diverged = None, error
        secs += wall_secs(folder / f"rate-{rate:g}")
    if found and all(score is None for score in found.values()):
        raise diverged
    best = max(rates, key=lambda rate: -math.inf if (score := found.get(f"{rate:g}")) is None else score)
    recipe = recipe_of(task, {"optimizer.learning_rate": best})
    whole = completed.ensure(recipe, folder / "seeds")
    secs += wall_secs(folder / "seeds")
    dev, metric = completed.dev_of(whole), whole["headline"]
    of_seeds = list(whole["scores"][dev].values())
    scores, of_first = [of_seed[metric] for of_seed in of_seeds], of_seeds[0]
    return {
        "title": task if recipe.task.name == OWN else whole["task"],
        "metric": metric + (f" at threshold {of_first['threshold']:g}" if "threshold" in of_first else ""),
        **whole["summary"][dev][metric],
        "scores": scores,
        "rate": best,
        "by_rate": found,
        "secs": round(secs),
    }


def forget(folder: pathlib.Path) -> None:
    """Deletes the trials, and the checkpoints of the last run: gigabytes that nobody needs once the row is written."""
    for old in (*folder.glob("rate-*"), folder / "seeds" / names.CHECKPOINTS):
        shutil.rmtree(old, ignore_errors=True)


def rates_of(words: Sequence[str]) -> list[float]:
    """The learning rates as numbers. UserError unless each is a number between 0 and 1."""
    try:
        rates = [float(word) for word in words]
    except ValueError:
        rates = []
    if not rates or not all(0.0 < rate < 1.0 for rate in rates):
        raise UserError(f"--rates={','.join(words)}: write numbers between 0 and 1, such as 1e-4,3e-4,1e-3")
    return rates


def wall_secs(folder: pathlib.Path) -> float:
    """Wall-clock seconds of a run's training over all its sessions, without the scoring of the trained model."""
    lines = map(parse_line, (folder / names.METRICS).read_bytes().splitlines())
    return max((line.get("clock/secs_wall", 0.0) for line in lines if line), default=0.0)


def read(rows: pathlib.Path) -> list[Row]:
    """The rows of the file: see files.read_rows."""
    return files.read_rows(rows, _FIELDS)


def table(rows: Sequence[Row]) -> str:
    """Two tables in Markdown, with a line for each model and a column for each task: median and deviation over the seeds in percent; rate
    and minutes."""
    tasks = {row["task"]: f"{row['title']} ({row['metric']})" for row in rows}
    by = {(row["model"], row["task"]): row for row in rows}
    models = dict.fromkeys(row["model"] for row in rows)

    def lines(head: str, cell: Callable[[Row], str]) -> list[str]:
        body = [[model, *(cell(by[model, task]) if (model, task) in by else "" for task in tasks)] for model in models]
        return [f"| {' | '.join(cells)} |" for cells in ([head, *tasks.values()], ["---"] * (1 + len(tasks)), *body)]

    scores = lines("begins as", lambda row: f"{100 * row['median']:.1f} ± {100 * row['deviation']:.1f}")
    costs = lines("rate; minutes", lambda row: f"{row['rate']:g}; {row['secs'] / 60:.0f}")
    return "\n".join([*scores, "", *costs]) + "\n"
