"""From the start of a process to its first finished step: launch/pretrain.py without and with compiled programs on disk, and the peers."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from benchmarks.processes import Side, Spread, first_turn_secs, spread
from benchmarks.tables import Table, number, times
from electra_jax.cli import UserError
from electra_jax.recipe import Recipe
from electra_jax.store import names

LIMIT_SECS = 900
_COLD, _AGAIN = "electra_jax, nothing compiled before", "electra_jax, again, with its compilation cache"


def table(root: pathlib.Path, recipe: Recipe, preset: str, rows: pathlib.Path, rounds: int) -> Table:
    """`rows`: a prepared folder of the preset's length and vocabulary; `root`: where launch/ and configs/ lie."""
    secs: dict[str, list[float]] = {_COLD: [], _AGAIN: []}
    cold: list[dict[str, float]] = []
    theirs = {
        "transformers, SDPA": {},
        "transformers, SDPA, torch.compile": {"compiled": True},
        "transformers, SDPA, torch.compile, again, with its cache": {"compiled": True},
    }
    failed: dict[str, str] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in (_COLD, _AGAIN):
                taken = first_step_secs(root, preset, recipe, rows, pathlib.Path(folder), "cold" if name == _COLD else "again")
                secs[name].append(taken["first_step"])
                cold += [taken] if name == _COLD else []
            for name, arguments in theirs.items():
                if name in failed:
                    continue
                side = Side(
                    name,
                    "benchmarks.peers:step",
                    {"stored": recipe.stored(), **arguments},
                    {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"},
                    ("torch", "transformers"),
                )
                try:
                    secs.setdefault(name, []).append(first_turn_secs(side))
                except UserError as error:
                    failed[name] = str(error)
    again = secs[_AGAIN]
    compiling, its_step = (number(spread([taken[what] for taken in cold]).median) for what in ("compile", "compile_step"))
    lines = [
        [name, times(spread(values)), "1" if name == _AGAIN else times(_ratio(values, again))] for name, values in secs.items() if values
    ]
    return Table(
        "startup",
        f"`{preset}`, {recipe.train.batch_rows} rows of {recipe.data.length}, from the start of the process to the end of its "
        f"first step; {rounds} rounds. Of ours without a cache {compiling} s are compiling: {its_step} s the step, the rest its "
        "evaluation.",
        ("start", "s to the first finished step", "in x of ours with its cache"),
        [*lines, *map(list, failed.items())],
        {"secs": secs, "cold": cold},
    )


def _ratio(values: list[float], base: list[float]) -> Spread:
    return spread([a / b for a, b in zip(values, base, strict=False)])


def first_step_secs(
    root: pathlib.Path, preset: str, recipe: Recipe, rows: pathlib.Path, folder: pathlib.Path, run: str
) -> dict[str, float]:
    """A real launch/pretrain.py of one step, its compiled programs in FOLDER/cache. UserError where it fails."""
    workdir = folder / run
    overrides = {
        "data.path": rows,
        "data.length": recipe.data.length,
        "model.vocab_size": recipe.model.vocab_size,
        "train.batch_rows": recipe.train.batch_rows,
        "train.steps": 1,
        "schedule.warmup_steps": 0,
        "log.every_steps": 1,
        "eval.max_rows": 32,
    }
    command = [
        sys.executable,
        str(root / "launch" / "pretrain.py"),
        f"--config={root / 'configs' / 'pretrain.py'}:{preset}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]
    log, metrics = folder / f"{run}.log", workdir / names.METRICS
    start = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        )
        try:
            while process.poll() is None and '"train/loss"' not in _text(metrics):  # written as the step ends, before evaluation
                if time.monotonic() - start > LIMIT_SECS:
                    break
                time.sleep(0.02)
            first_step = time.monotonic() - start
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_SECS)
        finally:
            process.kill()
            process.wait()
    line = next((line for line in _text(metrics).splitlines() if '"train/loss"' in line), None)
    if line is None:
        raise UserError(f"launch/pretrain.py made no step: {' '.join(_text(log).strip().splitlines()[-1:])}")
    step_secs = float(re.search(r"compiled in (\d+)s", _text(log))[1])  # of the plan, which is about the step alone
    return {"first_step": first_step, "compile": json.loads(line)["clock/secs_compile"], "compile_step": step_secs}


def _text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
