"""What a fine-tuning run leaves in its workdir beside checkpoints and curves: models, predictions, scores.

model/                the best seed's, by the headline metric of the dev set: predict and convert open it
model-seedN/          each seed's, with finetune.keep=all
results.json          the scores of every seed on every labelled split, with median, mean and deviation
predictions/SPLIT...  of the best seed, in the task's official forms: see outputs.py

The report's sections come from here as well: the seeds' scores, and what the best seed takes for what (confusion.py, mistakes.py).
"""

import dataclasses
import json
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_jax.data.tokenizers import Tokenizer
from electra_jax.files import write_whole
from electra_jax.finetune import confusion, mistakes, outputs, rows
from electra_jax.finetune.examples import Example
from electra_jax.finetune.tasks import Task
from electra_jax.interop import formats
from electra_jax.interop.model import Model
from electra_jax.store.names import MODEL
from electra_jax.views import Cell, Section, Table

RESULTS, PREDICTIONS = "results.json", "predictions"


def reference(task: Task, train: Sequence[Example], dev: Sequence[Example]) -> dict[str, float]:
    """{"eval/naive": the accuracy of the training set's commonest class on the dev set}, where accuracy is the headline."""
    if task.kind != "class" or task.headline != "accuracy":
        return {}
    commonest = Counter(example.label for example in train).most_common(1)[0][0]
    return {"eval/naive": float(np.mean([example.label == commonest for example in dev]))}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Over seeds. The deviation is the sample's; of one seed there is none, and it is 0."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"median": float(np.median(values)), "mean": float(np.mean(values)), "deviation": deviation, "best": float(max(values))}


class Finished(NamedTuple):
    """A run that is complete: what `write` needs of it."""

    recipe: Any  # FinetuneRecipe
    task: Task
    examples: Mapping[str, Sequence[Example]]
    rows: Mapping[str, rows.Rows]
    dev: str
    tokenizer: Tokenizer
    source: Model
    outputs: Callable[[Any, str], dict[str, np.ndarray]]  # of a member (params, root words) on a split


def write(folder: pathlib.Path | None, run: Finished, members: Mapping[int, Any]) -> list[Section]:
    """Returns sections for the report. members: {seed: (params, root words)}. folder: None where another process writes, and this one only
    computes with it.

    A second call, after a death within the first, writes the same, and removes what that left half written.
    """
    kind, task, config = rows.KINDS[run.task.kind], run.task, run.recipe.finetune

    def predictions(member: Any, split: str) -> list[rows.Prediction]:
        return kind.predict(task, run.examples[split], run.rows[split], run.outputs(member, split), config, run.tokenizer)

    labelled = [split for split in run.rows if split != "train" and run.examples[split][0].label is not None]
    scores: dict[str, dict[int, dict[str, float]]] = {split: {} for split in labelled}
    best, of_best = None, {}
    for seed, member in members.items():
        found = {split: predictions(member, split) for split in labelled}
        for split in labelled:
            scores[split][seed] = kind.score(task, run.examples[split], found[split], config)
        if best is None or scores[run.dev][seed][task.headline] > scores[run.dev][best][task.headline]:
            best, of_best = seed, found
    of_best |= {split: predictions(members[best], split) for split in run.rows if split not in ("train", *labelled)}
    if folder is None:
        return []
    for litter in [*folder.glob(".*.tmp"), *(folder / PREDICTIONS).glob(".*.tmp")]:  # the run's lock says that no one writes them now
        shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
    for seed, member in members.items():
        if config.keep == "all":
            _save(folder / f"{MODEL}-seed{seed}", run, member, scores[run.dev][seed], seed)
    _save(folder / MODEL, run, members[best], scores[run.dev][best], best)
    for split, found in of_best.items():
        outputs.write(folder / PREDICTIONS, task, split, run.examples[split], found)
    table = {
        split: {name: summary([each[name] for each in by_seed.values()]) for name in next(iter(by_seed.values()))}
        for split, by_seed in scores.items()
    }
    whole = {"task": task.title, "headline": task.headline, "best_seed": best, "scores": scores, "summary": table}
    write_whole(folder / RESULTS, json.dumps(whole, indent=1) + "\n")
    dev, made = (run.examples[run.dev], of_best[run.dev]), (confusion.KINDS[task.kind], mistakes.KINDS[task.kind])
    return [*of_seeds(scores, task.metrics, best), *made[0](task, *dev), made[1](task, *dev)]


def of_seeds(scores: Mapping[str, Mapping[int, Mapping[str, float]]], metrics: Sequence[str], best: int) -> list[Table]:
    """The table of {split: {seed: {metric: score}}}; none of a single seed."""
    of_seed = {seed: [scores[split][seed][name] for split in scores for name in metrics] for seed in next(iter(scores.values()))}
    if len(of_seed) == 1:
        return []
    columns = [name if len(scores) == 1 else f"{split} {name}" for split in scores for name in metrics]
    rows = [(f"seed {seed}", [Cell(f"{x:.4f}", "", float(seed == best), True) for x in values]) for seed, values in of_seed.items()]
    over_all = [summary(values) for values in zip(*of_seed.values(), strict=True)]
    rows += [(name, [Cell(f"{each[name]:.4f}") for each in over_all]) for name in ("median", "mean", "deviation", "best")]
    return [Table("Seeds", f"The best seed by {columns[0]} is blue; its model is kept.", "", columns, rows)]


def _save(folder: pathlib.Path, run: Finished, member: Any, scores: Mapping[str, float], seed: int) -> None:
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(member[0]))
    stored = run.recipe.stored()
    about = {
        **{name: run.source.about.get(name) for name in ("source", "name", "training", "data")},
        "labels": list(run.task.labels),
        "metrics": {f"eval/{name}": value for name, value in scores.items()},
        "task": {
            "kind": run.task.kind,
            "title": run.task.title,
            "name": run.task.name,
            "finetune": stored["finetune"],
            "seed": seed,
            # How the training file was read, and what the task is once its files have been seen: electra_jax.infer goes by these.
            "layout": dataclasses.asdict(run.task.layout),
            "unanswerable": run.task.unanswerable,
        }
        | ({"range": list(run.task.layout.range)} if run.task.kind == "number" else {}),
    }
    new = folder.with_name(f".{folder.name}-new.tmp")  # litter, should this die here
    formats.write(new, Model(run.recipe.model, params, run.tokenizer, about=about), "electra_jax")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
