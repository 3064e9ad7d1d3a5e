"""What of a run's config a resume may change, and what it may not."""

import re
from collections.abc import Mapping
from typing import Any

from electra_jax.cli import UserError
from electra_jax.recipe import FORMAT

# What a resume may change, by regex over "section.field". Anything else would be another run under the old one's name.
MAY_CHANGE = (
    r"^(log|eval|checkpoint|parallel)\.|^model\.(remat|scan_layers|attention)$|^train\.(accumulation_steps|max_non_finite_steps|hang_secs)$"
)
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
    old, new = _flat(before), _flat(now)
    may_change = MAY_CHANGE + (r"|^train\.steps$" if old.get("schedule.decay_steps") and new["schedule.decay_steps"] else "")
    changed = [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not re.search(may_change, name)
    ]
    if changed:
        more = "; ..." if len(changed) > _LISTED else ""
        raise UserError(
            f"{where} holds a run with another config ({'; '.join(changed[:_LISTED])}{more}): "
            "take these back, or start in another --workdir. A resume may change log, eval, checkpoint and parallel fields, "
            "accumulation, max_non_finite_steps, hang_secs, remat, scan_layers and attention; train.steps where schedule.decay_steps is set"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: value for key, sub in tree.items() for name, value in _flat(sub, f"{prefix}.{key}" if prefix else key).items()}
