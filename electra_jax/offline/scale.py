"""Every preset compiled for many TPUs: a line each of docs/scale.jsonl, and the table of docs/scale.md.

A line has the key of what its figures depend on: config, topology, effort, versions, and the code of the step. Where that code changes and
the program that it gives to the compiler does not, the line gets the new key, and nothing is compiled again.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from electra_jax import options
from electra_jax.cli import UserError
from electra_jax.files import write_whole
from electra_jax.offline import compile as offline
from electra_jax.offline.compile import Case, Step
from electra_jax.parallel import executors
from electra_jax.recipe import Recipe

# What `make scale` compiles, in this order; attention dropout is not for TPUs. Those at full effort take as long as all others.
_FULL = tuple(
    (preset, name, {})
    for preset, names in (
        ("base,flash", ("v5e:4x4", "v5p:2x2x4", "v6e:4x4")),
        ("large,flash", ("v5e:16x16/chip", "v5p:4x8x8/chip", "v6e:16x16/chip")),
    )
    for name in names
) + (("base,flash", "v5e:4x4", {"parallel.fsdp": 16}), ("large,flash", "v5e:16x16", {"parallel.fsdp": 16}))
_FSDP = (
    ("large,flash", "v5e:16x16", {"parallel.fsdp": 16, "model.remat": "full"}),
    ("base,flash", "v5e:4x4", {"parallel.fsdp": 4}),
    ("base,flash", "v5e:16x16", {"parallel.fsdp": 16}),
)
# Two sizes of each generation: a batch of 128 rows does not divide over 256 chips.
_SMALL = ("v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v5p:2x2x4", "v6e:2x2", "v6e:4x4", "v4:2x2x4")
_LARGE = ("v5e:4x4", "v5e:16x16", "v5p:2x2x4", "v5p:4x8x8", "v6e:4x4", "v6e:16x16", "v4:2x2x4")
_PRESETS = {
    "tiny,flash": _SMALL,
    "small,flash": _SMALL,
    "small_pp,flash": _SMALL,
    "base,flash": _LARGE,
    "base_pp,flash": _LARGE,
    "large,flash": _LARGE,
}

# The code that a line depends on: files, folders and single definitions of the package. A key is that of all of STEP; READING is what
# makes figures of a compiled program.
STEP = (
    "build.py",
    "models",
    "objectives",
    "offline/compile.py",
    "offline/estimate.py",
    "offline/hlo.py",
    "offline/simulator.py",
    "offline/topology.py",
    "parallel/chips.py",
    "parallel/config.py",
    "parallel/executors.py",
    "parallel/mesh.py",
    "parallel/sharding.py",
    "recipe.py::Recipe",
    "recipe.py::RunRecipe",
    "rng.py",
    "train/config.py",
    "train/optimizer.py",
    "train/step.py",
    "types.py",
)
READING = (
    "offline/compile.py::compile_step",
    "offline/compile.py::_kernel_cycles",
    "offline/estimate.py",
    "offline/hlo.py",
    "offline/simulator.py",
    "parallel/chips.py",
    "parallel/executors.py::peak_memory",
)
_PACKAGE = Path(__file__).parents[1]
_BEGIN, _END = "<!-- make scale -->", "<!-- end -->"


class Row(NamedTuple):
    """One of the table: the preset's case, with `change` already in it."""

    preset: str
    change: Mapping[str, Any]
    case: Case


def wanted(config_file: Path) -> Iterator[Row]:
    """The table's rows; `config_file` is configs/pretrain.py."""
    low = [(preset, name, {}) for preset, names in _PRESETS.items() for name in names] + [*_FSDP]
    for effort, group in (("low", low), ("full", _FULL)):
        for preset, name, change in group:
            yield Row(preset, change, Case(_recipe(config_file, preset), name, effort).override(change))


@functools.cache
def _recipe(config_file: Path, preset: str) -> Recipe:
    spec = importlib.util.spec_from_file_location("electra_jax_config", config_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Recipe.parse(module.get_config(preset))


def write_scale(config_file: Path, folder: Path) -> None:
    """Compiles what is wanted and not yet in FOLDER/scale.jsonl, a line each as it comes, with the table of FOLDER/scale.md.

    Lines of another step's code or other versions are dropped in the end: whoever wants them has them in the history.
    """
    path, page = folder / "scale.jsonl", folder / "scale.md"
    known = {line["key"]: line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    rows = [(key(row.case), row) for row in wanted(config_file)]
    missing = {mark for mark, _ in rows} - known.keys()

    def write_page() -> None:
        before, _, rest = page.read_text().partition(_BEGIN)
        made = table([(row.preset, row.change, known[mark]) for mark, row in rows if mark in known])
        write_whole(page, f"{before}{_BEGIN}\n{made}\n{_END}{rest.partition(_END)[2]}")

    write_page()
    for mark, row in rows:
        if mark in known:
            continue
        words = f"{row.preset} {row.change or ''} on {row.case.topology}, {row.case.effort} effort"
        print(f"{len(missing)} to do: {words} ...", file=sys.stderr, flush=True)
        known[mark] = result_of(row.case, known.values())
        missing.discard(mark)
        with open(path, "a") as file:
            file.write(json.dumps(known[mark]) + "\n")
        write_page()
    wanted_keys = {mark for mark, _ in rows}
    write_whole(path, "".join(json.dumps(line) + "\n" for mark, line in known.items() if mark in wanted_keys))


def result_of(case: Case, known: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The case's line: the figures of a known line for the same program, read by the same code, or else compiled now."""
    step = offline.lower(case)
    head = {"key": key(case), "program": program(step), "reading": code(READING), "versions": versions()}
    same = {**{name: head[name] for name in ("program", "reading", "versions")}, **offline.described(step)}
    for line in known:
        if all(name in line and line[name] == value for name, value in same.items()):
            print("  the program is that of another key: not compiled again", file=sys.stderr, flush=True)
            return {**line, "key": head["key"]}
    return {**head, **offline.compile_step(step)}


# --- What a line depends on


def key(case: Case) -> str:
    """Of all that decides a line, as it is known before the step is traced: config, topology, effort, versions, code."""
    recipe = case.recipe
    sections = {name: options.values(getattr(recipe, name)) for name in ("model", "masking", "objective", "optimizer", "parallel")}
    sections |= {"rows": [recipe.train.batch_rows, recipe.train.accumulation_steps, recipe.data.length]}
    return _sha256([sections, recipe.schedule.product, case.topology, case.effort, versions(), code(STEP)])[:16]


def program(step: Step) -> str:
    """Of what the compiler is given: the program without the source's lines, its options, the devices in their order, the versions."""
    devices = step.parts.devices.mesh.devices
    chosen = executors.compiler_options(step.parts.devices.mesh, offline.EFFORTS[step.case.effort])
    places = [step.case.topology, devices.shape, [device.id for device in devices.flat]]
    return _sha256([step.lowered.step.as_text(), chosen, places, versions()])


@functools.cache
def code(listed: tuple[str, ...], package: Path = _PACKAGE) -> str:
    """Of the code below `package` that `listed` (STEP or READING) names; comments and docstrings do not count.

    Raises FileNotFoundError where one is missing: a line must not keep its key when the code that it depends on has moved.
    """
    trees = [tree for name in listed for tree in _parsed(name, package)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return _sha256([ast.dump(tree) for tree in trees])


def _parsed(name: str, package: Path) -> list[ast.AST]:
    path, _, definition = name.partition("::")
    files = [package / path] if path.endswith(".py") else sorted((package / path).rglob("*.py"))
    trees: list[ast.AST] = [ast.parse(file.read_text()) for file in files if file.is_file()]
    if definition:
        trees = [node for tree in trees for node in tree.body if getattr(node, "name", None) == definition]
    if not trees:
        raise FileNotFoundError(f"{package} has no {name}, which offline/scale.py lists: list what took its place")
    return trees


def versions() -> dict[str, str]:
    """Of what compiles. Raises UserError where libtpu is not installed."""
    try:
        return {package: importlib.metadata.version(package) for package in ("jax", "libtpu")}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("libtpu, the TPU's compiler, is not installed: pip install 'electra_jax[tpu]'") from error


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- The table


def table(rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Markdown, a row for each (preset, change, result)."""
    out = [
        "| config | topology | rows x length | attention | peak GiB | of | arguments | collectives, a step | C | composite | effort |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for preset, change, result in rows:
        config = " ".join([preset, *(f"{name.split('.')[1]}={value}" for name, value in change.items())])
        moved = ", ".join(
            f"{found['count']} {kind} {found['bytes'] / 2**20:,.0f} MiB {'/'.join(found['dtypes'])}"
            for kind, found in result.get("collectives", {}).items()
            if found["bytes"] > 2**20
        )
        if not moved and result["fits"]:
            moved = "not readable" if "unreadable" in result else "none"
        peak = f"{result['peak_gib']:.2f}" if result["peak_gib"] else "more"
        share = [f"{result[name]:.1%}" if name in result else "" for name in ("utilisation_c", "utilisation_composite")]
        out.append(
            f"| {config} | {result['topology']} | {result['batch_rows']} x {result['length']} | {result['attention']} | {peak}"
            f"{'' if result['fits'] else ' does not fit'} | {result['hbm_gib']:.0f} "
            f"| {result.get('arguments_gib', result['state_gib']):.2f} | {moved} | {share[0]} | {share[1]} | {result['effort']} |"
        )
    return "\n".join(out)
