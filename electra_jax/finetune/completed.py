"""Runs that are trained at most once: the scores come from the run's folder if it is complete, or else it is trained now. The tables
over many runs (glue.py, transfer.py) are made of such runs."""

import json
import pathlib
import re
from typing import Any

from electra_jax.cli import UserError
from electra_jax.finetune import results
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.training import finetune
from electra_jax.resume import MAY_CHANGE
from electra_jax.store import names

# Fields that follow from the task, its rows and the model unless they are given.
FOLLOWING = {"finetune.length", "finetune.head", "finetune.no_answer_threshold", "optimizer.rates"}


def ensure(recipe: FinetuneRecipe, folder: pathlib.Path) -> dict[str, Any]:
    """The content of the run's results.json.

    UserError where the folder holds a run of another recipe. Compared are the fields of the task, the fine-tuning and the optimizer, and
    all that a person sets; the others follow from these and from the rows. What a resume may change is not compared.
    """
    found = folder / results.RESULTS
    if not (found.is_file() and (folder / names.REPORT).is_file()):  # the report is written last, so a run that has one is complete
        finetune(recipe, folder)
        return json.loads(found.read_text())
    before = json.loads((folder / names.CONFIG).read_text())
    now = recipe.stored()
    named = {f"{section}.{name}" for section in ("task", "finetune", "optimizer") for name in now[section].keys() & before[section].keys()}
    named -= FOLLOWING
    for field in sorted({"init_from", "init_network", "seed", "seeds", "preset", *named, *recipe.given}):
        if re.search(MAY_CHANGE, field):
            continue
        section, _, name = field.rpartition(".")
        old, new = (before.get(section, {}) if section else before).get(name), recipe.value(field)
        if old != new:
            raise UserError(f"{folder} has the results of {field}={old}, and this is {new}: choose another --workdir")
    return json.loads(found.read_text())


def dev_of(found: dict[str, Any]) -> str:
    """The split that the run was evaluated on."""
    return next(split for split in found["summary"] if split.startswith("dev"))
