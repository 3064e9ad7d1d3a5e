"""What of a run's config a resume may change, and what it may not."""

import re
from collections.abc import Mapping
from typing import Any

from electra_jax.cli import UserError
from electra_jax.recipe import FORMAT

# What a resume may change, by regex over "section.field". Anything else would be another run under the old one's name.
# The rows may lie elsewhere: that they are the same is known by their hash, the identity.
MAY_CHANGE = (
    r"^(log|eval|checkpoint|parallel)\.|^(data|task)\.path$|^model\.(remat|scan_layers|attention)$"
    r"|^train\.(accumulation_steps|max_non_finite_steps|hang_secs)$"
)
# Fields that came later, and what they are in a run that was begun before: it did as these say.
LATER = {
    "model.sharing": "shared",
    "objective.lm_weight": 1.0,
    "objective.generator": "network",
    "objective.train_generator": True,
    "objective.temperature": 1.0,
    "objective.sample_dropout": True,
    "objective.allow_correct": True,
    "objective.towers": True,
    "objective.causal_fraction": 1 / 16,
    "objective.z_weight": 1e-4,
}
_LISTED = 6  # changes in one message


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a workdir's stored config differs from this run's in what a resume may not change.

    What it may: MAY_CHANGE, and train.steps where the schedule names its own decay_steps.
    """
    if "train" not in before:  # launch/convert.py wrote it
        raise UserError(f"{where} holds a model and no run: begin with it, --config.init_from={where}, in another --workdir")
    if before.get("format") != FORMAT:
        raise UserError(
            f"{where} holds a run of an earlier version: finish it with that version, or begin with its model, "
            f"--config.init_from={where}, in another --workdir"
        )
    new = flat(now)
    old = {**{name: value for name, value in LATER.items() if name in new}, **flat(before)}
    may_change = MAY_CHANGE + (r"|^train\.steps$" if old.get("schedule.decay_steps") and new["schedule.decay_steps"] else "")
    changed = [
        _in_words(name, old, new)
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not re.search(may_change, name) and (name in old or new[name])  # else a later field, unused
    ]
    if changed:
        may = (
            f"log, eval, checkpoint and parallel fields, {_path_of_rows(new)} where the rows are the same, accumulation, "
            "max_non_finite_steps, hang_secs, remat, scan_layers and attention; train.steps where schedule.decay_steps is set"
        )
        changes = "; ".join(changed[:_LISTED]) + ("; ..." if len(changed) > _LISTED else "")
        raise UserError(
            f"{where} holds another run ({changes}): take these back, or train in another --workdir, from this run's model if you like "
            f"(--config.init_from={where}). A resume may change {may}"
        )


def warnings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each change that is allowed and that a person should know of."""
    measured = {
        "max_rows": "unless there are fewer rows, held-out figures are of others from here on",
        "mask_rate": "held-out figures are under other masks from here on",
    }
    return [
        f"warning: eval.{name} was {old} and is {new}: {what}"
        for name, what in measured.items()
        if (old := before["eval"].get(name, 0.0)) != (new := now["eval"][name])
    ]


def _in_words(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if name == "identity.data":  # hashes, which tell a person nothing
        field = _path_of_rows(new)
        return f"it was begun on the rows of {field}={old.get(field)}, and {new.get(field)} holds others"
    if name.startswith("identity."):
        return f"another {name.removeprefix('identity.')}"
    return f"{name}: {old.get(name)!r} -> {new.get(name)!r}"


def _path_of_rows(flat: Mapping[str, Any]) -> str:
    return "task.path" if "task.path" in flat else "data.path"


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"section.field": value} of a stored config."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: value for key, sub in tree.items() for name, value in flat(sub, f"{prefix}.{key}" if prefix else key).items()}
