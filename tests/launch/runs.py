"""Real runs of launch/pretrain.py in processes of their own, on a model small enough to compile in seconds."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 60
FIELDS = {
    "model.vocab_size": 600,
    "model.max_length": 32,
    "model.embedding_size": 16,
    "model.hidden_size": 32,
    "model.num_layers": 1,
    "model.head_size": 16,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "data.length": 32,
    "train.batch_rows": 8,
    "train.steps": STEPS,
    "schedule.warmup_steps": 6,
    "log.every_steps": 1,
    "log.tensorboard": False,
    "eval.every_steps": 20,
    "eval.max_rows": 64,
    "eval.batch_rows": 32,
    "eval.rank_rows": 0,
    "checkpoint.every_steps": 7,
}


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
    """So many fake devices, and a compilation cache shared by the runs of a test: the same program is compiled once."""
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
    cached |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_NUM_CPU_DEVICES": str(devices)}
    return {**os.environ, **cached, "PYTHONPATH": str(ROOT)}


def command(workdir, rows, *more: str, **fields) -> list[str]:
    overrides = {**FIELDS, "data.path": rows, **fields}
    return [
        sys.executable,
        str(ROOT / "launch" / "pretrain.py"),
        f"--config={ROOT}/configs/pretrain.py:tiny",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
        *more,
    ]


def run(workdir, rows, cache, *more: str, **fields) -> subprocess.CompletedProcess:
    return subprocess.run(command(workdir, rows, *more, **fields), env=environment(cache), capture_output=True, text=True, timeout=300)


def learned(workdir) -> list[dict]:
    """The lines of metrics.jsonl without the clock's own figures."""
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("clock/") and k != "crc32"} for line in lines]
    return [line for line in kept if len(line) > 1]


def state_bytes(workdir) -> dict[str, bytes]:
    """The newest checkpoint's state, leaf by leaf, as its bytes; read by Orbax alone."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    steps = [path for path in (pathlib.Path(workdir) / "checkpoints").iterdir() if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    state = ocp.load_checkpointables(newest.absolute(), {"state": None})["state"]
    return {"step": newest.name.encode(), **{name: np.asarray(leaf).tobytes() for name, leaf in state.items()}}
