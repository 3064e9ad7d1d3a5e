"""Several devices, and several real processes, as one run: executors, signals, losses, other meshes, mistakes that only one makes."""

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

from electra_jax.data.rows import records
from electra_jax.interop import formats, names
from tests.launch import runs

STEPS, FEWER = 32, 16  # several processes on few cores are slow: they go half of the way
FIELDS = {"train.steps": STEPS, "schedule.decay_steps": STEPS, "eval.every_steps": 16, "checkpoint.every_steps": 7}
HEARTBEAT_SECS = 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


class Processes:
    """`count` processes of one run with `devices` fake devices each (a number, or one for each).

    more: flags of all. each: fields that differ, a dict a process. told: the --num_processes of each.
    prelude: code by process, that runs before the script. logs: where they lie, if not beside the workdir.
    """

    def __init__(
        self, workdir, rows, cache, count, devices, *more, wrapped=False, each=(), folders=(), told=(), prelude=None, logs=None, **fields
    ):
        port = free_port()
        self.logs = [pathlib.Path(f"{logs or workdir}.{time.monotonic_ns()}.{number}.log") for number in range(count)]
        self.processes = []
        for number, log in enumerate(self.logs):
            own = dict(each[number]) if each else {}
            command = runs.command(own.pop("workdir", workdir), rows, **{**FIELDS, "train.steps": FEWER, **fields, **own})
            command += [f"--coordinator=localhost:{port}", f"--num_processes={told[number] if told else count}", f"--process_id={number}"]
            if code := (prelude or {}).get(number):
                command[1:1] = ["-c", code + THEN]
            command += [f"--heartbeat_secs={HEARTBEAT_SECS}"] + list(more)
            if wrapped:
                command = [sys.executable, str(runs.ROOT / "launch" / "supervise.py"), "--once", "--", *command]
            with open(log, "w") as file:
                here = devices[number] if isinstance(devices, tuple) else devices
                where = dict(env=runs.environment(cache, here), cwd=folders[number] if folders else None)
                self.processes.append(subprocess.Popen(command, **where, stdout=file, stderr=subprocess.STDOUT))

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


def heldout(workdir, step=STEPS) -> float:
    return next(line["eval/mlm_loss"] for line in runs.learned(workdir) if "eval/mlm_loss" in line and line["step"] == step)


@pytest.fixture(scope="module")
def undisturbed(rows, cache, tmp_path_factory):
    """One process with the same eight devices."""
    return run_alone(tmp_path_factory.mktemp("alone") / "run", rows, cache)


def run_alone(workdir, rows, cache, **fields):
    """One process with eight devices, to the end."""
    command = runs.command(workdir, rows, **{**FIELDS, **fields})
    done = subprocess.run(command, env=runs.environment(cache, 8), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return workdir


def test_pmap_gives_the_same_bits_as_shard_map(rows, cache, undisturbed, tmp_path):
    pmap = run_alone(tmp_path / "pmap", rows, cache, **{"parallel.executor": "pmap"})
    assert runs.state_bytes(pmap) == runs.state_bytes(undisturbed)
    assert curve(pmap) == curve(undisturbed) and heldout(pmap) == heldout(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["jit", "1", "2", "4", "8"])
def test_every_mesh_learns_the_same_within_the_noise_of_a_seed(mesh, rows, cache, undisturbed, tmp_path):
    change = {"parallel.executor": "jit"} if mesh == "jit" else {"parallel.fsdp": int(mesh)}
    workdir = run_alone(tmp_path / "run", rows, cache, **change)
    other_seed = run_alone(tmp_path / "seed", rows, cache, seed=1)
    noise = abs(heldout(other_seed) - heldout(undisturbed))
    assert abs(heldout(workdir) - heldout(undisturbed)) < noise / 2
    assert_same_rows(workdir, undisturbed)


def assert_same_rows(workdir, undisturbed, num_steps=STEPS):
    """Every step once, each with the rows that the undisturbed run had there: other rows differ in the first digit."""
    steps = [line["step"] for line in runs.learned(workdir) if "train/mlm_loss" in line]
    assert steps == list(range(1, num_steps + 1))
    mine, theirs = curve(workdir), curve(undisturbed)
    np.testing.assert_allclose([mine[s] for s in steps], [theirs[s] for s in steps], rtol=1e-3)
    neighbours = [abs(theirs[s] - theirs[s + 1]) / theirs[s] for s in range(1, STEPS)]
    assert np.median(neighbours) > 2e-3  # the bound above would notice
    np.testing.assert_allclose(heldout(workdir, num_steps), heldout(undisturbed, num_steps), rtol=1e-3)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_stopped_by_a_signal_to_one_and_resumed_on_another_mesh(processes, rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    two = Processes(workdir, rows, cache, 2, 2)
    two.reach(workdir, 9)
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.wait() == [42, 42], two.texts()
    saved = [re.search(r"stopped at step (\d+) of", text)[1] for text in two.texts()]
    assert saved[0] == saved[1] and (workdir / "checkpoints" / saved[0]).is_dir()

    mesh = {"parallel.slices": 2, "parallel.fsdp": 2}
    again = Processes(workdir, rows, cache, processes, 4 // processes, **mesh, **{"eval.rank_rows": 32})
    assert again.wait() == [0] * processes, again.texts()
    assert f"going on from step {saved[0]}" in again.texts()[0]
    assert_same_rows(workdir, undisturbed, FEWER)
    assert 1 < runs.learned(workdir)[-1]["eval/rank/discriminator/1"] < 33


@pytest.mark.slow
def test_a_killed_process_is_named_by_the_others_and_costs_what_was_not_saved(rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    two = Processes(workdir, rows, cache, 2, 2, wrapped=True)
    two.reach(workdir, 10)
    child = subprocess.run(["pgrep", "-P", str(two.processes[1].pid)], capture_output=True, text=True, check=True).stdout.split()[0]
    subprocess.run(["kill", "-9", child], check=True)
    start = time.monotonic()
    codes = two.wait(60)
    assert codes[0] == 42 and time.monotonic() - start < 2 * HEARTBEAT_SECS + 15, (codes, two.texts())
    host = re.escape(socket.gethostname())
    assert re.search(rf"^.*lost process 1 \({host}\)", two.texts()[0], re.M), two.texts()[0]

    again = Processes(workdir, rows, cache, 2, 2)
    assert again.wait() == [0, 0], again.texts()
    assert "going on from step 7" in again.texts()[0]
    assert_same_rows(workdir, undisturbed, FEWER)


@pytest.mark.slow
def test_several_processes_begin_with_a_model_that_is_there(rows, cache, undisturbed, tmp_path):
    still = {"optimizer.learning_rate": 0.0, "optimizer.muon_learning_rate": 0.0, "train.steps": 2, "schedule.warmup_steps": 1}
    two = Processes(tmp_path / "run", rows, cache, 2, 2, init_from=undisturbed, **still, **{"parallel.fsdp": 2})
    assert two.wait() == [0, 0], two.texts()
    before, after = (names.flat(formats.read(workdir).params) for workdir in (undisturbed, tmp_path / "run"))
    for path, x in before.items():
        np.testing.assert_array_equal(x, after[path], err_msg=path)


THEN = "\nimport runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
DEFECT = """
from electra_jax.data.rows import loader
def batches(*args, before=loader.batches, **kwargs):
    for number, batch in enumerate(before(*args, **kwargs), start=1):
        if number == 12:
            raise KeyError("a defect")
        yield batch
loader.batches = batches
"""


@pytest.mark.parametrize("at_fault", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_defect_in_one_process_ends_it_and_the_others_hear(at_fault, rows, cache, tmp_path):
    """After a save, which the others go on to finish: nothing may wait for them."""
    two = Processes(tmp_path / "run", rows, cache, 2, 1, wrapped=True, prelude={at_fault: DEFECT})
    codes, texts = two.wait(150), two.texts()
    assert (codes[at_fault], codes[1 - at_fault]) == (1, 42), texts
    assert "KeyError: 'a defect'" in texts[at_fault] and f"lost process {at_fault} (" in texts[1 - at_fault], texts
    assert (tmp_path / "run" / "checkpoints" / "7").is_dir()


@pytest.mark.slow
def test_an_interrupt_of_one_while_it_compiles_stops_all(rows, tmp_path):
    two = Processes(tmp_path / "run", rows, tmp_path / "cold", 2, 1)
    while "compiling the step" not in two.texts()[0]:
        assert two.processes[0].poll() is None, two.texts()
        time.sleep(0.05)
    two.processes[1].send_signal(signal.SIGINT)
    assert two.wait(150) == [42, 42], two.texts()
    assert len({re.search(r"stopped at step (\d+) of", text)[1] for text in two.texts()}) == 1


@pytest.mark.slow
def test_several_processes_train_in_a_bucket(gcs, rows, cache, undisturbed, tmp_path):
    files = gcs.buckets.setdefault("bucket", {})
    for steps in (9, 12):  # the second time another host's disk is the first process's
        where = dict(logs=tmp_path / "log", **{"train.steps": steps})
        two = Processes("gs://bucket/run", rows, cache, 2, 2, f"--scratch={tmp_path}/scratch{steps}", **where)
        assert two.wait() == [0, 0], two.texts()
        assert f"run/checkpoints/{steps}/commit_success.txt" in files
    assert "going on from step 9" in two.texts()[0]
    (tmp_path / "metrics.jsonl").write_bytes(files["run/metrics.jsonl"])
    mine, theirs = curve(tmp_path), curve(undisturbed)
    assert list(mine) == list(range(1, 13))
    np.testing.assert_allclose(list(mine.values()), [theirs[step] for step in mine], rtol=1e-3)


MISTAKES = {
    "config": ("process 1 has another config than process 0", dict(each=[{}, {"seed": 1}])),
    "data": ("process 1 has another data set than process 0", dict(hosts=["rows", "other"])),
    "no data": ("process 1 of 2: .*no such folder", dict(hosts=["rows", "nowhere"])),
    "workdir": ("is not the folder that process 0 writes to", dict(hosts=["rows", "rows"])),
    "spelling": ("process 1 has another --workdir than process 0", dict(each=[{"workdir": "a"}, {"workdir": "../host/a"}])),
    "devices": ("process 1 has another number of devices than process 0", dict(devices=(2, 1))),
    "told": (r"process \d was told of \d processes and process \d of \d", dict(told=(2, 3))),
    "pmap": ("pmap runs in one process and there are 2", {"parallel.executor": "pmap"}),
    "mesh": ("does not fit 2 devices", {"parallel.data": 3}),
    "batch": ("cannot be dealt out to 2 devices", {"train.batch_rows": 7}),
    "fsdp": (
        "divides the width of no parameter",
        {
            "parallel.fsdp": 2,
            "model.hidden_size": 33,
            "model.head_size": 33,
            "model.embedding_size": 7,
            "model.generator_hidden_fraction": 1.0,
            "model.ffn_size": 33,
            "model.generator_ffn_size": 33,
            "model.positions": "learned",
        },
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_all_processes_with_the_same_line(mistake, rows, cache, tmp_path):
    pattern, arguments = MISTAKES[mistake]
    hosts = arguments.get("hosts")
    if hosts:  # one command, and a folder that is another on each host
        other = tmp_path / "other"
        shutil.copytree(rows, other)
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["corpus"]["documents"] += 1
        records.save_manifest(other, manifest)
        for number, name in enumerate(hosts):
            (tmp_path / f"host{number}").mkdir()
            (tmp_path / f"host{number}" / "rows").symlink_to(rows if name == "rows" else tmp_path / name)
        workdir = "/proc/self/cwd/run" if mistake == "workdir" else tmp_path / "run"  # one name, two folders
        processes = Processes(workdir, "rows", cache, 2, 1, folders=[tmp_path / "host0", tmp_path / "host1"], logs=tmp_path / "log")
    else:
        each = [{k: f"{tmp_path}/host/{v}" if k == "workdir" else v for k, v in own.items()} for own in arguments.get("each", ())]
        processes = Processes(tmp_path / "run", rows, cache, 2, **{"devices": 1, **arguments, "each": each})
    codes, texts = processes.wait(120), processes.texts()
    assert codes == [2, 2], texts
    for text in texts:
        assert re.search(pattern, text) and "Traceback" not in text, texts
