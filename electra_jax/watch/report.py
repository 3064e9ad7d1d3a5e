"""report.html: what a run learned, on one page that opens anywhere: no script, nothing fetched."""

import html
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from electra_jax.files import write_whole
from electra_jax.views import Examples, Panel, Section, Table
from electra_jax.watch import telemetry
from electra_jax.watch.plots import PANELS, Curves, draw, short

MAX_POINTS = 2_000  # of a curve: more than a screen has pixels


def write(
    path: str | os.PathLike,
    *,
    metrics: str | os.PathLike,
    title: str,
    summary: Mapping[str, Any],
    verdict: str = "",
    panels: Sequence[Panel] = (),
    sections: Sequence[Section] = (),
    config: str | None = None,
) -> None:
    """Writes the page to `path`, whole or not at all, from the lines of `metrics`, a metrics.jsonl that need not be there.

    verdict: sentences to open with. summary: the rows of a table below the curves. panels: of the objective; those that every run has
    come after them. sections: of the task, in order; those without a row are left out. config: shown as it is.
    """
    history, damaged = read_history(metrics)
    panels = [panel for panel in (*panels, *PANELS) if _points(panel, history) >= panel.fewest_points]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=verdict>{html.escape(verdict)}</p>" if verdict else "",
        "" if panels else "<p>No metrics yet.</p>",
        _other_rows(history),
        f"<p>{damaged} damaged line(s) of the metrics are left out.</p>" if damaged else "",
        f"<div class=panels>{''.join(_panel(panel, history) for panel in panels)}</div>",
        f"<details><summary>All figures of the last evaluation</summary>{_table(summary)}</details>",
        _where_the_time_went(history),
        *(_SECTIONS[type(section)](section) for section in sections),
        _details("Config", config) if config is not None else "",
    ]
    head, tail = _PAGE.split("@BODY@")
    write_whole(path, head.replace("@TITLE@", html.escape(title)) + "\n".join(body) + tail)


def read_history(path: str | os.PathLike) -> tuple[Curves, int]:
    """`{metric: (steps, values)}` of a metrics.jsonl, at most some MAX_POINTS a metric, however long; and how many lines are damaged.

    Lines are thinned before they are parsed; those with held-out metrics are rare, and thinned apart.
    """
    heldout, others, damaged = _Thinned(), _Thinned(), 0
    if os.path.exists(path):
        with open(path, "rb") as file:
            for line in file:
                if telemetry.is_whole(line):
                    (heldout if b'"eval/' in line else others).add(line)
                else:
                    damaged += line.endswith(b"\n")  # the last one, without its end, is being written
    lines = [values for line in heldout.lines() + others.lines() if (values := telemetry.parse_line(line))]
    history: Curves = {}
    for values in sorted(lines, key=lambda values: values["step"]):
        for name, value in values.items():
            if name != "step":
                steps, numbers = history.setdefault(name, ([], []))
                steps.append(values["step"])
                numbers.append(value)
    return history, damaged


def _other_rows(history: Curves) -> str:
    """Where an evaluation was of another number of rows than the one before, its curves do not go on."""
    steps, rows = history.get("eval/rows", ([], []))
    breaks = [
        f"from step {steps[i]:,} on of {rows[i]:,.0f} held-out rows (before: {rows[i - 1]:,.0f})"
        for i in range(1, len(rows))
        if rows[i] != rows[i - 1]
    ]
    return f"<p>The evaluation is {'; '.join(breaks)}: its curves have a break there.</p>" if breaks else ""


class _Thinned:
    """Every so-manyth of the lines added, MAX_POINTS / 2 to MAX_POINTS of them, and always the last."""

    def __init__(self):
        self._kept: list[bytes] = []
        self._stride, self._count, self._last = 1, 0, b""

    def add(self, item: bytes) -> None:
        if self._count % self._stride == 0:
            self._kept.append(item)
            if len(self._kept) > MAX_POINTS:
                del self._kept[1::2]
                self._stride *= 2
        self._count += 1
        self._last = item

    def lines(self) -> list[bytes]:
        ends_with_last = not self._count or (self._count - 1) % self._stride == 0
        return self._kept if ends_with_last else [*self._kept, self._last]


def plain_lines(examples: Examples, colour: bool = False) -> list[str]:
    """Each sentence as a line for a terminal, in colour where it has some."""
    lines = []
    for sentence in examples.sentences:
        line = ""
        for span in sentence:
            text = _CONTROL.sub("?", span.plain or span.text)
            line += span.space + (f"\x1b[{_ANSI[span.colour]}m{text}\x1b[0m" if colour and span.colour else text)
        lines.append(line.strip())
    return lines


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what would move a terminal's cursor
_ANSI = {"red": 31, "green": 32, "yellow": 33}


def _examples(examples: Examples) -> str:
    sentences = []
    for number, sentence in enumerate(examples.sentences):
        spans = []
        for span in sentence:
            text, over = html.escape(span.text), html.escape(span.over)
            space = "<br>" if span.space == "\n" else span.space
            shade = f'style="--score:{_share(span.shade)}" title="{html.escape(span.tip)}"'
            if span.over:
                spans.append(f"{space}<ruby class=marked {shade}>{text}<rt>{over}</rt></ruby>")
            else:
                spans.append(f"{space}<span {shade}>{text}</span>")
        if examples.facts:
            facts = ((html.escape(name), html.escape(value)) for name, value in examples.facts[number].items())
            sentences.append(f"<p class=facts>{' '.join(f'<span>{name} <b><bdi>{value}</bdi></b></span>' for name, value in facts)}</p>")
        sentences.append(f"<p class=sentence>{''.join(spans).strip()}</p>")
    body = "\n".join(sentences)
    return f"{_heading(examples)}{body}" if sentences else ""


def _shaded(table: Table) -> str:
    """It is as wide as it must be, and scrolls by itself where the page is narrower."""
    rows = [f"<tr><th>{html.escape(table.corner)}</th>{''.join(f'<th>{html.escape(name)}</th>' for name in table.columns)}</tr>"]
    for name, cells in table.rows:
        drawn = []
        for cell in cells:
            note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
            colour = "right" if cell.right else "wrong"
            drawn.append(f'<td class={colour} style="--score:{_share(cell.shade)}">{html.escape(cell.text)}{note}</td>')
        rows.append(f"<tr><th>{html.escape(name)}</th>{''.join(drawn)}</tr>")
    return f"{_heading(table)}<div class=wide><table class=shaded>{''.join(rows)}</table></div>" if table.rows else ""


_SECTIONS = {Examples: _examples, Table: _shaded}


def _heading(section: Section) -> str:
    return f"<h2>{html.escape(section.title)}</h2><p class=reading>{html.escape(section.reading)}</p>"


def _share(shade: float) -> str:
    return f"{min(max(shade, 0.0), 1.0):.3f}"


def _table(summary: Mapping[str, Any]) -> str:
    cells = ((html.escape(str(name)), html.escape(_text(value))) for name, value in summary.items())
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
    return f"<table>{rows}</table>" if rows else ""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if type(value) is int else str(value)


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"


def _where_the_time_went(history: Curves) -> str:
    """A bar of the seconds by section, from the last line that has them."""
    prefix = "clock/secs_"
    secs = {name.removeprefix(prefix): history[name][1][-1] for name in history if name.startswith(prefix)}
    wall_secs = secs.pop("wall", 0.0)
    if not wall_secs > 0:
        return ""
    largest_first = sorted(secs.items(), key=lambda item: -item[1])
    parts, keys = [], []
    for (name, value), colour in zip(largest_first, _SECTION_COLOURS, strict=False):
        share = value / wall_secs
        if share >= 0.001:
            parts.append(f'<i style="flex:{share:.4f};background:var(--{colour})"></i>')
            keys.append(_key(colour, f"{html.escape(name)} {telemetry.format_secs(value)} ({share:.1%})"))
    reading = (
        "step: training. data: waiting for rows. lost: work that had to be run again, because the process "
        "died before its next checkpoint. other: between all these."
    )
    heading = f"Where the time went: {telemetry.format_secs(wall_secs)}"
    bar = f"<div class=bar>{''.join(parts)}</div><p class=keys>{''.join(keys)}</p>"
    return f"<h2>{heading}</h2>{bar}<p class=reading>{reading}</p>"


_SECTION_COLOURS = ("blue", "orange", "green", "purple", "grey", "red", "teal", "ink")


def _key(colour: str, text: str, dashed: bool = False) -> str:
    return f'<span class="key{" dashed" if dashed else ""}" style="--key:var(--{colour})">{text}</span>'


def _points(panel: Panel, history: Curves) -> int:
    """Of its longest curve."""
    return max(len(history[curve.metric][0]) if curve.metric in history else 0 for curve in panel.curves)


def _panel(panel: Panel, history: Curves) -> str:
    curves = [curve for curve in panel.curves if curve.metric in history]
    keys = [_key(c.colour, f"{c.label} <b>{short(history[c.metric][1][-1])}</b>", c.dashed) for c in curves]
    return (
        f"<section><h2>{panel.title}</h2><p class=keys>{''.join(keys)}</p>{draw(panel, history)}"
        f"<p class=reading>{panel.reading}</p></section>"
    )


_PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><title>@TITLE@</title>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<style>
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #fff; --ink: #24292f; --soft: #5b6570;
  --grid: #dfe3e8; --blue: #2468d2; --orange: #d9660a; --green: #1f8a4c; --purple: #8b46c9; --grey: #7b8794;
  --red: #cf3434; --teal: #128a92; --shade: 225, 60, 50; --right: 36, 104, 210; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2026; --ink: #e3e7ec;
  --soft: #a0aab5; --grid: #39414a; --blue: #73aaff; --orange: #ffa04d; --green: #62cf8f; --purple: #c78fff;
  --grey: #8f9ba8; --red: #ff7b72; --teal: #4fc8d0; --shade: 255, 80, 70;
  --right: 115, 170, 255; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .3rem; }
body > h2 { margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; }
th, td { border-bottom: 1px solid var(--grid); }
th { font-weight: 500; color: var(--soft); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.panels { display: grid; gap: 1rem; margin: 1.5rem 0; }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: .9rem 1rem; }
section { min-width: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .4rem; font-size: .9rem; }
.key::before { content: ""; display: inline-block; width: 1.1em; margin-right: .4em; vertical-align: .25em; }
.key::before { border-top: 3px solid var(--key); }
.key.dashed::before { border-top-style: dashed; }
.reading { color: var(--soft); font-size: .88rem; margin: .4rem 0 0; }
.bar { display: flex; height: 1.4rem; border-radius: 6px; overflow: hidden; margin: .4rem 0; }
.sentence { line-height: 2.3; margin: .6rem 0; padding: .2rem 1rem; overflow-wrap: anywhere; }
.sentence { border-left: 3px solid var(--grid); unicode-bidi: plaintext; }
.sentence [title] { background: rgba(var(--shade), calc(var(--score) * .8)); border-radius: 3px; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 1.2rem 0 0; font-size: .9rem; }
.facts { color: var(--soft); overflow-wrap: anywhere; }
.facts b { color: var(--ink); font-weight: 600; }
.facts + .sentence { line-height: 2; margin-top: .2rem; min-height: 1.5rem; }
.wide { overflow-x: auto; margin: .6rem 0; }
.shaded { width: auto; max-width: none; }
.shaded th, .shaded td { padding: .3rem .6rem; max-width: 10rem; overflow-wrap: normal; }
.shaded td, .shaded tr:first-child th + th { text-align: right; }
.shaded th:first-child { position: sticky; left: 0; background: var(--paper); padding-left: 0; }
.shaded td { background: rgba(var(--shade), calc(var(--score) * .55)); }
.shaded td.right { background: rgba(var(--right), calc(var(--score) * .55)); }
.shaded small { display: block; font-size: .75em; }
.marked { text-decoration: underline 2px; text-underline-offset: 3px; font-weight: 600; white-space: nowrap; }
rt { color: var(--soft); font-size: .68em; font-weight: 400; padding: 0 .3em; }
details { margin: 2rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; }
</style></head><body>
@BODY@
</body></html>
"""
