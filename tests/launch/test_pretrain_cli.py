"""launch/pretrain.py as its user runs it: to the end, killed, stopped, and with everything wrong that can be."""

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.launch import runs


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compilation_cache")


@pytest.fixture(scope="session")
def undisturbed(rows, cache, tmp_path_factory):
    """(workdir, the ended process) of a run that nothing befell."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = runs.run(workdir, rows, cache)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_tells_its_plan_and_leaves_everything(undisturbed):
    workdir, done = undisturbed
    assert "plan: tiny" in done.stderr and "epochs" in done.stderr and "GiB a step" in done.stderr
    assert "held-out MLM loss" in done.stderr and "word frequencies alone" in done.stderr
    assert done.stdout.startswith("done: 60 steps")
    assert {"config.json", "checkpoints", "metrics.jsonl", "report.html"} <= {p.name for p in workdir.iterdir()}
    lines = runs.learned(workdir)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 61))
    evals = [line for line in lines if "eval/mlm_loss" in line]
    assert [line["step"] for line in evals] == [20, 40, 60]
    names = "mlm_loss mlm_accuracy sampled_accuracy unigram_entropy rtd_loss rtd_auc rtd_accuracy rtd_precision rtd_recall replace_rate"
    assert all(f"eval/{name}" in evals[-1] for name in names.split())
    assert evals[-1]["eval/mlm_loss"] < evals[0]["eval/mlm_loss"]


def started(workdir, rows, cache) -> subprocess.Popen:
    return subprocess.Popen(runs.command(workdir, rows), env=runs.environment(cache), stderr=subprocess.PIPE, text=True)


def wait_for_lines(process, workdir, count: int) -> None:
    """Until metrics.jsonl has so many lines, about one a step."""
    path = workdir / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None
        time.sleep(0.01)


def assert_same_run(workdir, other) -> None:
    assert runs.learned(workdir) == runs.learned(other)
    assert runs.state_bytes(workdir) == runs.state_bytes(other)


def test_kill_and_resume_is_bit_identical(rows, cache, undisturbed, tmp_path):
    other, _ = undisturbed
    workdir = tmp_path / "run"
    for count in (10, 35):
        process = started(workdir, rows, cache)
        wait_for_lines(process, workdir, count)
        process.kill()
        process.communicate()
    assert runs.run(workdir, rows, cache).returncode == 0
    assert_same_run(workdir, other)


@pytest.mark.slow
def test_twenty_kills(rows, cache, undisturbed, tmp_path):
    other, _ = undisturbed
    start = time.monotonic()
    assert runs.run(tmp_path / "timed", rows, cache).returncode == 0
    secs = time.monotonic() - start
    moments = random.Random(0)
    for number in range(4):  # four runs, killed five times each, at moments over a whole run's length
        workdir = tmp_path / str(number)
        for _ in range(5):
            process = started(workdir, rows, cache)
            time.sleep(moments.uniform(0.2, 1.0) * secs)
            process.kill()
            process.communicate()
        assert runs.run(workdir, rows, cache).returncode == 0
        assert_same_run(workdir, other)


@pytest.mark.parametrize("stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_signal_saves_and_exits_42(stop, rows, cache, undisturbed, tmp_path):
    other, _ = undisturbed
    workdir = tmp_path / "run"
    process = started(workdir, rows, cache)
    wait_for_lines(process, workdir, 10)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 42, stderr
    assert "the same command goes on" in stderr.splitlines()[-1]
    assert runs.learned(workdir)[-1]["step"] < 60
    assert runs.run(workdir, rows, cache).returncode == 0
    assert_same_run(workdir, other)


def test_a_finished_run_says_so_again(rows, cache, undisturbed):
    workdir, _ = undisturbed
    before = runs.learned(workdir)
    again = runs.run(workdir, rows, cache)
    assert again.returncode == 0 and runs.learned(workdir) == before


@pytest.mark.slow
def test_what_is_announced_as_saved_is_saved_also_in_an_evaluation(rows, cache, tmp_path):
    """No checkpoint is due for long; the signal comes while the held-out rows are gone through."""
    workdir = tmp_path / "run"
    fields = {"checkpoint.every_steps": 1000, "eval.every_steps": 4, "eval.max_rows": 0, "eval.batch_rows": 4}
    process = subprocess.Popen(runs.command(workdir, rows, **fields), env=runs.environment(cache), stderr=subprocess.PIPE, text=True)
    while not (workdir / "metrics.jsonl").exists() or '"step": 4, "train' not in (workdir / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 42, stderr
    step = int(stderr.splitlines()[-1].split("stopped at step ")[1].split()[0])
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == [str(step)]
    assert [line["step"] for line in runs.learned(workdir) if "train/loss" in line] == list(range(1, step + 1))


@pytest.mark.slow
def test_a_lost_terminal_saves_and_exits_42(rows, cache, tmp_path):
    """A real terminal, closed while the run writes to it: the kernel sends SIGHUP, and each further write fails."""
    workdir = tmp_path / "run"
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # libtpu ignores it for the process that loads it, ours here
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    command = runs.command(workdir, rows, **{"checkpoint.every_steps": 1000})
    process = subprocess.Popen(command, env=runs.environment(cache), stdout=theirs, stderr=theirs, stdin=theirs, preexec_fn=own_terminal)
    os.close(theirs)
    while not (workdir / "metrics.jsonl").exists() or '"step": 4, "train' not in (workdir / "metrics.jsonl").read_text():
        assert process.poll() is None
        os.set_blocking(ours, False)
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)
        time.sleep(0.005)
    os.close(ours)
    assert process.wait(timeout=60) == 42
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert 4 <= saved < 60 and max(line["step"] for line in runs.learned(workdir)) == saved


@pytest.mark.parametrize(
    "flags, variables, words",
    [
        (dict(), {"JAX_PLATFORMS": "cuda"}, "no device of JAX_PLATFORMS=cuda .*: install jax for it, or leave JAX_PLATFORMS out"),
        ({"data.path": "/nowhere"}, {}, "/nowhere: no such folder"),
        ({"train.batch_rows": 7, "train.accumulation_steps": 2}, {}, "accumulation"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(rows, cache, tmp_path, flags, variables, words):
    workdir = tmp_path / "new" / "run"
    environment = {**runs.environment(cache), **variables}
    done = subprocess.run(runs.command(workdir, rows, **flags), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(words, done.stderr.splitlines()[-1]) and not (tmp_path / "new").exists()


def test_without_a_workdir_it_is_asked_for(rows, cache):
    command = [part for part in runs.command("x", rows) if not part.startswith("--workdir")]
    done = subprocess.run(command, env=runs.environment(cache), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("pretrain.py: --workdir is missing: Where the run lives")


@pytest.mark.parametrize("command", ["pretrain", "prepare", "convert"])
def test_an_interrupted_start_is_one_line(rows, cache, tmp_path, command):
    """At some moments of the start, most of them within an import."""
    (tmp_path / "text.txt").write_text("a line of text that is prepared\n\n" * 400_000)
    line = {
        "pretrain": runs.command(tmp_path / "run", rows),
        "prepare": [sys.executable, f"{runs.ROOT}/launch/prepare.py", f"--input={tmp_path}/text.txt", f"--output={tmp_path / 'rows'}"],
        "convert": [sys.executable, f"{runs.ROOT}/launch/convert.py", f"--from={rows}", f"--to={tmp_path / 'model'}"],
    }[command]
    for secs in (0.15, 0.3, 0.5) if command == "convert" else (0.15, 0.4, 0.8, 1.3):  # convert has refused its input within a second
        process = subprocess.Popen(line, env=runs.environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(secs)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 42 and "Traceback" not in stderr, (secs, process.returncode, stderr)
        assert "the same command" in stderr.splitlines()[-1], (secs, stderr)


def test_too_small_a_limit_on_memory_is_one_line(rows, cache, tmp_path):
    """ArrayRecord waits for ever for threads that the system refuses."""
    command = runs.command(tmp_path / "run", rows)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2_000_000 << 10,) * 2)

    done = subprocess.run(command, env=runs.environment(cache), capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert done.returncode == 2 and "ulimit -v" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr


def test_a_stop_signal_before_the_first_step_exits_42(rows, cache, tmp_path):
    process = subprocess.Popen(runs.command(tmp_path / "run", rows), env=runs.environment(cache), stderr=subprocess.PIPE, text=True)
    while "compiling" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 42 and "Traceback" not in stderr, stderr


def test_a_mended_mistake_may_use_the_same_workdir_and_two_runs_may_not(rows, cache, tmp_path):
    workdir = tmp_path / "run"
    assert runs.run(workdir, rows, cache, **{"schedule.warmup_steps": 60}).returncode == 2
    assert runs.run(workdir, rows, cache, **{"optimizer.name": "muom"}).returncode == 2
    assert not workdir.exists()  # such mistakes are seen before the workdir is touched
    workdir.mkdir()
    (workdir / ".config.json.1234.tmp").write_text("")  # what a death while it is written leaves
    first = subprocess.Popen(runs.command(workdir, rows), env=runs.environment(cache), stderr=subprocess.PIPE, text=True)
    while "compiling" not in first.stderr.readline():
        assert first.poll() is None
    second = runs.run(workdir, rows, cache)
    assert second.returncode == 2 and "another process trains" in second.stderr
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 0, stderr


BAD = {
    "no config": (dict(more=["--config=/nowhere.py"]), "/nowhere.py"),
    "held-out batch": (dict(fields={"eval.batch_rows": 0}), "eval.batch_rows"),
    "rate": (dict(fields={"optimizer.learning_rate": "nan"}), "optimizer.learning_rate"),
    "beta": (dict(fields={"optimizer.beta1": 1.5}), "optimizer.beta1"),
    "rates": (dict(fields={"optimizer.rates": "('a',0.5)"}), "optimizer.rates"),
    "weights": (dict(fields={"data.weights": "('a',)"}), "data.weights"),
    "profile": (dict(fields={"log.profile_steps": "(1,2,3)"}), "log.profile_steps"),
    "float64": (dict(fields={"model.dtype": "float64"}), "JAX_ENABLE_X64"),
    "seed": (dict(fields={"seed": 2**70}), "seed"),
    "typo": (dict(more=["--config.train.step=5"]), "did you mean 'steps'"),
    "type": (dict(more=["--config.train.batch_rows=1.5"]), "batch_rows"),
    "preset": (dict(more=["--config=configs/pretrain.py:smal"]), "did you mean 'small'"),
    "flag": (dict(more=["--workdirr=x"]), "workdirr"),
    "no data": (dict(fields={"data.path": ""}), "--config.data.path"),
    "absent data": (dict(fields={"data.path": "/nowhere"}), "/nowhere"),
    "length": (dict(fields={"data.length": 64}), "32 tokens long and the config says 64: leave --config.data.length out"),
    "vocabulary": (dict(fields={"model.vocab_size": 30522}), "of 600 and the config says 30522: leave --config.model.vocab_size out"),
    "batch": (dict(fields={"train.accumulation_steps": 3}), "choose a multiple of 3"),
    "heads": (dict(fields={"model.head_size": 10}), "do not divide"),
    "memory": (dict(fields={"train.batch_rows": 4_000_000}), "accumulation_steps"),
    "warm-up": (dict(fields={"schedule.warmup_steps": 60}), "warmup_steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(name, rows, cache, tmp_path):
    spec, message = BAD[name]
    done = runs.run(tmp_path / "run", rows, cache, *spec.get("more", ()), **spec.get("fields", {}))
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()
    assert message in last[-1] and "Traceback" not in done.stderr
    assert len([line for line in last if not line.startswith(("WARNING", "compiling"))]) == 1, done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*")) and not (tmp_path / "run" / "config.json").exists()


def test_another_config_in_the_same_workdir_is_refused(rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for named, value in (("optimizer.learning_rate", 1e-4), ("train.steps", 90), ("seed", 1)):
        fields = {named: value}
        done = runs.run(workdir, rows, cache, **fields)
        assert done.returncode == 2 and named in done.stderr and "another --workdir" in done.stderr
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    done = runs.run(foreign, rows, cache)
    assert done.returncode == 2 and "not empty" in done.stderr and (foreign / "thesis.txt").read_text() == "mine"


def test_a_resume_may_change_what_it_may(rows, cache, tmp_path):
    workdir = tmp_path / "run"
    assert runs.run(workdir, rows, cache, **{"train.steps": 14, "schedule.decay_steps": 60}).returncode == 0
    changes = {"train.steps": 20, "schedule.decay_steps": 60, "log.every_steps": 2, "train.accumulation_steps": 2}
    changes["model.scan_layers"] = True
    done = runs.run(workdir, rows, cache, **changes)
    assert done.returncode == 0 and "going on from step 14" in done.stderr, done.stderr
    assert json.loads((workdir / "config.json").read_text())["train"]["accumulation_steps"] == 2


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--config.train.step=5", "--config.train.step: no such field; did you mean 'steps'? train has steps (int, 1000000)"),
        ("--noconfig.log.tensorbord", "--config.log.tensorbord: no such field; did you mean 'tensorboard'?"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config=small", "small"),
        ("--config.data.path=nowhere", "nowhere: no such folder"),
    ],
)
def test_a_wrong_config_is_one_line_from_any_folder_and_without_a_preset(flag, words, cache, tmp_path):
    command = [sys.executable, str(runs.ROOT / "launch" / "pretrain.py"), "--workdir=run", flag]
    done = subprocess.run(command, env=runs.environment(cache), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_help_reads_well(cache):
    done = runs.run("x", "y", cache, "--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout and "launch/prepare.py" in done.stdout and "Exit codes" in done.stdout


@pytest.mark.slow
def test_a_full_disk_stops_cleanly_and_resumes(rows, cache, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        done = runs.run(disk / "run", rows, cache)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "disk" in done.stderr.splitlines()[-1] and "free some space" in done.stderr.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        done = runs.run(disk / "run", rows, cache)
        assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
        assert_same_run(disk / "run", undisturbed[0])
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    (data,) = (p for p in (workdir / "checkpoints" / "60" / "state").rglob("*") if p.is_file() and p.stat().st_size > 50_000)
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    done = runs.run(workdir, rows, cache)
    assert done.returncode == 0, done.stderr
    assert "checkpoint 60 is damaged" in done.stderr and "going on from step 56" in done.stderr
    assert (workdir / "checkpoints" / "60.damaged").is_dir()
    assert_same_run(workdir, undisturbed[0])


def test_a_checkpoint_of_another_shape_is_refused_by_name(rows, cache, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["hidden_size"] = 64
    (workdir / "config.json").write_text(json.dumps(config))
    done = runs.run(workdir, rows, cache, **{"model.hidden_size": 64})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "holds another model" in done.stderr and "params/generator/project/kernel is missing" in done.stderr
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["49", "56", "60"]


def test_damaged_rows_are_named(rows, cache, tmp_path):
    folder = tmp_path / "rows"
    shutil.copytree(rows, folder)
    shard = next(folder.glob("train-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    done = runs.run(tmp_path / "run", folder, cache)
    assert done.returncode == 2 and str(shard) in done.stderr.splitlines()[-1], done.stderr
    damaged = bytearray(whole)
    for at in range(1000, 250_000, 4000):  # in every record
        damaged[at] ^= 1
    shard.write_bytes(damaged)
    done = runs.run(tmp_path / "run", folder, cache)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert str(shard) in done.stderr.splitlines()[-1] and "prepare the data again" in done.stderr


def test_a_diverging_run_stops_with_a_line(rows, cache, tmp_path):
    fields = {"optimizer.name": "adamw", "optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0, "train.max_non_finite_steps": 3}
    done = runs.run(tmp_path / "run", rows, cache, **fields)
    assert done.returncode == 2 and "not finite" in done.stderr.splitlines()[-1], done.stderr
    assert "learning" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
