"""A labelled task to measure with: files of sentences that have SST-2's lengths, and a model with random weights in the format of each
side."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import rows
from benchmarks.processes import Side, measure
from electra_jax.data import tokenizers
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.interop import formats
from electra_jax.interop.model import Model
from electra_jax.models import costs
from electra_jax.models.config import ElectraConfig
from electra_jax.recipe import Recipe
from electra_jax.types import Params

HEAD, LABELS = "sequence_classification", ("0", "1")  # transformers' own head, so that both sides compute the same
BATCH_ROWS, LENGTH = 32, 128  # as published


class Labelled(NamedTuple):
    """Paths, as text. The folder `task` has train.tsv and dev.tsv; `ours` and `theirs` hold the same model in two formats."""

    task: str
    ours: str
    theirs: str


def paths(folder: pathlib.Path) -> Labelled:
    return Labelled(*(str(folder / name) for name in ("task", "ours")), str(folder / "theirs" / "discriminator"))


def make(folder: pathlib.Path, recipe: Recipe, vocabulary: pathlib.Path, text: pathlib.Path, num_rows: int) -> Labelled:
    """Writes the task and the model into the folder. A process of its own does this, because the calling process must not hold a device.

    recipe: pretraining's recipe, which has the model's config. vocabulary: a file with as many pieces as this config says.
    """
    arguments = {"folder": str(folder), "stored": recipe.stored(), "vocabulary": str(vocabulary), "text": str(text), "num_rows": num_rows}
    measure([Side("files", "benchmarks.labelled:write", arguments)], 1)
    return paths(folder)


def write(folder: str, stored: Mapping[str, Any], vocabulary: str, text: str, num_rows: int) -> Callable[[], dict[str, float]]:
    tokenizer, found = tokenizers.load(vocabulary), paths(pathlib.Path(folder))
    words = pathlib.Path(text).read_text(encoding="utf-8", errors="replace")
    made = rows.sentences(words, tokenizer, rows.sentence_lengths(num_rows))
    lines = [f"{sentence}\t{number % 2}" for number, sentence in enumerate(made)]
    pathlib.Path(found.task).mkdir(parents=True)
    for name in ("train", "dev"):
        pathlib.Path(found.task, f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    config = dataclasses.replace(Recipe.parse(stored).model, dtype="float32", attention="auto", scan_layers=False)
    model = Model(config, _params(config), tokenizer, about={"labels": list(LABELS), "name": "random weights"})
    formats.write(found.ours, model, "electra_jax")
    formats.write(pathlib.Path(found.theirs).parent, model, "huggingface")
    return lambda: {}


def _params(config: ElectraConfig) -> Params:
    import jax
    import numpy as np

    from electra_jax.models import electra

    body, of_head = jax.random.split(jax.random.key(0))
    params = electra.init_params(body, config, {"discriminator": {}})
    params[HEAD] = electra.init_task(of_head, config, HEAD, len(LABELS))
    return jax.tree.map(np.asarray, params)


def examples(task: str) -> list[tuple[str, int]]:
    """(sentence, label) for each row of the training file, in its order."""
    lines = pathlib.Path(task, "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(sentence, int(label)) for sentence, _, label in (line.rpartition("\t") for line in lines)]


def recipe(published: FinetuneRecipe, given: Labelled, seeds: int = 1, scan_layers: bool = False) -> FinetuneRecipe:
    """The recipe of configs/finetune.py for SST-2, on this task and model, with so many epochs that a measurement does not reach
    the end of the schedule."""
    return dataclasses.replace(
        published,
        init_from=given.ours,
        seeds=seeds,
        model=dataclasses.replace(published.model, scan_layers=scan_layers),
        train=dataclasses.replace(published.train, batch_rows=BATCH_ROWS),
        task=dataclasses.replace(published.task, path=given.task),
        finetune=dataclasses.replace(published.finetune, head=HEAD, length=LENGTH, epochs=1000.0),
    )


def real_flops(config: ElectraConfig, lengths: Sequence[int], passes: float) -> float:
    """The floating-point operations that these rows need without padding, which are the same for every side. passes: 3 for a training step
    (forward and backward), 1 for a prediction."""
    return passes * sum(costs.forward_flops(config, "discriminator", int(length)) for length in lengths)
