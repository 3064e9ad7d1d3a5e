"""GLUE as the paper shows it: one model is fine-tuned on every task at hand, and its medians stand beside the published ones.

workdir/TASK/          the run of each task, as finetune leaves it; a second call trains only what is not complete
workdir/uploads.zip    the files of predictions that gluebenchmark.com takes, for the tasks whose test sets are there
workdir/table.md       the table
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from electra_jax.cli import UserError
from electra_jax.files import write_whole
from electra_jax.finetune import completed, opening, outputs, results
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import TASKS, learned_from

# In the order of the paper's table 2; WNLI, which the paper leaves out, comes last.
NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
UPLOADS, TABLE = "uploads.zip", "table.md"


class Row(NamedTuple):
    """What the seeds of one task reached on the dev set, or why the task was not run."""

    name: str
    metric: str
    summary: Mapping[str, float]  # results.summary of the metric
    seeds: int
    missing: str  # one line: why it was not run; "" if it was


def run(recipe_of: Callable[[str], FinetuneRecipe], workdir: str | os.PathLike, names: Sequence[str] = NAMES) -> Iterator[Row]:
    """Yields the row of each task once its run is complete. recipe_of(task) -> the task's recipe.

    UserError for a name that is no task of GLUE, for a recipe of another task, and if a task's folder holds a run of another recipe.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"{unknown[0]!r} is no task of GLUE: choose from {', '.join(NAMES)}")
    for name in names:
        recipe, folder = recipe_of(name), pathlib.Path(workdir) / name
        if recipe.task.name != name:
            raise UserError(f"task.name is {recipe.task.name}, and this is {name}'s run: leave it out, --tasks says what is run")
        if line := opening.missing(recipe.task, learned_from(TASKS[name].files), "--path"):
            yield Row(name, TASKS[name].headline, {}, 0, line)
            continue
        found = completed.ensure(recipe, folder)
        dev = completed.dev_of(found)
        yield Row(name, found["headline"], found["summary"][dev][found["headline"]], len(found["scores"][dev]), "")


def table(rows: Sequence[Row]) -> str:
    """Markdown, in percent: the median and the deviation over the seeds, and below them the published medians of 10 seeds."""
    done = [row for row in rows if not row.missing]
    head = ["model", *(f"{TASKS[row.name].title} ({row.metric})" for row in done), "mean"]
    ours = [f"{100 * row.summary['median']:.1f} ± {100 * row.summary['deviation']:.1f}" for row in done]
    lines = [head, ["---"] * len(head), [f"this one, {done[0].seeds} seed(s)" if done else "this one", *ours, _mean(ours)]]
    for size in ("small", "base", "large"):
        published = [TASKS[row.name].published.get(size) for row in done]
        cells = ["" if value is None else f"{value:.1f}" for value in published]
        lines.append([f"ELECTRA-{size} (published)", *cells, _mean(cells)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([text, *(f"\n{TASKS[row.name].title} was not run. {row.missing}" for row in rows if row.missing)]) + "\n"


def _mean(cells: Sequence[str]) -> str:
    """The mean over the tasks that have a figure; if some have none, with the number of those that do."""
    values = [float(cell.split()[0]) for cell in cells if cell]
    if not values:
        return ""
    return f"{sum(values) / len(values):.1f}" + ("" if len(values) == len(cells) else f" (of {len(values)})")


def finish(workdir: str | os.PathLike, rows: Sequence[Row]) -> list[str]:
    """Writes the table and the uploads; returns lines for a person. UserError if no task was run: an earlier table then stays."""
    if all(row.missing for row in rows):
        raise UserError("none of these tasks has its files: the lines above name them. Is --path the folder that holds CoLA, SST-2 ...?")
    folder = pathlib.Path(workdir)
    write_whole(folder / TABLE, table(rows))
    wanted = [upload.file for name in NAMES for upload in TASKS[name].uploads]
    there = {path.name: path for row in rows if not row.missing for path in (folder / row.name / results.PREDICTIONS).glob("*.tsv")}
    uploads = {name: there[name] for name in wanted if name in there}
    lines = [f"{folder / TABLE} has this table"]
    if uploads:
        outputs.zip_files(uploads.values(), folder / UPLOADS)
        lacking = [name for name in wanted if name not in uploads]
        lines.append(f"{folder / UPLOADS}: {len(uploads)} of GLUE's files" + (f"; it lacks {', '.join(lacking)}" if lacking else ""))
    else:
        (folder / UPLOADS).unlink(missing_ok=True)  # of test sets that are gone
    return lines
