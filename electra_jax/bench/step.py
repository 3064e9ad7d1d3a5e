"""The pretraining step beside the peers', and rows of real lengths: ours packed, theirs padded."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from electra_jax.bench import peers
from electra_jax.bench.processes import Side, Spread, Turns, measure, spread
from electra_jax.bench.tables import Table, number, share, times
from electra_jax.cli import UserError

OURS, PEAK = "electra_jax", "matmul"
GetConfig = Callable[[str], Mapping[str, Any]]  # configs/pretrain.py's get_config


class Peer(NamedTuple):
    function: str
    arguments: Mapping[str, Any]
    package: str = "transformers"


PEERS: Mapping[str, Peer] = {
    "transformers, eager attention": Peer("step", {"attention": "eager"}),
    "transformers, SDPA": Peer("step", {"attention": "sdpa"}),
    "transformers, SDPA, torch.compile": Peer("step", {"attention": "sdpa", "compiled": True}),
    "transformers, all positions projected": Peer("step", {"attention": "sdpa", "projected": "all"}),
    "txtai TokenDetection": Peer("txtai_step", {}, "txtai"),
}
_SDPA, _COMPILED = "transformers, SDPA", "transformers, SDPA, torch.compile"


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
        Case("step small", "small", 32, 128, tuple(PEERS)),
        Case("step small_pp", "small_pp", 4, 512, (_SDPA,)),
        Case("step base", "base", 4, 512, (_SDPA,)),
        Case("packed small", "small", 8, 512, (_SDPA, _COMPILED), "packed"),
    ),
    "gpu": (
        Case("step small", "small,flash", 128, 128, tuple(PEERS)),
        Case("step small_pp", "small_pp,flash", 128, 512, (_SDPA, _COMPILED)),
        Case("step base", "base,flash", 64, 512, (_SDPA, _COMPILED)),
        Case("packed small", "small,flash", 128, 512, (_SDPA, _COMPILED), "packed"),
    ),
}
CASES = {**CASES, "tpu": tuple(case._replace(peers=()) for case in CASES["gpu"])}


def config(get_config: GetConfig, preset: str, rows: int, length: int) -> dict[str, Any]:
    """The preset's, with so many rows of that length a step."""
    found = json.loads(json.dumps(get_config(preset).to_dict()))
    found["train"]["batch_rows"], found["data"]["length"] = rows, length
    return found


def tables(get_config: GetConfig, platform: str, rounds: int, cache: str, presets: tuple[str, ...], what: str) -> Iterator[Table]:
    """`what`: "step" or "packed". `cache`: a folder for compiled programs, so that ours compiles once and not once a peer."""
    for case in CASES[platform]:
        if case.name.startswith(what) and case.preset.split(",")[0] in presets:
            yield table(case, config(get_config, case.preset, case.rows, case.length), platform, rounds, cache)


def table(case: Case, config: Mapping[str, Any], platform: str, rounds: int, cache: str) -> Table:
    """A row a side. Ours meets each peer in a run of its own: two sides and the matrix product are all that memory must hold."""
    dtype = "float32" if platform == "cpu" else "bfloat16"
    ours = Side(OURS, "electra_jax.bench.ours:step", {"config": config, "kind": case.kind}, {"JAX_COMPILATION_CACHE_DIR": cache})
    peak = Side(PEAK, "electra_jax.bench.ours:matmul", {"dtype": dtype, "size": 4096 if platform == "cpu" else 16384})
    met: dict[str, Turns] = {}
    lines: list[list[str]] = []
    for name in case.peers:
        peer = PEERS[name]
        if reason := peers.missing(peer.package):
            lines.append([name, *_blank(reason)])
            continue
        kind = "padded" if case.kind == "packed" else case.kind
        side = Side(name, f"electra_jax.bench.peers:{peer.function}", {"config": config, "kind": kind, **peer.arguments})
        turns = measure([ours, side, peak], rounds)
        if reason := turns.failed.get(name):
            lines.append([name, *_blank(reason)])
        _require(turns, OURS, PEAK)
        met[name] = turns
        if name in turns.samples:
            lines.append(_line(name, turns))
    if not any(turns for turns in met.values()):
        met[OURS] = measure([ours, peak], rounds)
        _require(met[OURS], OURS, PEAK)
    everything = Turns(
        {side: [sample for turns in met.values() for sample in turns.samples[side]] for side in (OURS, PEAK)}, {}
    )
    lines.insert(0, _line(OURS, everything))
    tera = everything.rate(PEAK, "flops").median / 1e12
    rows = "" if case.kind == "full" else ": film reviews, ours packed, the peers' padded, a review a row; padding is not counted"
    return Table(
        case.name,
        f"`{case.preset}`, {case.rows} rows of {case.length}{rows}, {dtype}; {rounds} rounds, in which a matrix product reached "
        f"{number(tera)} TFLOP/s.",
        ("side", "wall s", "CPU-s", "tokens/s", "rows/s", "peak MiB", "ours in x of it, tokens/s", "ours in x of it, tokens a CPU-s",
         "share of the matrix product, wall", "CPU-s"),
        lines,
        {"case": case._asdict(), "runs": {name: turns.samples for name, turns in met.items()}},
    )  # fmt: skip


def _line(side: str, turns: Turns) -> list[str]:
    ours = turns.samples[OURS]
    ratios = [times(turns.rates(OURS, side, "tokens")), times(turns.rates(OURS, side, "tokens", "cpu"))] if side != OURS else ["1", "1"]
    return [
        side,
        number(turns.median(side, "wall")),
        number(turns.median(side, "cpu")),
        number(turns.rate(side, "tokens").median),
        number(turns.rate(side, "rows").median),
        number(turns.peak(side)),
        *ratios,
        *(share(_utilisation(ours, turns.samples[side], turns.samples[PEAK], secs)) for secs in ("wall", "cpu")),
    ]


def _utilisation(ours, samples, peaks, secs: str) -> Spread:
    """The share of the matrix product's rate: what a step must multiply, the same for every side with the same rows."""
    return spread([o["flops"] / s[secs] / (p["flops"] / p[secs]) for o, s, p in zip(ours, samples, peaks, strict=True)])


def _blank(reason: str) -> list[str]:
    return [reason, *[""] * 8]


def _require(turns: Turns, *sides: str) -> None:
    for side in sides:
        if side in turns.failed:
            raise UserError(f"{side}: {turns.failed[side]}")
