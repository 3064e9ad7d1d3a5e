"""How time and memory of a step grow with length, rows and layers, and the exponents: least squares on a log-log scale."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks import step
from benchmarks.processes import Side, Spread, Turns, measure, spread
from benchmarks.tables import Table, number, times
from electra_jax.recipe import Recipe

# A narrow model on a CPU, so that all of it takes minutes: what grows with what does not depend on the width.
MODELS: Mapping[str, dict[str, int]] = {"cpu": dict(hidden_size=128, num_layers=2, vocab_size=8192)}
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
ROWS = {"cpu": (1, 4, 16, 64, 128), "gpu": (1, 4, 16, 64, 256, 1024)}
LAYERS = (2, 4, 8, 16, 24)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """e of y ~ x^e."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def points(platform: str, tokens: int = 4096) -> dict[str, list[tuple[int, int, int, int]]]:
    """axis -> [(its value, rows, length, layers)]. The length grows at so many tokens a step, the rest at rows of 128."""
    layers = MODELS.get(platform, {}).get("num_layers", 12)
    return {
        "length": [(length, tokens // length, length, layers) for length in LENGTHS],
        "rows": [(rows, rows, 128, layers) for rows in ROWS.get(platform, ROWS["gpu"])],
        "layers": [(n, 8, 128, n) for n in LAYERS],
    }


def recipe(get_config: step.GetConfig, platform: str, rows: int, length: int, layers: int) -> Recipe:
    found = step.recipe(get_config, "small" if platform == "cpu" else "small,flash", rows, length)
    changes = {**MODELS.get(platform, {}), "num_layers": layers, "max_length": max(512, length)}
    return dataclasses.replace(found, model=dataclasses.replace(found.model, **changes))


def table(get_config: step.GetConfig, platform: str, rounds: int, memory_bytes: float | None) -> Table:
    """Each axis of `points` in a run of its own, its points interleaved; packed rows."""
    lines, figures = [], {}
    for axis, values in points(platform).items():
        given = {"kind": "packed", "steps": step.STEPS[platform]}
        sides = [
            Side(str(value), "benchmarks.ours:step", {"stored": recipe(get_config, platform, *shape).stored(), **given})
            for value, *shape in values
        ]
        turns = measure(sides, rounds, optional=[side.name for side in sides])  # the largest may not fit
        figures[axis] = turns.samples
        kept = [entry for entry in values if str(entry[0]) in turns.samples]
        for value, rows, length, layers in values:
            name, shape = str(value), f"{rows} x {length}, {layers} layers"
            if name in turns.failed:
                lines.append([axis, name, shape, turns.failed[name]])
                continue
            lines.append(
                [
                    axis,
                    name,
                    shape,
                    number(turns.rate(name, "tokens").median),
                    number(turns.rate(name, "wall", "steps").median),
                    number(turns.median(name, "program_mib")),
                    number(turns.peak(name)),
                ]
            )
        lines.append(_exponents(axis, kept, turns, memory_bytes))
    fields = ", ".join(f"{name}={value}" for name, value in MODELS.get(platform, {}).items())
    return Table(
        "growth",
        f"`small`{fields and ' made narrow: '}{fields}; packed rows, {rounds} rounds. The exponent e of y ~ x^e is fitted in each round:"
        " median and quartiles.",
        ("axis", "x", "rows x length", "tokens/s", "s a step", "MiB, as the compiler counts", "peak MiB of the process"),
        lines,
        figures,
    )


def _exponents(axis: str, kept: list[tuple], turns: Turns, memory_bytes: float | None) -> list[str]:
    xs, names = [entry[0] for entry in kept], [str(entry[0]) for entry in kept]
    if len(xs) < 2:
        return [f"{axis}: exponent", "", "", "fewer than two points"]

    def fit(figure: str) -> Spread:
        return spread([exponent(xs, [s[figure] for s in samples]) for samples in zip(*(turns.samples[n] for n in names), strict=True)])

    memory = [turns.median(name, "program_mib") for name in names]
    shape = ""
    if axis == "rows" and memory_bytes:
        slope, fixed = np.polyfit(xs, memory, 1)
        shape = f"{(memory_bytes / 2**20 - fixed) / slope:,.0f} rows would fill the device's {memory_bytes / 2**30:.0f} GiB"
    # At the same tokens a step, what a step takes and what a token takes grow alike.
    time = f"a {'token' if axis == 'length' else 'step'}'s s: {times(fit('wall'))}"
    return [f"{axis}: exponent", "", shape, "", time, f"{exponent(xs, memory):.2f}", f"{exponent(xs, [turns.peak(n) for n in names]):.2f}"]
