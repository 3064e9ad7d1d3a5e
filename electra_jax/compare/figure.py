"""The picture of a comparison: held-out metrics over the FLOPs of training, and what the runs are worth in the end."""

import io
from collections.abc import Sequence

import numpy as np

from electra_jax.compare import table
from electra_jax.compare.table import Row

# Apart for the colour-blind (Okabe and Ito, 2008); in black and white the marks tell them apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKS = "osD^vPX"
_PER_LINE = 3  # panels


def draw(rows: Sequence[Row]) -> str:
    """SVG. A line is the mean over the seeds, its band goes from the least of them to the most."""
    import matplotlib
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(title for row in rows for title in row["compared"].values()))
    ends = {title: values for title, values in table.columns(rows).items() if not title.startswith(table.HELD_OUT)}
    names = table.entries(rows)
    looks = {name: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]) for i, name in enumerate(names)}
    count = len(metrics) + len(ends)
    height = -(-count // _PER_LINE)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "compare", "font.size": 10}):
        figure = Figure(figsize=(4.2 * min(count, _PER_LINE), 3.2 * height + 0.5), layout="constrained")
        panels = [figure.add_subplot(height, min(count, _PER_LINE), place + 1) for place in range(count)]
        for axes, metric in zip(panels, metrics, strict=False):
            _curves(axes, rows, metric, looks)
        for axes, (title, values) in zip(panels[len(metrics) :], ends.items(), strict=True):
            _ends(axes, title, values, looks)
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", linewidth=0.6, alpha=0.5)
        handles = [
            matplotlib.lines.Line2D([], [], color=colour, marker=mark, label=name + table.signs(name, rows))
            for name, (colour, mark) in looks.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 4), frameon=False)
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()


def _curves(axes, rows: Sequence[Row], metric: str, looks) -> None:
    """Of the largest budget: those of smaller ones end elsewhere in their schedules."""
    from matplotlib.ticker import FuncFormatter

    budget = table.budgets(rows)[-1]
    for name, (colour, mark) in looks.items():
        of_entry = [row for row in rows if (row["entry"], row["budget_flops"]) == (name, budget)]
        of_entry = [row for row in of_entry if metric in row["compared"].values() and not row["diverged"]]
        if not of_entry:
            continue
        curves = [_curve(row, metric) for row in of_entry]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))  # those at which every seed was evaluated
        flops = np.asarray(steps) * of_entry[0]["flops_per_step"]
        of_seeds = np.array([[curve[step] for step in steps] for curve in curves], float).reshape(len(curves), len(steps))
        axes.plot(flops, of_seeds.mean(0), color=colour, marker=mark, markersize=3, linewidth=1.5)
        axes.fill_between(flops, of_seeds.min(0), of_seeds.max(0), color=colour, alpha=0.2, linewidth=0)
    if metric.startswith("MLM loss"):
        entropy = [row["heldout"]["eval/unigram_entropy"] for row in rows if "eval/unigram_entropy" in row["heldout"]]
        if entropy:
            axes.axhline(np.mean(entropy), color="grey", linestyle="--", linewidth=1)
    axes.set_title(f"{table.HELD_OUT} {metric}", fontsize=9)
    axes.set_xlabel("FLOPs of training")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))


def _curve(row: Row, title: str) -> dict[int, float]:
    """{step: value} of the metric with this title."""
    name = next(name for name, its in row["compared"].items() if its == title)
    return dict(zip(row["curve"]["step"], row["curve"][name], strict=True))


def _ends(axes, title: str, values, looks) -> None:
    """Over the budgets; with one budget, a place on the axis for each entry and a mark for each seed."""
    budgets = sorted({key[1] for key in values})
    for place, (name, (colour, mark)) in enumerate(looks.items()):
        of_budgets = [[value for key, value in values.items() if key[:2] == (name, budget)] for budget in budgets]
        there = [(budget, of) for budget, of in zip(budgets, of_budgets, strict=True) if of]
        if not there:
            continue
        if len(budgets) == 1:
            (_, of_seeds) = there[0]
            axes.plot([place] * len(of_seeds), of_seeds, linestyle="", marker=mark, color=colour, alpha=0.6)
            axes.plot([place - 0.3, place + 0.3], [np.mean(of_seeds)] * 2, color=colour)
            continue
        flops = [budget for budget, _ in there]
        axes.plot(flops, [np.mean(of) for _, of in there], color=colour, marker=mark, markersize=4)
        axes.fill_between(flops, [min(of) for _, of in there], [max(of) for _, of in there], color=colour, alpha=0.2, linewidth=0)
    axes.set_title(f"{title}, %", fontsize=9)
    if len(budgets) == 1:
        axes.set_xticks([])
        axes.set_xlabel(f"{budgets[0]:g} FLOPs each")
    else:
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs of training")
