"""What to change where a step does not fit into a chip's memory: the knobs of the config, from the cheapest to the dearest."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from electra_jax.cli import UserError
from electra_jax.models.config import REMAT
from electra_jax.offline import topology
from electra_jax.offline.compile import SHARE, Case, compile_for

Change = Mapping[str, Any]  # {"section.field": value}


def knobs(case: Case, chips: int) -> Iterator[dict[str, Any]]:
    """Changes, each the one before and a little more: attention, accumulation, rematerialisation, fsdp. Nothing asked for is undone."""
    recipe, change = case.recipe, {}
    if recipe.model.attention_dropout > 0:
        change["model.attention_dropout"] = 0.0
        yield dict(change)
    accumulation_steps = recipe.train.accumulation_steps
    rows = recipe.train.batch_rows // (chips * accumulation_steps)
    for factor in (2, 4):
        if rows % factor == 0:
            yield change | {"train.accumulation_steps": accumulation_steps * factor}
    for remat in REMAT[REMAT.index(recipe.model.remat) + 1 :]:
        change["model.remat"] = remat
        yield dict(change)
    for fsdp in (2**n for n in range(1, chips.bit_length())):
        if chips % fsdp == 0 and recipe.model.hidden_size % fsdp == 0 and 0 < recipe.parallel.fsdp < fsdp:
            change |= {"parallel.fsdp": fsdp} | ({} if recipe.parallel.data == -1 else {"parallel.data": -1})
            yield dict(change)
    factor = 2
    while factor <= rows and rows % factor == 0:
        yield change | {"train.accumulation_steps": accumulation_steps * factor}
        factor *= 2


def suggest(case: Case, report: Callable[[Change, Mapping[str, Any]], None]) -> Change | None:
    """The first of `knobs` with which the step fits, compiled at low effort; None where none does. `report` hears of each try."""
    chips = len(topology.devices(case.topology.removesuffix(SHARE))[1])
    for change in knobs(case, chips):
        if case.topology.endswith(SHARE) and "parallel.fsdp" in change:
            continue
        with contextlib.suppress(UserError):  # a mesh that this recipe cannot have
            result = compile_for(case.override(change)._replace(effort="low"), estimated=False)
            report(change, result)
            if result["fits"]:
                return change
    return None


def advice(case: Case, result: Mapping[str, Any], found: Change | None, tried: bool) -> str:
    """One line for a person: what to change where it does not fit. `found`: what `suggest` gave, where it was tried."""
    if found:
        return f"fits with {_flags(found)}"
    if tried:
        return "nothing that was tried makes it fit: more chips, or a smaller --config.train.batch_rows"
    first = next(knobs(case, result["chips"]), None)
    words = f"{_flags(first)} is the cheapest knob, " if first else ""
    return f"does not fit: {words}then model.remat, train.accumulation_steps, parallel.fsdp; --suggest tries them"


def tell(change: Change, result: Mapping[str, Any]) -> None:
    """A line about one try of `suggest`."""
    words = " ".join(f"{name}={value}" for name, value in change.items())
    need = f"{result['peak_gib']:.1f} GiB" if result["peak_gib"] else "too much"
    print(f"  with {words}: {need}, {'fits' if result['fits'] else 'does not fit'}", file=sys.stderr, flush=True)


def _flags(change: Change) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in change.items())
