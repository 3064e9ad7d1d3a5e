"""launch/supervise.py around small real children: every way to end, signals, and when it gives up."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from electra_jax import supervise

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "launch" / "stderr"
HOSTS = "processes: 0 hostA, 1 hostB, 2 hostC, 3 hostD"
# What each survivor's recorded stderr must become.
LOST = {
    "killed.at_coordinator": "lost process 1 (hostB): ",
    "killed.at_other": "lost process 1 (hostB): ",
    "killed_coordinator": "lost process 0 (hostA): ",
    "stopped.at_coordinator": "lost process 1 (hostB): ",
    "stopped.at_other": "lost process 1 (hostB): ",
    "stopped_coordinator": "lost process 0 (hostA): ",
    "two_killed": "lost process 3 (hostD): ",  # the coordinator names one of the two
    "restarted": "lost process 1 (hostB): it died and was started again",
    "gloo_pair": "lost a process: Gloo met a broken connection",  # a survivor of three, when another was killed
    "never_came": "lost a process: not all came to the start",
    "jax12.killed.at_other": "lost process 1 (hostB): ",
    "jax12.stopped.at_other": "lost process 1 (hostB): ",
    "jax12.killed_coordinator": "lost process 0 (hostA): ",
    "jax12.stopped_coordinator": "lost process 0 (hostA): ",
}


def wrapped(code: str, *args: str) -> list[str]:
    """The wrapper around `python -c code args`; a line is added to `starts` in the current folder at each start."""
    count = "import os, signal, sys, time; open('starts', 'a').write('x'); n = os.path.getsize('starts')\n"
    return [sys.executable, "-c", count + code, *args]


def run(tmp_path, code: str, *flags: str, args=()) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--wait_secs=0", *flags, "--", *wrapped(code, *args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=30)


def starts(tmp_path) -> int:
    return (tmp_path / "starts").stat().st_size


def ours(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("supervise.py: ")]


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("sys.exit(0)", 0, None),
        ("sys.exit(2)", 2, None),
        ("raise ValueError('a bug')", 1, "exit 1: a defect"),
        ("sys.exit(7)", 1, "exit 7: a defect"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGBUS)", 1, "SIGBUS"),
        ("os.abort()", 1, "SIGABRT"),
        ("sys.exit(134)", 1, "SIGABRT"),
    ],
)
def test_what_is_not_started_again(code, exit_code, said, tmp_path):
    done = run(tmp_path, code)
    assert done.returncode == exit_code and starts(tmp_path) == 1
    assert ("ValueError: a bug" in done.stderr) == ("a bug" in code)
    assert [said in line for line in ours(done.stderr)] == ([True] if said else [])


@pytest.mark.parametrize("code", ["sys.exit(42)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(137)", "signal.raise_signal(15)"])
def test_42_and_a_kill_are_started_again(code, tmp_path):
    done = run(tmp_path, f"if n < 2: {code}\nprint('whole')")
    assert done.returncode == 0 and starts(tmp_path) == 2 and done.stdout == "whole\n"
    (line,) = ours(done.stderr)
    assert "start 2 of 3 without a new checkpoint" in line
    assert ("memory" in line) == ("KILL" in code or "137" in code)


@pytest.mark.parametrize("name", LOST)
def test_a_peer_lost_is_named(name, tmp_path):
    code = "print(sys.argv[1], file=sys.stderr)\nsys.stderr.write(open(sys.argv[2]).read())\nsys.stderr.flush()\nos.abort()"
    done = run(tmp_path, code, "--starts=1", args=[HOSTS, str(RECORDED / f"{name}.txt")])
    assert done.returncode == 42 and starts(tmp_path) == 1
    (line,) = ours(done.stderr)
    assert LOST[name] in line and "gave up after 1 start" in line
    assert (RECORDED / f"{name}.txt").read_text() in done.stderr


def test_every_recorded_abort_has_its_case():
    assert {path.stem for path in RECORDED.glob("*.txt")} == set(LOST)


def test_other_forms_of_the_message():
    service = "Polled an error from coordination service"
    task = "/job:jax_worker/replica:0/task"
    long = [service, "The following tasks are unhealthy (stopped sending heartbeats):", f"{task}:2", f"{task}:11", "The tasks"]
    assert supervise.lost_peer(long, {2: "c"}).startswith("lost process 2 (c), 11 (host unknown): ")
    assert supervise.lost_peer([service], {}).startswith("lost a process: ")
    assert supervise.lost_peer(["free(): invalid pointer"], {}) is None


def test_an_abort_after_an_error_of_its_own_is_a_defect():
    """A defect in one process keeps it waiting for the others at its exit; then it is aborted as they are."""
    abort = (RECORDED / "never_came.txt").read_text().splitlines()
    trace = ["Traceback (most recent call last):", "KeyError: 'loss'"]
    assert supervise.understand(-6, trace + abort, {}) == (1, "aborted after its own error: KeyError: 'loss'")
    assert supervise.understand(-6, [*trace, "the run went on", *abort], {}).code == 42
    gloo = ["Traceback (most recent call last):", "ValueError: UNKNOWN: Gloo all-reduce failed: Connection closed by peer"]
    assert supervise.understand(-6, gloo + abort, {}).code == 42


def test_the_line_that_matters_survives_a_long_dump(tmp_path):
    """faulthandler prints the stacks of all threads after XLA's message."""
    code = "print(sys.argv[1], *['step'] * 1000, sep=chr(10), file=sys.stderr)\nsys.stderr.write(open(sys.argv[2]).read())\n"
    code += "print(*['  File \"x.py\", line 1 in f'] * 5000, sep=chr(10), file=sys.stderr, flush=True)\nos.abort()"
    done = run(tmp_path, code, "--once", args=[HOSTS, str(RECORDED / "stopped.at_other.txt")])
    assert done.returncode == 42 and "lost process 1 (hostB)" in ours(done.stderr)[-1]


def test_streams_are_passed_through(tmp_path):
    code = "sys.stdout.buffer.write(bytes(range(256)) * 99); sys.stderr.buffer.write(b'\\r50%\\xff no newline')"
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--", *wrapped(code)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=30)
    assert done.stdout == bytes(range(256)) * 99 and done.stderr == b"\r50%\xff no newline"


def test_a_line_of_the_command_itself_is_the_reason(tmp_path):
    done = run(tmp_path, "sys.exit(42) if print('lost peer: Gloo failed', file=sys.stderr) is None else 0", "--once")
    assert done.returncode == 42
    assert "lost peer: Gloo failed" in done.stderr.splitlines() and "exit 42: lost peer: Gloo failed; --once" in ours(done.stderr)[0]


@pytest.mark.parametrize("flag", [["--workdir=run"], ["--workdir", "run"], ["--workdir=other", "--workdir=run"]])
def test_gives_up_after_three_starts_without_a_new_checkpoint(flag, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "20").mkdir(parents=True)
    # Starts 1 and 2 save nothing (a folder with another name is none), the third saves 30, the next three nothing.
    code = "n == 2 and os.mkdir('run/checkpoints/99.orbax-checkpoint-tmp')\nn == 3 and os.mkdir('run/checkpoints/30')\nsys.exit(42)"
    done = run(tmp_path, code, args=flag)
    assert done.returncode == 42 and starts(tmp_path) == 6
    *again, last = ours(done.stderr)
    counts = [re.search(r"start \d of 3|new checkpoint(?= \()", line)[0] for line in again]
    assert counts == ["start 2 of 3", "start 3 of 3", "new checkpoint", "start 2 of 3", "start 3 of 3"]
    assert "gave up after 3 starts without a new checkpoint (newest: 30)" in last


def test_starts_and_once(tmp_path):
    assert run(tmp_path, "sys.exit(42)", "--starts=2").returncode == 42 and starts(tmp_path) == 2
    assert run(tmp_path, "sys.exit(42)", "--once").returncode == 42 and starts(tmp_path) == 3


def test_the_newest_checkpoint_in_a_bucket(tmp_path, monkeypatch):
    """By gcloud, where Python has no gcsfs."""
    gcloud = tmp_path / "gcloud"
    whole = "gs://b/run/checkpoints/*/commit_success.txt"
    answer = 'for n in 7 12 99.x; do echo "${3%%/\\**}/$n/${3##*/}"; done'
    gcloud.write_text(f'#!/bin/sh\n[ "$*" = "storage ls {whole}" ] || exit 1\n{answer}\n')
    gcloud.chmod(0o755)
    monkeypatch.setattr(supervise.sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert supervise.newest_checkpoint("gs://b/run") == supervise.newest_checkpoint("gs://b/run/") == 12
    assert supervise.newest_checkpoint("gs://b/other") == -1
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert supervise.newest_checkpoint("gs://b/run") == -1


def test_a_step_in_a_bucket_counts_once_it_is_whole(gcs, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for step, last in ((7, "commit_success.txt"), (12, "commit_success.txt"), (15, "state/0")):
        gcs.buckets.setdefault("b", {})[f"run/checkpoints/{step}/{last}"] = b"x"
    assert supervise.newest_checkpoint("gs://b/run") == supervise.newest_checkpoint("gs://b/run/") == 12
    assert supervise.newest_checkpoint("gs://b/other") == -1


STOPPABLE = """
def stop(number, frame):
    open('signals', 'a').write(signal.Signals(number).name + ' ')
    saving.append(1)
saving = []
signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, stop)
print('ready', flush=True)
while not saving: time.sleep(0.01)
time.sleep(0.3)
sys.exit(42)
"""


@pytest.mark.parametrize("group", [False, True], ids=["wrapper", "its group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_reaches_the_command_once_and_ends_both(number, group, tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--wait_secs=0", "--", *wrapped(STOPPABLE)]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # libtpu ignores it for the process that loads it, ours here
    ) as process:
        assert process.stdout.readline() == "ready\n"
        (os.killpg if group else os.kill)(process.pid, number)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):  # or a failure would wait for ever
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 42 and starts(tmp_path) == 1, stderr
    assert (tmp_path / "signals").read_text() == ("SIGTERM " if number == signal.SIGHUP else number.name + " ")
    assert "told to stop" in ours(stderr)[0]


def test_a_stop_between_two_starts_ends_at_once(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--wait_secs=60", "--", *wrapped("sys.exit(42)")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert "starting again in 60 s" in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=10) == 42
    assert starts(tmp_path) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's death on Linux alone")
def test_the_command_stops_when_the_wrapper_is_killed(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--", *wrapped(STOPPABLE)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
    signals, end = tmp_path / "signals", time.monotonic() + 10
    while time.monotonic() < end and not (signals.exists() and signals.read_text()):
        time.sleep(0.02)
    # Once for each thread of the wrapper that outlived its first one: the kernel hands the child from one to the next.
    assert set(signals.read_text().split()) == {"SIGTERM"}


def test_a_grandchild_that_holds_stderr_open_does_not_hold_the_wrapper(tmp_path):
    start = time.monotonic()
    done = run(tmp_path, "import subprocess; subprocess.Popen(['sleep', '8'], stdout=subprocess.DEVNULL); sys.exit(2)", "--once")
    assert done.returncode == 2 and time.monotonic() - start < 7


def supervise_py(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "launch" / "supervise.py"), *words], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_dry_run_prints_the_command_and_runs_nothing(flag):
    done = supervise_py(flag, "--", "nowhere", "a b", "$HOME", "--dry-run", "--")
    assert done.returncode == 0 and done.stdout == "nowhere 'a b' '$HOME' --dry-run --\n" and not done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command"),
        (["--"], "no command"),
        (["python", "x.py"], "is not a flag"),
        (["--start=2", "--", "true"], "start"),
        (["--starts=0", "--", "true"], "starts"),
        (["--wait_secs=nan", "--", "true"], "wait_secs"),
        (["--wait_secs=-1", "--", "true"], "wait_secs"),
        (["--", "/nowhere/python"], "cannot be started"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, message):
    done = supervise_py(*words)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_help_and_a_light_start():
    done = supervise_py("--help")
    assert done.returncode == 0 and "--starts" in done.stdout and "launch/pretrain.py" in done.stdout
    code = "import sys; from electra_jax import supervise; print({'jax', 'numpy', 'flax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
