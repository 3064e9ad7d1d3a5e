"""The rows of a comparison as a table, and what can be drawn of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax.objectives.warnings import WORD_FREQUENCIES

Row = Mapping[str, Any]
HELD_OUT = "held-out"  # how the title of a held-out metric begins
_ACRONYMS = ("mlm", "rtd", "auc", "lm", "clm")


def columns(rows: Sequence[Row]) -> dict[str, dict[tuple[str, float, int], float]]:
    """{title of a column: {(entry, budget, seed): value}}: held-out metrics, minimal pairs by each score and tasks. Shares are in percent.
    Of a task that was fine-tuned with several seeds it is their median."""
    found: dict[str, dict] = {}
    for row in rows:
        key = row["entry"], row["budget_flops"], row["seed"]
        for name in row["compared"]:
            found.setdefault(title(name), {})[key] = row["heldout"][name]
    for row in rows:
        key = row["entry"], row["budget_flops"], row["seed"]
        for kind, by_field in row["scores"].items():
            found.setdefault(f"minimal pairs ({kind})", {})[key] = 100 * by_field["all"]
    for row in rows:
        key = row["entry"], row["budget_flops"], row["seed"]
        for of_task in row["tasks"].values():
            found.setdefault(f"{of_task['title']} ({of_task['metric']})", {})[key] = 100 * of_task["median"]
    return found


def title(metric: str) -> str:
    """held-out MLM loss, of "eval/mlm_loss"."""
    words = metric.removeprefix("eval/").split("_")
    return " ".join([HELD_OUT, *(word.upper() if word in _ACRONYMS else word for word in words)])


def void(rows: Sequence[Row]) -> dict[float, list[str]]:
    """{budget: the entries of which a run learned word frequencies alone}: at such a budget nothing is compared."""
    found: dict[float, dict[str, None]] = {}
    for row in rows:
        if WORD_FREQUENCIES in [name.rpartition(".")[2] for name in row["warnings"]]:  # a mixture's are PART.NAME
            found.setdefault(row["budget_flops"], {})[row["entry"]] = None
    return {budget: list(entries) for budget, entries in found.items()}


def table(rows: Sequence[Row]) -> str:
    """Markdown, a table for each budget: the mean over the seeds of pretraining, and their standard deviation."""
    return "\n".join(_of_budget(budget, [row for row in rows if row["budget_flops"] == budget]) for budget in budgets(rows))


def budgets(rows: Sequence[Row]) -> list[float]:
    return sorted({row["budget_flops"] for row in rows})


def entries(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["entry"] for row in rows))


def _of_budget(budget: float, rows: Sequence[Row]) -> str:
    found = columns(rows)
    stuck = void(rows).get(budget, [])
    lines = [[f"{budget:g} FLOPs", "seeds", "steps", *found], ["---"] * (3 + len(found))]
    for entry in entries(rows):
        of_entry = [row for row in rows if row["entry"] == entry]
        cells = [cell([values[key] for key in values if key[0] == entry], title) for title, values in found.items()]
        lines.append([entry + " †" * (entry in stuck), str(len(of_entry)), f"{of_entry[0]['steps']:,}", *cells])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *_notes(stuck), ""])


def _notes(stuck: Sequence[str]) -> Iterator[str]:
    if stuck:
        yield (
            f"\n† Void: a run of {', '.join(stuck)} learned word frequencies alone. The entries cannot be compared at this budget: raise "
            "it, or choose positions and an optimizer that get beyond them (model.positions=rotary, optimizer.name=muon)."
        )


def cell(values: Sequence[float], title: str) -> str:
    digits = 3 if title.startswith(HELD_OUT) else 1
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
