"""Several real processes as one run: signals, losses, other meshes, and mistakes that only one of them makes."""

import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.launch import runs

STEPS = 40
FIELDS = {"train.steps": STEPS, "eval.every_steps": 20, "checkpoint.every_steps": 7}
HEARTBEAT_SECS = 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


class Processes:
    """`count` processes of one run with `devices` fake devices each; the last `more` words are per process where they are lists."""

    def __init__(self, workdir, rows, cache, count, devices, *more, wrapped=False, each=(), **fields):
        port = free_port()
        self.logs = [pathlib.Path(f"{workdir}.{time.monotonic_ns()}.{number}.log") for number in range(count)]
        self.processes = []
        for number, log in enumerate(self.logs):
            own = each[number] if each else {}
            command = runs.command(own.pop("workdir", workdir), rows, *more, **{**FIELDS, **fields, **own})
            command += [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={number}"]
            command += [f"--heartbeat_secs={HEARTBEAT_SECS}"]
            if wrapped:
                command = [sys.executable, str(runs.ROOT / "launch" / "retry.py"), "--once", "--", *command]
            with open(log, "w") as file:
                environment = runs.environment(cache, devices)
                self.processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))

    def wait(self, secs=240) -> list[int]:
        deadline = time.monotonic() + secs
        try:
            return [process.wait(max(1, deadline - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def texts(self) -> list[str]:
        return [log.read_text() for log in self.logs]

    def reach(self, workdir, step, secs=200) -> None:
        """Waits until the run has logged `step`."""
        metrics, deadline = pathlib.Path(workdir) / "metrics.jsonl", time.monotonic() + secs
        while not (metrics.exists() and any(line["step"] >= step for line in logged(metrics))):
            assert time.monotonic() < deadline and all(process.poll() is None for process in self.processes), self.texts()
            time.sleep(0.05)


def logged(metrics) -> list[dict]:
    return [json.loads(line) for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]


def curve(workdir) -> dict[int, float]:
    """The training loss of every step: it follows from the rows of the step, so that it tells which they were."""
    return {line["step"]: line["train/mlm_loss"] for line in runs.learned(workdir) if "train/mlm_loss" in line}


def heldout(workdir) -> float:
    return [line for line in runs.learned(workdir) if "eval/mlm_loss" in line][-1]["eval/mlm_loss"]


@pytest.fixture(scope="module")
def undisturbed(rows, cache, tmp_path_factory):
    """One process with the same eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = subprocess.run(
        runs.command(workdir, rows, **FIELDS), env=runs.environment(cache, 8), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return workdir


def assert_same_rows(workdir, undisturbed):
    """Every step once, each with the rows that the undisturbed run had there: other rows differ in the first digit."""
    steps = [line["step"] for line in runs.learned(workdir) if "train/mlm_loss" in line]
    assert steps == list(range(1, STEPS + 1))
    mine, theirs = curve(workdir), curve(undisturbed)
    np.testing.assert_allclose([mine[s] for s in steps], [theirs[s] for s in steps], rtol=2e-3)
    neighbours = [abs(theirs[s] - theirs[s + 1]) / theirs[s] for s in range(1, STEPS)]
    assert np.median(neighbours) > 4e-3  # the bound above would notice
    np.testing.assert_allclose(heldout(workdir), heldout(undisturbed), rtol=1e-3)


def test_stopped_by_a_signal_to_one_and_resumed_on_another_mesh(rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    two = Processes(workdir, rows, cache, 2, 4)
    two.reach(workdir, 9)
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.wait() == [42, 42], two.texts()
    saved = [re.search(r"stopped at step (\d+) of", text)[1] for text in two.texts()]
    assert saved[0] == saved[1] and (workdir / "checkpoints" / saved[0]).is_dir()

    four = Processes(workdir, rows, cache, 4, 2, **{"parallel.fsdp": 4})
    assert four.wait() == [0] * 4, four.texts()
    assert f"going on from step {saved[0]}" in four.texts()[0]
    assert_same_rows(workdir, undisturbed)


def test_a_killed_process_is_named_by_the_others_and_costs_what_was_not_saved(rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    two = Processes(workdir, rows, cache, 2, 4, wrapped=True)
    two.reach(workdir, 10)
    child = subprocess.run(["pgrep", "-P", str(two.processes[1].pid)], capture_output=True, text=True, check=True).stdout.split()[0]
    subprocess.run(["kill", "-9", child], check=True)
    start = time.monotonic()
    codes = two.wait(60)
    assert codes[0] == 42 and time.monotonic() - start < 2 * HEARTBEAT_SECS + 15, (codes, two.texts())
    host = re.escape(socket.gethostname())
    assert re.search(rf"^.*lost process 1 \({host}\)", two.texts()[0], re.M), two.texts()[0]

    again = Processes(workdir, rows, cache, 2, 4)
    assert again.wait() == [0, 0], again.texts()
    assert "going on from step 7" in again.texts()[0]
    assert_same_rows(workdir, undisturbed)


def one_line(processes: Processes, pattern: str) -> None:
    codes, texts = processes.wait(120), processes.texts()
    assert codes == [2] * len(codes), texts
    for text in texts:
        assert re.search(pattern, text) and "Traceback" not in text, texts


def test_mistakes_end_all_processes_with_the_same_line(rows, cache, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(rows, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["corpus"]["documents"] += 1
    from electra_jax.data import records

    records.save_manifest(other, manifest)
    for pattern, arguments in (
        ("process 1 has another config than process 0", dict(each=[{}, {"seed": 1}])),
        ("process 1 of 2: .*no such folder", dict(each=[{}, {}], data_path=[rows, tmp_path / "nowhere"])),
        ("process 1 has another data set than process 0", dict(each=[{}, {}], data_path=[rows, other])),
        ("is not the folder that process 0 writes to", dict(each=[{"workdir": tmp_path / "a"}, {"workdir": tmp_path / "b"}])),
        ("pmap runs in one process", dict(each=[{}, {}], **{"parallel.executor": "pmap"})),
        ("does not fit 2 devices", dict(each=[{}, {}], **{"parallel.data": 3})),
        ("cannot be dealt out to 2 devices", dict(each=[{}, {}], **{"train.batch_rows": 7})),
    ):
        paths = arguments.pop("data_path", None)
        if paths:  # the same command, a folder that is another on each host
            link = tmp_path / "link"
            commands = Processes.__new__(Processes)
            commands.processes, commands.logs = [], []
            port = free_port()
            for number, path in enumerate(paths):
                own = tmp_path / f"host{number}"
                own.mkdir(exist_ok=True)
                (own / "rows").unlink(missing_ok=True)
                (own / "rows").symlink_to(path)
                log = tmp_path / f"link.{number}.log"
                command = runs.command(tmp_path / "run", "rows", **FIELDS)
                command += [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={number}"]
                with open(log, "w") as file:
                    commands.processes.append(
                        subprocess.Popen(command, env=runs.environment(cache), cwd=own, stdout=file, stderr=subprocess.STDOUT)
                    )
                commands.logs.append(log)
            del link
        else:
            commands = Processes(tmp_path / "run", rows, cache, 2, 1, **arguments)
        one_line(commands, pattern)
