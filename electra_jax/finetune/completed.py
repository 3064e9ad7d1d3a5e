"""Runs that are trained at most once: the scores come from the run's folder if it is complete, or else it is trained now. The tables
over many runs (glue.py, transfer.py) are made of such runs."""

import json
import pathlib
import re
from typing import Any

from electra_jax.cli import UserError
from electra_jax.finetune import results
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import learned_from
from electra_jax.finetune.training import finetune, made_of_now
from electra_jax.resume import MAY_CHANGE
from electra_jax.store import names

# Fields that follow from the task, its rows and the model unless they are given.
FOLLOWING = {"finetune.length", "finetune.head", "finetune.no_answer_threshold", "optimizer.rates"}


def ensure(recipe: FinetuneRecipe, folder: pathlib.Path) -> dict[str, Any]:
    """The content of the run's results.json.

    UserError where the folder holds a run of another recipe, or where the model or the examples have changed since it was made. Compared
    are the fields of the task, the fine-tuning and the optimizer, and all that a person sets or had set for that run; the others follow
    from these and from the rows. What a resume may change is not compared. If only examples that are no more than predicted are others
    now, such as a test set that has arrived since, they are predicted, and nothing is trained.
    """
    if not _is_complete(folder):
        finetune(recipe, folder)
        return json.loads((folder / results.RESULTS).read_text())
    found, before = (json.loads((folder / name).read_text()) for name in (results.RESULTS, names.CONFIG))
    now = recipe.stored()
    named = {f"{section}.{name}" for section in ("task", "finetune", "optimizer") for name in now[section].keys() & before[section].keys()}
    named -= FOLLOWING
    for field in sorted({"init_from", "init_network", "seed", "seeds", "preset", *named, *recipe.given, *found["given"]}):
        if re.search(MAY_CHANGE, field):
            continue
        section, _, name = field.rpartition(".")
        old, new = (before.get(section, {}) if section else before).get(name), recipe.value(field)
        if old != new:
            dropped = field in found["given"] and field not in recipe.given  # its value now may follow from the rows
            this = "which is not given now: give it again, or" if dropped else f"and this is {new}:"
            raise UserError(f"{folder} has the results of {field}={old}, {this} choose another --workdir")
    made_of = made_of_now(recipe.init_from, recipe.init_network, recipe.task)
    for what, changed in (("model", f"the model in {recipe.init_from} has"), ("examples", f"the examples in {recipe.task.path} have")):
        if found["made_of"][what] != made_of[what]:
            raise UserError(f"{changed} changed since {folder} was made of them: choose another --workdir")
    if found["made_of"]["predicted"] != made_of["predicted"]:
        finetune(recipe, folder)
        return json.loads((folder / results.RESULTS).read_text())
    return found


def _is_complete(folder: pathlib.Path) -> bool:
    """The report is written last. More steps may have been begun since then. What an earlier version wrote lacks `given`: it is written
    again, without training."""
    if not ((folder / results.RESULTS).is_file() and (folder / names.REPORT).is_file()):
        return False
    steps = json.loads((folder / names.CONFIG).read_text())["train"]["steps"]
    found = json.loads((folder / results.RESULTS).read_text())
    return "given" in found and found["steps"] == steps


def dev_of(found: dict[str, Any]) -> str:
    """The split that the run was evaluated on."""
    return learned_from(found["summary"])[1]
