"""What a complete fine-tuning run has in its workdir beside checkpoints and curves: models, predictions, scores.

model/                the model of the best seed, by the headline metric on the dev set: predict and convert open it
model-seedN/          the model of each seed, with finetune.keep=all
results.json          the scores of every seed on every labelled split, with median, mean and deviation
predictions/SPLIT...  the predictions of the best seed, in the task's official formats: see outputs.py

The report's sections are made here as well: the seeds' scores, and the best seed's confusion matrix and worst mistakes (confusion.py,
mistakes.py).
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_jax.data.tokenizers import Tokenizer
from electra_jax.files import write_whole
from electra_jax.finetune import confusion, mistakes, outputs, rows
from electra_jax.finetune.examples import Example
from electra_jax.finetune.tasks import Task, learned_from
from electra_jax.interop import formats, names
from electra_jax.interop.model import Model
from electra_jax.store.names import MODEL, REPORT
from electra_jax.types import Params
from electra_jax.views import Cell, Section, Table

RESULTS, PREDICTIONS = "results.json", "predictions"


def reference(task: Task, train: Sequence[Example], dev: Sequence[Example]) -> dict[str, float]:
    """{"eval/naive": the accuracy on the dev set of always predicting the training set's commonest class}, if accuracy is the headline."""
    if task.kind != "class" or task.headline != "accuracy":
        return {}
    commonest = Counter(example.label for example in train).most_common(1)[0][0]
    return {"eval/naive": float(np.mean([example.label == commonest for example in dev]))}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, sample deviation (0 for a single seed) and best over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"median": float(np.median(values)), "mean": float(np.mean(values)), "deviation": deviation, "best": float(max(values))}


class Finished(NamedTuple):
    """What `write` needs to know of a complete run."""

    recipe: Any  # FinetuneRecipe
    task: Task
    examples: Mapping[str, Sequence[Example]]
    rows: Mapping[str, rows.Rows]
    dev: str  # the split that is evaluated on
    tokenizer: Tokenizer
    source: Model
    outputs: Callable[[Params, str], dict[str, np.ndarray]]  # (a seed's params, split) -> its outputs for all rows of the split


def write(folder: pathlib.Path | None, run: Finished, members: Mapping[int, Params]) -> list[Section]:
    """Writes all of it, and returns sections for the report.

    members: {seed: its parameters}.
    folder: the workdir. None in a process that only takes part in the computation, while another one writes.

    If the process dies within a call, the next call removes what is half written, and writes the same files again.
    """
    kind, task, config = rows.KINDS[run.task.kind], run.task, run.recipe.finetune

    def predictions(params: Params, split: str) -> list[rows.Prediction]:
        return kind.predict(task, run.examples[split], run.rows[split], run.outputs(params, split), config, run.tokenizer)

    labelled = [split for split in run.rows if split != "train" and run.examples[split][0].label is not None]
    scores: dict[str, dict[int, dict[str, float]]] = {split: {} for split in labelled}
    best, of_best = None, {}
    for seed, params in members.items():
        found = {split: predictions(params, split) for split in labelled}
        for split in labelled:
            scores[split][seed] = kind.score(task, run.examples[split], found[split], config)
        if best is None or scores[run.dev][seed][task.headline] > scores[run.dev][best][task.headline]:
            best, of_best = seed, found
    of_best |= {split: predictions(members[best], split) for split in run.rows if split not in ("train", *labelled)}
    if folder is None:
        return []
    for done in (folder / RESULTS, folder / REPORT):  # by which completed.py knows that all of it is there
        done.unlink(missing_ok=True)
    for litter in folder.glob(".*.tmp"):  # nobody is writing them now: the run is locked
        shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
    shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)  # it may have those of a test set that is gone
    for seed, params in members.items():
        if config.keep == "all":
            _save(folder / f"{MODEL}-seed{seed}", run, params, scores[run.dev][seed], seed)
    _save(folder / MODEL, run, members[best], scores[run.dev][best], best)
    for split, found in of_best.items():
        outputs.write(folder / PREDICTIONS, task, split, run.examples[split], found)
    table = {
        split: {name: summary([each[name] for each in by_seed.values()]) for name in next(iter(by_seed.values()))}
        for split, by_seed in scores.items()
    }
    whole = {"task": task.title, "headline": task.headline, "best_seed": best, "scores": scores, "summary": table}
    whole |= {"steps": run.recipe.train.steps, "given": sorted(run.recipe.given), "made_of": made_of(run.source, run.examples)}
    write_whole(folder / RESULTS, json.dumps(whole, indent=1) + "\n")
    dev, made = (run.examples[run.dev], of_best[run.dev]), (confusion.KINDS[task.kind], mistakes.KINDS[task.kind])
    in_order = {split: scores[split] for split in (run.dev, *scores)}
    return [*of_seeds(in_order, task.metrics, best), *made[0](task, *dev), made[1](task, *dev)]


def made_of(source: Model, examples: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Hashes of what a run's results follow from beside the recipe, by which completed.py knows whether they still hold: of the model that
    it begins with; of the examples that it is trained and chosen by; and of all that it only predicts."""
    params = hashlib.sha256()
    for name, x in sorted(names.flat(source.params).items()):
        params.update(f"{name} {x.shape} {x.dtype}".encode())
        params.update(np.ascontiguousarray(x).tobytes())
    learned = learned_from(examples)
    others = [split for split in examples if split not in learned]
    return {"model": params.hexdigest(), "examples": identity(examples, learned), "predicted": identity(examples, others)}


def identity(examples: Mapping[str, Sequence[Example]], splits: Iterable[str]) -> str:
    """A hash of all examples of these splits."""
    found = hashlib.sha256()
    for split in splits:
        for example in examples[split]:
            found.update(repr((split, example.id, example.texts, example.label)).encode())
    return found.hexdigest()


def of_seeds(scores: Mapping[str, Mapping[int, Mapping[str, float]]], metrics: Sequence[str], best: int) -> list[Table]:
    """The report's table of {split: {seed: {metric: score}}}; no table for a single seed. The first split is the one that the best seed
    was chosen by."""
    of_seed = {seed: [scores[split][seed][name] for split in scores for name in metrics] for seed in next(iter(scores.values()))}
    if len(of_seed) == 1:
        return []
    columns = [name if len(scores) == 1 else f"{split} {name}" for split in scores for name in metrics]
    rows = [(f"seed {seed}", [Cell(f"{x:.4f}", "", float(seed == best), True) for x in values]) for seed, values in of_seed.items()]
    over_all = [summary(values) for values in zip(*of_seed.values(), strict=True)]
    rows += [(name, [Cell(f"{each[name]:.4f}") for each in over_all]) for name in ("median", "mean", "deviation", "best")]
    threshold = next(iter(next(iter(scores.values())).values())).get("threshold")  # of SQuAD 2.0
    shown = "" if threshold is None else f" The scores are those at the no-answer threshold {threshold:g}."
    return [Table("Seeds", f"The best seed by {columns[0]} is blue; its model is kept.{shown}", "", columns, rows)]


def _save(folder: pathlib.Path, run: Finished, params: Params, scores: Mapping[str, float], seed: int) -> None:
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(params))
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
            # How the training file was read, and what is known of the task since its files were read: electra_jax.infer needs these.
            "layout": dataclasses.asdict(run.task.layout),
            "unanswerable": run.task.unanswerable,
        }
        | ({"range": list(run.task.layout.range)} if run.task.kind == "number" else {}),
    }
    new = folder.with_name(f".{folder.name}-new.tmp")  # if the process dies here, the next call of `write` removes this folder
    formats.write(new, Model(run.recipe.model, params, run.tokenizer, about=about), "electra_jax")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
