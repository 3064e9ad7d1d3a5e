"""What was measured, for people: markdown tables with what they were measured on, and JSON."""

import importlib.metadata
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.processes import Side, Spread, measure
from electra_jax.cli import UserError, one_line
from electra_jax.files import write_whole
from electra_jax.limits import available_cores


class Table(NamedTuple):
    """`name`: of its place in docs/speed.md, between `<!-- bench:NAME -->` and `<!-- /bench -->`. `figures`: JSON values, unrounded.

    A row may be shorter than the columns.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    figures: Mapping[str, Any]


def number(value: float) -> str:
    """Three digits, or all of a whole number above."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def times(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def share(of: Spread) -> str:
    digits = 0 if of.median >= 0.1 else 2
    return f"{of.median:.{digits}%} ({of.low:.{digits}%} to {of.high:.{digits}%})"


def markdown(table: Table, environment: Mapping[str, Any]) -> str:
    if not table.rows:
        return table.caption

    def line(cells: Sequence[str]) -> str:
        filled = [*cells, *[""] * (len(table.columns) - len(cells))]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in filled) + " |"

    head = [f"{table.caption} {described(environment)}", "", line(table.columns), "|" + "---|" * len(table.columns)]
    return "\n".join([*head, *map(line, table.rows)])


def environment() -> dict[str, Any]:
    """The device and its software."""
    (hardware,) = measure([Side("hardware", "benchmarks.ours:hardware", {})], 1).samples["hardware"]
    return {
        **{name: hardware[name] for name in ("platform", "kind", "peak_bfloat16", "memory_bytes")},
        "instructions": instructions(),
        "cores": available_cores(),
        "versions": {name: version for name in ("jax", "torch", "transformers", "txtai", "tokenizers") if (version := _version(name))},
    }


def described(environment: Mapping[str, Any]) -> str:
    device = "" if environment["platform"] == "cpu" else f"{environment['kind']}; "
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"On {device}{environment['cores']} CPU cores, {environment['instructions']}; {versions}."


def instructions() -> str:
    """The widest vectors of the CPU, which decide a ratio there."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "unknown instruction set"
    return "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX2 nor AVX-512"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_page(path: pathlib.Path) -> str:
    """UserError where it is no page of text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--docs={path} is no page of text that can be read: {one_line(error)[:200]}") from error


def _place(path: pathlib.Path, text: str, name: str) -> re.Match[str]:
    """Where a table stands: group 1 is the line before it, group 2 the one after. UserError where the page has no such place."""
    place = re.search(rf"(<!-- bench:{re.escape(name)} -->\n)(?:(?!<!-- bench:).)*?(<!-- /bench -->)", text, re.DOTALL)
    if not place:
        raise UserError(f"--docs={path} has no place for {name}: write <!-- bench:{name} --> and, a line below, <!-- /bench -->")
    return place


def check_docs(path: pathlib.Path, names: Sequence[str]) -> None:
    """UserError where the page has no place for one of these tables."""
    text = read_page(path)
    for name in names:
        _place(path, text, name)


def check_writable(path: pathlib.Path) -> None:
    """OSError where a file cannot be written there."""
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}."):
        pass


def write_docs(path: pathlib.Path, tables: Sequence[Table], environment: Mapping[str, Any]) -> None:
    """Each table into its place; what stands between the places stays. UserError, nothing written, where the page has no place for one."""
    text = read_page(path)
    for table in tables:
        place = _place(path, text, table.name)
        text = f"{text[: place.end(1)]}{markdown(table, environment)}\n{text[place.start(2) :]}"
    write_whole(path, text)


def write_json(path: pathlib.Path, tables: Sequence[Table], environment: Mapping[str, Any]) -> None:
    content = {"environment": environment, "tables": {table.name: table.figures for table in tables}}
    write_whole(path, json.dumps(content, indent=1) + "\n")
