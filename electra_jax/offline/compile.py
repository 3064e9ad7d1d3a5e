"""Compiles a config's train step for a TPU that is not there, and says what it would need: memory, traffic, time.

libtpu holds the whole compiler. What it says of memory and of collectives is what runs; of time it gives two estimates, and the
truth on a chip lies between them:

- C: the cycles of every scheduled operation as the compiler prices them ("CLASSIC"), and of each Pallas kernel as its simulator
  counts them ("STATIC-LLO"). Pessimistic: elementwise work is charged 2 to 25 times too much. No collectives.
- composite: matrix products as C, everything else at 80% of the memory's bandwidth, collectives at half of the links' sum.
  Optimistic: no stalls, and no arithmetic outside of matrix products.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from electra_jax import pretrain, rng
from electra_jax.cli import UserError, one_line
from electra_jax.models.config import REMAT
from electra_jax.objectives import masking
from electra_jax.offline import hlo, simulator, topology
from electra_jax.parallel import executors, mesh
from electra_jax.train import optimizer
from electra_jax.watch import clock

# low is XLA's O1: a fifth of the time. Its peak of memory is about that of full effort (0 to 2% above it in docs/scale.md's rows of base),
# and of speed it says nothing. (exec_time_optimization_effort changes neither time nor result.)
EFFORTS = {"full": {}, "low": {"optimization_level": 19}}
SHARE_OF_HBM_BANDWIDTH = 0.8
_SHARE = "/chip"


@dataclasses.dataclass(frozen=True)
class Chip:
    clock_hz: float
    hbm_bytes_per_sec: float
    link_bytes_per_sec: float  # half of the sum of a chip's links


# Clocks: scale measurements of one matmul (v6e assumed); bandwidths: cloud.google.com/tpu/docs.
CHIPS = {
    "TPU v4": Chip(1.05e9, 1228e9, 150e9),
    "TPU v5 lite": Chip(1.503e9, 819e9, 100e9),
    "TPU v5": Chip(1.75e9, 2765e9, 300e9),
    "TPU v6 lite": Chip(1.75e9, 1640e9, 224e9),
}


def compile_for(config: Mapping[str, Any], name: str, effort: str = "full", estimate: bool = True) -> dict[str, Any]:
    """What one step of the config needs on the topology `name` ("v5e:4x4"); JSON values, `fits` among them.

    "v5e:4x4/chip" is one chip's share of it: a sixteenth of the rows on one device, without collectives.
    estimate: also the time, at full effort alone. Raises UserError for an unknown topology or a config that cannot be run.
    """
    config = json.loads(json.dumps(config))
    slices, devices = topology.devices(name.removesuffix(_SHARE))
    if name.endswith(_SHARE):
        config["train"]["batch_rows"] //= len(devices)
        config["parallel"] |= {"slices": 1, "data": 1, "fsdp": 1}
        slices, devices = 1, devices[:1]
    if slices > 1 and config["parallel"]["slices"] == 1:
        config["parallel"]["slices"] = slices
    section, train = config["parallel"], config["train"]
    devices = mesh.make_mesh(section["slices"], section["data"], section["fsdp"], devices)
    executor = executors.choose(section["executor"], devices)
    executors.check_batch(devices, train["batch_rows"], train["accumulation_steps"])
    platform = mesh.Platform.of(devices)
    model = pretrain.model_config(config, platform)
    vocabulary = masking.Vocabulary(101, 102, 103, np.zeros(model.vocab_size, bool))
    objective = pretrain.make_objective(config, model, vocabulary, platform)
    schedule = pretrain.schedule_config(config)
    rule = optimizer.make_optimizer(pretrain.optimizer_config(config), schedule, train["steps"])
    root = rng.root_key(config["seed"])
    _, abstract_state = pretrain.make_init(objective, rule, devices, root)
    body = pretrain.make_step(config, objective, rule, schedule, root, executor)
    batch = pretrain.abstract_batch(train["batch_rows"], config["data"]["length"])
    flops = objective.flops(train["batch_rows"]) / devices.size
    result = {
        "topology": name,
        "device": platform.device_kind,
        "chips": devices.size,
        "mesh": {axis: size for axis, size in devices.shape.items() if size > 1},
        "executor": executor,
        "attention": model.attention,
        "remat": model.remat,
        "scan_layers": model.scan_layers,
        "batch_rows": train["batch_rows"],
        "length": config["data"]["length"],
        "accumulation_steps": train["accumulation_steps"],
        "effort": effort,
        "hbm_gib": (mesh.device_memory_bytes(devices) or 0) / 2**30,
        "state_gib": sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(abstract_state)) / 2**30,
        "flops_per_chip": flops,
    }
    priced, kernels = effort == "full" and estimate and platform.device_kind in CHIPS, None
    if priced:  # before the compiler, because each of the two wants gigabytes
        rows = train["batch_rows"] // devices.size // train["accumulation_steps"]
        kernels = simulator.kernel_cycles(name.removesuffix(_SHARE), model, rows, config["data"]["length"])
        kernels = kernels and kernels * train["accumulation_steps"]
    start = time.monotonic()
    try:
        program = executors.compile_step(body, abstract_state, batch, devices, executor, EFFORTS[effort])
    except executors.TooLarge as error:
        need_gib = error.need_bytes / 2**30 if error.need_bytes else None
        return result | {"fits": False, "peak_gib": need_gib, "compile_secs": time.monotonic() - start}
    usage = program.compiled.memory_analysis()
    result |= {
        "fits": True,
        "peak_gib": program.peak_bytes / 2**30,
        "arguments_gib": usage.argument_size_in_bytes / 2**30,
        "temporaries_gib": usage.temp_size_in_bytes / 2**30,
        "compile_secs": program.compile_secs,
    }
    try:
        module = hlo.Module(program.compiled.as_text())
    except jax.errors.JaxRuntimeError as error:  # seen on v6e: an instruction that XLA cannot print
        return result | {"unreadable": one_line(error)[:200]}
    found = hlo.collectives(module)
    result["collectives"] = {
        kind: {
            "count": sum(c.times for c in found if c.kind == kind),
            "bytes": sum(c.times * c.bytes_once for c in found if c.kind == kind),
            "in_loops": sum(c.times for c in found if c.kind == kind and c.depth),
            "dtypes": sorted({dtype for c in found if c.kind == kind for dtype in c.dtypes}),
            "largest_elements": max(c.elements for c in found if c.kind == kind),
        }
        for kind in sorted({c.kind for c in found})
    }
    if priced:
        result |= estimates(module, platform.device_kind, flops, kernels, found)
    return result


def estimates(module: hlo.Module, device_kind: str, flops: float, kernels: float | None, found: Sequence[hlo.Collective]) -> dict[str, Any]:
    """The two estimates of a step, in seconds and as the share of the chip's peak that the model's own FLOPs are."""
    chip, peak = CHIPS[device_kind], clock.peak_flops(device_kind, "bfloat16")
    operations = list(hlo.priced(module))
    classic = sum(op.cycles * op.times for op in operations)
    products = sum(op.cycles * op.times for op in operations if op.multiplies)
    moved = sum(op.bytes_hbm * op.times for op in operations if op.cycles and not op.multiplies)
    links = sum(max(c.bytes_once, c.bytes_made) * c.times for c in found)  # a gather sends a part and gets the whole
    kernel_secs = (kernels or 0) / chip.clock_hz
    c_secs = classic / chip.clock_hz + kernel_secs
    composite_secs = (
        products / chip.clock_hz + kernel_secs + moved / (SHARE_OF_HBM_BANDWIDTH * chip.hbm_bytes_per_sec) + links / chip.link_bytes_per_sec
    )
    return {
        "cycles_classic": classic,
        "cycles_matrix_products": products,
        "cycles_kernels": kernels,
        "secs_c": c_secs,
        "secs_composite": composite_secs,
        "utilisation_c": flops / c_secs / peak,
        "utilisation_composite": flops / composite_secs / peak,
    }


# --- What to change where it does not fit


def knobs(config: Mapping[str, Any], chips: int) -> Iterator[dict[str, Any]]:
    """Overrides of the config, each the one before and a little more, the cheapest first: attention, accumulation, remat, fsdp."""
    change: dict[str, Any] = {}
    if config["model"]["attention_dropout"] > 0:
        change["model.attention_dropout"] = 0.0
        yield dict(change)
    accumulation_steps, given_fsdp = config["train"]["accumulation_steps"], config["parallel"]["fsdp"]
    rows = config["train"]["batch_rows"] // (chips * accumulation_steps)
    for factor in (2, 4):
        if rows % factor == 0:
            yield change | {"train.accumulation_steps": accumulation_steps * factor}
    for remat in REMAT[REMAT.index(config["model"]["remat"]) + 1 :]:
        change["model.remat"] = remat
        yield dict(change)
    sizes = [2**n for n in range(1, chips.bit_length()) if chips % 2**n == 0 and config["model"]["hidden_size"] % 2**n == 0]
    for fsdp in sizes:
        if 0 < given_fsdp < fsdp:
            change |= {"parallel.fsdp": fsdp} | ({} if config["parallel"]["data"] == -1 else {"parallel.data": -1})
            yield dict(change)
    factor = 2
    while rows % factor == 0:
        yield change | {"train.accumulation_steps": accumulation_steps * factor}
        factor *= 2


def suggest(config: Mapping[str, Any], name: str, report: Callable[[dict[str, Any], dict[str, Any]], None]) -> dict[str, Any] | None:
    """The first of `knobs` with which the step fits, compiled at low effort; None where none does. `report` hears of each try."""
    chips = len(topology.devices(name.removesuffix(_SHARE))[1])
    for change in knobs(config, chips):
        if name.endswith(_SHARE) and "parallel.fsdp" in change:
            continue
        with contextlib.suppress(UserError):  # a mesh that this config cannot have
            result = compile_for(override(config, change), name, "low", estimate=False)
            report(change, result)
            if result["fits"]:
                return change
    return None


def override(config: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    for path, value in change.items():
        section, field = path.split(".")
        config[section][field] = value
    return config


def advice(config: Mapping[str, Any], result: Mapping[str, Any], found: Mapping[str, Any] | None, tried: bool) -> str:
    """One line for a person: what to change where it does not fit."""
    if found:
        return "fits with " + " ".join(f"--config.{name}={value}" for name, value in found.items())
    if tried:
        return "nothing that was tried makes it fit: more chips, or a smaller --config.train.batch_rows"
    first = next(knobs(config, result["chips"]), {})
    words = " ".join(f"--config.{name}={value}" for name, value in first.items())
    return (
        f"does not fit: {words + ' is the cheapest knob, ' if words else ''}then model.remat, train.accumulation_steps, "
        "parallel.fsdp; --suggest tries them"
    )


def tell(change: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """A line about one try of `suggest`."""
    words = " ".join(f"{name}={value}" for name, value in change.items())
    need = f"{result['peak_gib']:.1f} GiB" if result["peak_gib"] else "too much"
    print(f"  with {words}: {need}, {'fits' if result['fits'] else 'does not fit'}", file=sys.stderr, flush=True)


def lines(result: Mapping[str, Any]) -> list[str]:
    """A result for people."""
    mesh_words = " x ".join(f"{axis}={size}" for axis, size in result["mesh"].items()) or "one chip"
    peak = f"{result['peak_gib']:.2f} of" if result["peak_gib"] else "above the"
    out = [
        f"{result['topology']}: {result['chips']} x {result['device']}, {mesh_words}, {result['executor']}, "
        f"attention {result['attention']}, {result['batch_rows']} rows of {result['length']}",
        f"  memory a chip: {'fits' if result['fits'] else 'DOES NOT FIT'}, peak {peak} {result['hbm_gib']:.0f} GiB"
        + (f" (arguments {result['arguments_gib']:.2f}, temporaries {result['temporaries_gib']:.2f})" if result["fits"] else ""),
    ]
    for kind, found in result.get("collectives", {}).items():
        loops = f", {found['in_loops']} within loops" if found["in_loops"] else ""
        out.append(f"  {kind}: {found['count']} a step, {found['bytes'] / 2**20:,.1f} MiB, {'/'.join(found['dtypes'])}{loops}")
    if "unreadable" in result:
        out.append(f"  its text cannot be read ({result['unreadable']}): no collectives and no estimates")
    out.append(f"  {result['flops_per_chip']:.3g} model FLOPs a chip and step; compiled in {result['compile_secs']:.0f} s")
    if "secs_c" in result:
        out.append(
            f"  a step: C {1e3 * result['secs_c']:.1f} ms = {result['utilisation_c']:.1%} of the peak (pessimistic, no collectives), "
            f"composite {1e3 * result['secs_composite']:.1f} ms = {result['utilisation_composite']:.1%} (optimistic)"
        )
    return out


# --- Results: one line a compile, and the table of docs/scale.md


def versions() -> dict[str, str]:
    try:
        return {package: importlib.metadata.version(package) for package in ("jax", "libtpu")}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("libtpu, the TPU's compiler, is not installed: pip install 'electra_jax[tpu]'") from error


_ROOT = Path(__file__).parent
_STEP = (
    "config.py",
    "hlo.py",
    "models",
    "objectives",
    "parallel/executors.py",
    "parallel/mesh.py",
    "parallel/sharding.py",
    "pretrain.py",
    "rng.py",
    "simulator.py",
    "train/clock.py",
    "train/optimizer.py",
    "train/step.py",
    "types.py",
)
_OF_THIS_FILE = ("EFFORTS", "SHARE_OF_HBM_BANDWIDTH", "Chip", "CHIPS", "compile_for", "estimates")


@functools.cache
def step_code(root: Path = _ROOT) -> str:
    """A hash of the code below `root` that the compiled step and its estimates are made of: comments and docstrings do not count."""
    parts: list[ast.AST] = [
        ast.parse(path.read_text())
        for path in sorted(file for name in _STEP for file in [root / name, *(root / name).rglob("*.py")] if file.is_file())
    ]
    for node in ast.parse((root / "aot.py").read_text()).body:
        names = {getattr(node, "name", None), *(getattr(target, "id", None) for target in getattr(node, "targets", ()))}
        parts += [node] if names & set(_OF_THIS_FILE) else []
    digest = hashlib.sha256()
    for part in parts:
        for node in ast.walk(part):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(part).encode())
    return digest.hexdigest()


def key(config: Mapping[str, Any], name: str, effort: str) -> str:
    """What a result depends on: all of the config and of the code that the compiled step does, the topology, the effort, the versions."""
    sections = {section: config[section] for section in ("model", "masking", "objective", "optimizer", "parallel")}
    sections |= {"rows": [config["train"]["batch_rows"], config["train"]["accumulation_steps"], config["data"]["length"]]}
    words = json.dumps([sections, config["schedule"]["product"], name, effort, versions(), step_code()], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


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


def wanted() -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """(preset, topology, overrides, effort) of the table."""
    for preset, names in _PRESETS.items():
        yield from ((preset, name, {}, "low") for name in names)
    yield from ((*one, "low") for one in _FSDP)
    yield from ((*one, "full") for one in _FULL)


def write_scale(config_file: Path, folder: Path) -> None:
    """Compiles what is wanted and not yet in FOLDER/scale.jsonl, a line each as it comes, with the table of FOLDER/scale.md.

    Lines of another step's code or other versions are dropped in the end: whoever wants them has them in the history.
    """
    path, page = folder / "scale.jsonl", folder / "scale.md"
    known = {row["key"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    cases = [(preset, name, change, effort, override(_load(config_file, preset), change)) for preset, name, change, effort in wanted()]
    keys = {key(config, name, effort) for _, name, _, effort, config in cases}
    missing = keys - known.keys()

    def write_page() -> None:
        rows = [(preset, change, known.get(key(config, name, effort))) for preset, name, change, effort, config in cases]
        before, _, rest = page.read_text().partition(_BEGIN)
        page.write_text(before + _BEGIN + "\n" + table([row for row in rows if row[2]]) + "\n" + _END + rest.partition(_END)[2])

    write_page()
    for preset, name, change, effort, config in cases:
        mark = key(config, name, effort)
        if mark in known:
            continue
        print(f"{len(missing)} to compile: {preset} {change or ''} on {name}, {effort} effort ...", file=sys.stderr, flush=True)
        known[mark] = {"key": mark, "versions": versions(), **compile_for(config, name, effort)}
        missing.discard(mark)
        with open(path, "a") as file:
            file.write(json.dumps(known[mark]) + "\n")
        write_page()
    path.write_text("".join(json.dumps(row) + "\n" for mark, row in known.items() if mark in keys))


_BEGIN, _END = "<!-- make scale -->", "<!-- end -->"


def _load(config_file: Path, preset: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("electra_jax_config", config_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset).to_dict()


def table(rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Markdown, a row a compile."""
    out = [
        "| config | topology | rows x length | attention | peak GiB | of | arguments | collectives, a step | C | composite | effort |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for preset, change, row in rows:
        config = " ".join([preset, *(f"{name.split('.')[1]}={value}" for name, value in change.items())])
        moved = ", ".join(
            f"{found['count']} {kind} {found['bytes'] / 2**20:,.0f} MiB {'/'.join(found['dtypes'])}"
            for kind, found in row.get("collectives", {}).items()
            if found["bytes"] > 2**20
        )
        if not moved and row["fits"]:
            moved = "not readable" if "unreadable" in row else "none"
        peak = f"{row['peak_gib']:.2f}" if row["peak_gib"] else "more"
        share = [f"{row[name]:.1%}" if name in row else "" for name in ("utilisation_c", "utilisation_composite")]
        out.append(
            f"| {config} | {row['topology']} | {row['batch_rows']} x {row['length']} | {row['attention']} | {peak}"
            f"{'' if row['fits'] else ' does not fit'} | {row['hbm_gib']:.0f} | {row.get('arguments_gib', row['state_gib']):.2f} "
            f"| {moved} | {share[0]} | {share[1]} | {row['effort']} |"
        )
    return "\n".join(out)
