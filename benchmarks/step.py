"""The pretraining step beside the peers', and rows of real lengths: ours packed, theirs padded."""

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.processes import Side, Turns, measure, spread
from benchmarks.tables import Table, number, share, times
from electra_jax.recipe import Recipe

OURS, PEAK = "electra_jax", "matmul"
GetConfig = Callable[[str], Mapping[str, Any]]  # configs/pretrain.py's get_config


_TORCH = ("torch", "transformers")
_SDPA, _COMPILED = "transformers, SDPA", "transformers, SDPA, torch.compile"
_MLM = "transformers, ElectraForMaskedLM, SDPA"
# name -> (function of benchmarks/peers.py, its arguments, packages)
PEERS: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "transformers, eager attention": ("step", {"attention": "eager"}, _TORCH),
    _SDPA: ("step", {}, _TORCH),
    _COMPILED: ("step", {"compiled": True}, _TORCH),
    "transformers, SDPA, Gumbel noise": ("step", {"sampling": "gumbel"}, _TORCH),
    "transformers, all positions projected": ("step", {"projected": "all", "sampling": "gumbel"}, _TORCH),
    "txtai TokenDetection": ("txtai_step", {}, (*_TORCH, "txtai")),
    _MLM: ("mlm_step", {}, _TORCH),
}


_OF_ELECTRA = tuple(name for name in PEERS if name != _MLM)


class Case(NamedTuple):
    """One table. `rows`: a step's, such that a CPU takes seconds for it and both sides fit into 8 GB."""

    name: str
    preset: str  # configs/pretrain.py's argument
    rows: int
    length: int
    peers: tuple[str, ...]
    kind: str = "full"  # of our rows; the peers' are padded where ours are packed


CASES: Mapping[str, tuple[Case, ...]] = {
    "cpu": (
        Case("step small", "small", 32, 128, _OF_ELECTRA),
        Case("step mlm", "small,mlm", 32, 128, (_MLM,)),
        Case("step small_pp", "small_pp", 4, 512, (_SDPA,)),
        Case("step base", "base", 4, 512, (_SDPA,)),
        Case("packed small", "small", 8, 512, (_SDPA, _COMPILED), "packed"),
    ),
    "gpu": (
        Case("step small", "small,flash", 128, 128, _OF_ELECTRA),
        Case("step mlm", "small,mlm,flash", 128, 128, (_MLM,)),
        Case("step small_pp", "small_pp,flash", 128, 512, (_SDPA, _COMPILED)),
        Case("step base", "base,flash", 64, 512, (_SDPA, _COMPILED)),
        Case("packed small", "small,flash", 128, 512, (_SDPA, _COMPILED), "packed"),
    ),
}
PRESETS = ("small", "small_pp", "base")
STEPS = {"cpu": 1, "gpu": 20, "tpu": 20}  # a turn: an accelerator is waited for once in so many
CASES = {**CASES, "tpu": tuple(case._replace(peers=()) for case in CASES["gpu"])}


def recipe(get_config: GetConfig, preset: str, rows: int, length: int) -> Recipe:
    """The preset's, with so many rows of that length a step."""
    found = Recipe.parse(get_config(preset))
    train, data = dataclasses.replace(found.train, batch_rows=rows), dataclasses.replace(found.data, length=length)
    return dataclasses.replace(found, train=train, data=data)


def tables(
    get_config: GetConfig, environment: Mapping[str, Any], rounds: int, cache: str, presets: Container[str], what: str
) -> Iterator[Table]:
    """`what`: "step" or "packed". `cache`: a folder for compiled programs, so that ours compiles once and not once a peer."""
    for case in cases(environment["platform"], presets, what):
        yield table(case, recipe(get_config, case.preset, case.rows, case.length), environment, rounds, cache)


def cases(platform: str, presets: Container[str], what: str) -> list[Case]:
    """`what`: "step" or "packed"."""
    return [case for case in CASES[platform] if case.name.startswith(what) and case.preset.split(",")[0] in presets]


def table(case: Case, recipe: Recipe, environment: Mapping[str, Any], rounds: int, cache: str) -> Table:
    """A row a side. Ours meets each peer in a run of its own: two sides and the matrix product are all that memory must hold."""
    platform = environment["platform"]
    (peak, dtype), same = peak_side(platform), {"stored": recipe.stored(), "steps": STEPS[platform]}
    ours = Side(OURS, "benchmarks.ours:step", {**same, "kind": case.kind}, {"JAX_COMPILATION_CACHE_DIR": cache})
    kind = "padded" if case.kind == "packed" else case.kind
    theirs = [
        Side(name, f"benchmarks.peers:{function}", {**same, "kind": kind, **arguments}, needs=packages)
        for name, (function, arguments, packages) in PEERS.items()
        if name in case.peers
    ]
    groups = [[ours, side, peak] for side in theirs if not side.missing()] or [[ours, peak]]
    runs = [measure(group, rounds, optional=case.peers) for group in groups]
    pooled = {name: [sample for turns in runs for sample in turns.samples[name]] for name in (OURS, PEAK)}
    lines, failed = [_line(OURS, Turns(pooled, {}), environment)], {side.name: side.missing() for side in theirs}
    for turns in runs:
        lines += [_line(name, turns, environment) for name in turns.samples if name in case.peers]
        failed |= turns.failed
    lines += [[name, reason] for name, reason in failed.items() if reason]
    if dtype == "bfloat16" and not case.peers:
        lines.append(["transformers", "not measured: PyTorch does not run here on this device"])
    tera = spread([sample["flops"] / sample["wall"] for sample in pooled[PEAK]]).median / 1e12
    rows = "" if case.kind == "full" else ": film reviews, ours packed, the peers' padded, a review a row; padding is not counted"
    sheet = ("share of the data sheet's peak",) if environment["peak_bfloat16"] else ()
    return Table(
        case.name,
        f"`{case.preset}`, {case.rows} rows of {case.length}{rows}, {dtype}; {rounds} rounds, in which a matrix product reached "
        f"{number(tera)} TFLOP/s.",
        (
            "side",
            "s a step",
            "CPU-s",
            "tokens/s",
            "rows/s",
            "peak MiB",
            "ours in x of it, tokens/s",
            "ours in x of it, tokens a CPU-s",
            "share of the matrix product, wall",
            "CPU-s",
            *sheet,
        ),
        lines,
        {"case": case._asdict(), "runs": [turns.samples for turns in runs]},
    )


def peak_side(platform: str) -> tuple[Side, str]:
    """(the matrix product that a step is held against, the type of its numbers)."""
    dtype, size = ("float32", 4096) if platform == "cpu" else ("bfloat16", 16384)
    return Side(PEAK, "benchmarks.ours:matmul", {"dtype": dtype, "size": size}), dtype


def _line(side: str, turns: Turns, environment: Mapping[str, Any]) -> list[str]:
    ours, own, peaks = (turns.samples[name] for name in (OURS, side, PEAK))

    def utilisation(secs: str, flops_per_sec: float | None = None) -> str:
        """Of what a step must multiply, the same for every side with the same rows."""
        triples = zip(ours, own, peaks, strict=True)
        return share(spread([o["flops"] / s[secs] / (flops_per_sec or p["flops"] / p[secs]) for o, s, p in triples]))

    sheet = environment["peak_bfloat16"]
    return [
        side,
        *(number(turns.rate(side, secs, "steps").median) for secs in ("wall", "cpu")),
        number(turns.rate(side, "tokens").median),
        number(turns.rate(side, "rows").median),
        number(turns.peak(side)),
        *(times(turns.rates(OURS, side, "tokens", secs)) if side != OURS else "1" for secs in ("wall", "cpu")),
        utilisation("wall"),
        utilisation("cpu"),
        *([utilisation("wall", sheet)] if sheet else []),
    ]
