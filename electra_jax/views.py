"""What people see of an objective: its view of its own metrics. No jax: whoever only draws a report does without it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Curve(NamedTuple):
    metric: str
    label: str
    colour: str  # blue, orange, green, purple, grey, red or teal
    dashed: bool = False  # a line to compare with


class Panel(NamedTuple):
    """Curves that stand together in the report."""

    title: str
    reading: str  # what the curves should do
    curves: tuple[Curve, ...]
    scale: str = "linear"  # linear | log | share (0 to 1) | rate (from 0)
    fewest_points: int = 1  # of a curve: with fewer the report leaves the panel out


class Span(NamedTuple):
    """A piece of an example's text, and what there is to say of it."""

    text: str
    space: str = ""  # before it; "\n": it begins a line
    shade: float = 0.0  # 0 to 1: how strongly it is coloured
    tip: str = ""  # shown where one points at it
    over: str = ""  # small, above it; what has one is underlined
    plain: str = ""  # how a terminal writes it, where not as `text`
    colour: str = ""  # in a terminal: green, yellow or red


class Examples(NamedTuple):
    title: str
    reading: str  # what shades and small words mean
    sentences: Sequence[Sequence[Span]]
    facts: Sequence[Mapping[str, str]] = ()  # of each sentence what stands above it, {name: value}; (): nothing


class Cell(NamedTuple):
    text: str
    note: str = ""  # small, below it
    shade: float = 0.0  # 0 to 1: how strongly it is coloured
    right: bool = False  # coloured as what is right, not as what is wrong


class Table(NamedTuple):
    title: str
    reading: str  # what shades and small figures mean
    corner: str  # what the rows are, and the columns
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]  # (name, a cell for each column)


Section = Examples | Table  # of the report


class Run(NamedTuple):
    """What of a run a warning goes by: advice that it follows already is no advice."""

    total_steps: int
    warmup_steps: int
    positions: str  # model.positions
    optimizer: str  # optimizer.name
    muon_weight_decay: float = 0.1  # optimizer.muon_weight_decay


Warnings = list[tuple[str, str]]  # (name, one line with the cures)


class View(NamedTuple):
    """How a person reads an objective's metrics, which nothing outside its file names. Metrics are `eval/*` of one evaluation.

    headline(metrics) -> one line about an evaluation.
    verdict(metrics) -> sentences with which the report opens: what was learned, for who does not know the metrics.
    shown: the metrics of the last evaluation that the report's table has, in order.
    warnings(metrics, step, run) -> the failures that they show.
    panels: of the report, before those that every objective has.
    examples(batch, outputs, pieces) -> some held-out rows as the model saw them; `outputs` are Terms.outputs of that batch's valid
      rows, `pieces(ids)` the tokenizer's.
    compared: {metric: its title} of the few by which runs of several objectives are shown beside one another (compare/). Equal titles mean
      the same quantity.
    """

    headline: Callable[[Mapping[str, float]], str]
    verdict: Callable[[Mapping[str, float]], str]
    shown: tuple[str, ...]
    warnings: Callable[[Mapping[str, float], int, Run], Warnings]
    panels: tuple[Panel, ...]
    examples: Callable[[Any, Mapping[str, Any], Callable[[Sequence[int]], list[str]]], Examples]
    compared: Mapping[str, str] = {}
