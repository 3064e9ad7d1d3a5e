"""A run that is wanted once: what its folder has, or else trained now. The tables over many runs are made of these."""

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

# What follows from the task, its rows and the model unless it is given.
FOLLOWING = {"finetune.length", "finetune.head", "finetune.no_answer_threshold", "optimizer.rates"}


def ensure(recipe: FinetuneRecipe, folder: pathlib.Path) -> dict[str, Any]:
    """What results.json has of such a run: what a person gives is equal, or is not given by either, and the rest followed from it and the
    rows.

    UserError where the folder holds the run of another recipe.
    """
    found = folder / results.RESULTS
    if not (found.is_file() and (folder / names.REPORT).is_file()):  # the report is written last
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
