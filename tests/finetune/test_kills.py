"""launch/finetune.py with five seeds, killed with kill -9 and started again, against a run that nothing befell: `make kill`."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from electra_jax.interop import formats, names
from tests import tiny
from tests.launch import runs
from tests.tiny import WORDS

pytestmark = pytest.mark.slow
SEEDS, STEPS = (5, 6, 7, 8, 9), 40
FIELDS = {
    "seed": SEEDS[0],
    "seeds": len(SEEDS),
    "optimizer.learning_rate": 3e-3,
    "train.batch_rows": 8,
    "train.steps": STEPS,
    "log.every_steps": 1,
    "log.tensorboard": False,
    "eval.every_steps": 15,
    "eval.batch_rows": 16,
    "checkpoint.every_steps": 7,
    "checkpoint.keep": 1,
    "finetune.length": 24,
    "finetune.row_lengths": 2,
    "finetune.keep": "all",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """A tiny model with dropout, and a table: the first half of the words, or the second, with a tenth of the labels wrong."""
    folder, r = tmp_path_factory.mktemp("files"), random.Random(0)
    tiny.save_words(folder / "model")
    (folder / "table").mkdir()
    for name, count in (("train", 150), ("dev", 60), ("test", 30)):
        with open(folder / "table" / f"{name}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"] if name != "test" else ["text"])
            for _ in range(count):
                half = r.randrange(2)
                text = " ".join(r.choice(WORDS[20 * half :][:20]) for _ in range(r.randrange(2, 21)))
                label = ("low", "high")[half if r.random() < 0.9 else 1 - half]
                table.writerow([text, label] if name != "test" else [text])
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("compilation_cache")


def start(workdir, files, cache, stderr, *more: str, devices: int = 1) -> subprocess.Popen:
    command = [
        sys.executable,
        str(runs.ROOT / "launch" / "finetune.py"),
        f"--config={runs.ROOT}/configs/finetune.py:own",
        f"--workdir={workdir}",
        f"--config.init_from={files / 'model'}",
        f"--config.task.path={files / 'table'}",
        *(f"--config.{name}={value}" for name, value in FIELDS.items()),
        *more,
    ]
    return subprocess.Popen(command, env=runs.environment(cache, devices), stdout=subprocess.DEVNULL, stderr=stderr, text=True)


def finish(workdir, files, cache) -> float:
    """Seconds."""
    began = time.monotonic()
    process = start(workdir, files, cache, subprocess.PIPE)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(files, cache, tmp_path_factory):
    """(workdir, seconds of a second such run, which finds everything compiled)."""
    folder = tmp_path_factory.mktemp("runs")
    finish(folder / "undisturbed", files, cache)
    secs = finish(folder / "again", files, cache)
    assert_same(folder / "again", folder / "undisturbed")
    return folder / "undisturbed", secs


def models(workdir) -> dict[str, dict[str, bytes]]:
    return {path.name: runs.state_bytes(path) for path in workdir.glob("model*")}


def assert_same(workdir, other) -> None:
    """To the bit: what was learned, on the way and in the end, what was found, and no litter."""
    assert runs.learned(workdir) == runs.learned(other)
    assert runs.state_bytes(workdir) == runs.state_bytes(other)
    found, wanted = models(workdir), models(other)
    assert set(wanted) == {"model", *(f"model-seed{seed}" for seed in SEEDS)} and found == wanted
    assert (workdir / "results.json").read_bytes() == (other / "results.json").read_bytes()
    predictions = {path.name: path.read_bytes() for path in (other / "predictions").iterdir()}
    assert set(predictions) == {"dev.tsv", "test.tsv"}
    assert {path.name: path.read_bytes() for path in (workdir / "predictions").iterdir()} == predictions
    assert {path.name for path in workdir.iterdir()} == {path.name for path in other.iterdir()}


# --- Moments


@dataclasses.dataclass
class Run:
    """One that is under way."""

    workdir: pathlib.Path
    said: pathlib.Path
    lines_bytes: int  # of metrics.jsonl then
    began: float  # time.time()


def is_compiling(run: Run) -> bool:
    return "compiling the step" in run.said.read_text()


def trains(run: Run) -> bool:
    """With a checkpoint behind it, and steps of its own since it began."""
    folder = run.workdir / "checkpoints"
    saved = folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())
    return saved and metrics_bytes(run.workdir) > run.lines_bytes + 2000


def metrics_bytes(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def is_saving(run: Run) -> bool:
    """A save of its own: one that was killed lies about until the next."""
    folder = run.workdir / "checkpoints"
    unfinished = [path for path in folder.iterdir() if not path.name.isdigit()] if folder.is_dir() else []
    with contextlib.suppress(FileNotFoundError):  # finished meanwhile
        return any(path.stat().st_mtime > run.began for path in unfinished)
    return False


def writes_models(run: Run) -> bool:
    """Or has just written one: a busy machine may not look while it does."""
    with contextlib.suppress(FileNotFoundError):  # in its place meanwhile
        return any(path.stat().st_mtime > run.began for pattern in (".model*", "model*") for path in run.workdir.glob(pattern))
    return False


def writes_predictions(run: Run) -> bool:
    return any(path.stat().st_mtime > run.began for path in (run.workdir / "predictions").glob("*.tsv"))


def kill(workdir, files, cache, tmp_path, moment: Callable[[Run], bool], more_secs: float) -> str:
    """Kills it so many seconds after the moment, and returns what it had said. Fails where it ends before."""
    said = tmp_path / "said"
    run = Run(workdir, said, metrics_bytes(workdir), time.time())
    with open(said, "w") as stderr:
        process = start(workdir, files, cache, stderr)
    try:
        while not moment(run):
            assert process.poll() is None, (moment, said.read_text())
            time.sleep(0.001)
        time.sleep(more_secs)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -9, (moment, process.returncode, said.read_text())
    return said.read_text()


def test_six_kills_each_in_another_part_of_a_run(files, cache, undisturbed, tmp_path):
    other, secs = undisturbed
    r, workdir = random.Random(0), tmp_path / "run"
    moments = [
        (lambda run: True, r.uniform(0.1, 0.3) * secs),  # starting and reading
        (is_compiling, r.uniform(0.0, 0.3)),
        (trains, r.uniform(0.0, 0.1)),
        (is_saving, r.uniform(0.0, 0.02)),
        (writes_models, r.uniform(0.0, 0.15)),
        (writes_predictions, r.uniform(0.0, 0.005)),
    ]
    said = [kill(workdir, files, cache, tmp_path, moment, more_secs) for moment, more_secs in moments]
    assert ["going on from step" in each for each in said[3:]] == [True] * 3
    finish(workdir, files, cache)
    assert_same(workdir, other)


def test_six_kills_at_random(files, cache, undisturbed, tmp_path):
    other, secs = undisturbed
    r = random.Random(1)
    for number in range(2):
        workdir, killed = tmp_path / str(number), 0
        for _ in range(3):
            process = start(workdir, files, cache, subprocess.DEVNULL)
            time.sleep(r.uniform(0.3, 1.0) * secs)
            process.kill()
            killed += process.wait() == -9
        finish(workdir, files, cache)
        assert_same(workdir, other)


def test_a_run_that_is_complete_writes_the_same_again(files, cache, undisturbed, tmp_path):
    """Also when it is killed while it does."""
    other, _ = undisturbed
    workdir = tmp_path / "run"
    finish(workdir, files, cache)
    kill(workdir, files, cache, tmp_path, writes_models, 0.02)
    finish(workdir, files, cache)
    assert_same(workdir, other)
    assert json.loads((workdir / "results.json").read_text())["best_seed"] in SEEDS


# --- Several processes


@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_processes_are_one_run(fsdp, files, cache, tmp_path):
    """What they leave is what one process with two devices leaves: the model too, which one of them writes. Under fsdp each of them holds
    a half of it."""
    mesh = ["--config.seeds=1", f"--config.parallel.fsdp={fsdp}"]
    finished = start(tmp_path / "one", files, cache, subprocess.PIPE, *mesh, devices=2)
    _, stderr = finished.communicate(timeout=300)
    assert finished.returncode == 0, stderr
    with socket.socket() as s:
        s.bind(("localhost", 0))
        joined = [f"--coordinator=localhost:{s.getsockname()[1]}", "--num_processes=2", *mesh]
    both = [start(tmp_path / "two", files, cache, subprocess.PIPE, *joined, f"--process_id={number}") for number in range(2)]
    for process in both:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    one, two = (formats.read(str(tmp_path / name)) for name in ("one", "two"))
    for path, x in names.flat(one.params).items():
        np.testing.assert_allclose(names.flat(two.params)[path], x, atol=1e-5, err_msg=path)
    scores = [json.loads((tmp_path / name / "results.json").read_text())["scores"] for name in ("one", "two")]
    assert scores[0] == scores[1]
