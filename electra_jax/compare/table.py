"""The rows of a comparison as a table, and what can be drawn of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.objectives.warnings import WORD_FREQUENCIES
from electra_jax.watch.ranks import LOST

Row = Mapping[str, Any]
HELD_OUT = "held-out"  # how the title of a held-out metric begins


class Mark(NamedTuple):
    """A sign behind the name of an entry that has such a run, and what it means."""

    sign: str
    of: Callable[[Row], bool]
    note: str  # {entries}: their names


def _warned(name: str) -> Callable[[Row], bool]:
    return lambda row: name in [each.rpartition(".")[2] for each in row["warnings"]]  # a mixture's are PART.NAME


MARKS = (
    Mark(
        "†",
        _warned(WORD_FREQUENCIES),
        "Void: a run of {entries} learned no more than word frequencies. The entries cannot be compared at this budget: raise it, or "
        "choose positions and an optimizer that get beyond them (docs/objectives.md).",
    ),
    Mark(
        "‡",
        _warned(LOST),
        "The states of a run of {entries} fill so few directions that fine-tuning may do worse than from random weights.",
    ),
    Mark(
        "§",
        lambda row: bool(row["settings"]["init_from"]),
        "{entries} began with trained weights. The budget does not count what those cost.",
    ),
    Mark("¶", lambda row: bool(row["diverged"]), "A run of {entries} diverged; the figures are those of its other seeds."),
)


def columns(rows: Sequence[Row]) -> dict[str, dict[tuple[str, float, int], float]]:
    """{title of a column: {(entry, budget, seed): value}}: held-out metrics, minimal pairs by each score and tasks. Shares are in percent.
    Of a task that was fine-tuned with several seeds it is their median."""
    found: dict[str, dict] = {}
    for row in rows:
        for name, title in row["compared"].items():
            if name in row["heldout"]:
                found.setdefault(f"{HELD_OUT} {title}", {})[_key(row)] = row["heldout"][name]
    for row in rows:
        for score, by_field in row["scores"].items():
            found.setdefault(f"minimal pairs ({score})", {})[_key(row)] = 100 * by_field["all"]
    for row in rows:
        for of_task in row["tasks"].values():
            found.setdefault(f"{of_task['title']} ({of_task['metric']})", {})[_key(row)] = 100 * of_task["median"]
    return found


def _key(row: Row) -> tuple[str, float, int]:
    return row["entry"], row["budget_flops"], row["seed"]


def signs(entry: str, rows: Sequence[Row]) -> str:
    """The signs of MARKS that these rows of the entry ask for, with a space before them."""
    found = [mark.sign for mark in MARKS if any(mark.of(row) for row in rows if row["entry"] == entry)]
    return f" {''.join(found)}" if found else ""


def table(rows: Sequence[Row]) -> str:
    """Markdown, a table for each budget: the mean over the seeds of pretraining, and their standard deviation."""
    return "\n".join(_of_budget(budget, [row for row in rows if row["budget_flops"] == budget]) for budget in budgets(rows))


def budgets(rows: Sequence[Row]) -> list[float]:
    return sorted({row["budget_flops"] for row in rows})


def entries(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["entry"] for row in rows))


def _of_budget(budget: float, rows: Sequence[Row]) -> str:
    found = columns(rows)
    lines = [[f"{budget:g} FLOPs", "seeds", "steps", *found], ["---"] * (3 + len(found))]
    for entry in entries(rows):
        of_entry = [row for row in rows if row["entry"] == entry]
        cells = [cell([value for key, value in values.items() if key[0] == entry], title, len(of_entry)) for title, values in found.items()]
        lines.append([entry + signs(entry, rows), str(len(of_entry)), f"{of_entry[0]['steps']:,}", *cells])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *_notes(rows), ""])


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    for mark in MARKS:
        if of := [entry for entry in entries(rows) if mark.sign in signs(entry, rows)]:
            yield f"\n{mark.sign} {mark.note.format(entries=', '.join(of))}"


def cell(values: Sequence[float], title: str, seeds: int) -> str:
    """seeds: of the entry, not all of which may have a value yet."""
    digits = 3 if title.startswith(HELD_OUT) else 1
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}" + (f" (of {len(values)})" if len(values) < seeds else "")
