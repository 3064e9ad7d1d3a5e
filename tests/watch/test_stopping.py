"""The guards, on real processes where they end one."""

import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from electra_jax.cli import UserError
from electra_jax.watch.profiler import ProfilerWindow
from electra_jax.watch.stopping import NonFinitePolicy, PreemptionSignal
from electra_jax.watch.watchdog import Watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(code: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- The watchdog

HANGS = """
import threading, time
from electra_jax.watch.watchdog import Watchdog

def a_peer_that_never_answers():
    threading.Event().wait()

threading.Thread(target=a_peer_that_never_answers, daemon=True).start()

def waits_for_it():
    time.sleep(60)

with Watchdog(0.8) as watchdog:
    for step in range(8):
        watchdog.tick(step)
        time.sleep(0.1)
    waits_for_it()
"""


def test_a_hang_ends_with_every_stack_and_42():
    process = start(HANGS)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 42
    first = stderr.splitlines()[0]
    assert re.fullmatch(r"nothing happened for \d+ seconds after step 7: the process ends with 42; the same command .*", first)
    for name in ("waits_for_it", "a_peer_that_never_answers", "_watch"):
        assert re.search(rf'File ".*", line \d+ in {name}', stderr), stderr


ALIVE = """
import time
from electra_jax.watch.watchdog import Watchdog

watchdog = Watchdog(0.8)
time.sleep(1.0)  # not watched yet
with watchdog:
    with watchdog.allow(30.0):  # a compilation
        time.sleep(1.2)
    for step in range(10):
        watchdog.tick(step)
        time.sleep(0.1)
with Watchdog(0.0):  # never; and the other no longer
    time.sleep(1.0)
print("alive", flush=True)
with watchdog:
    watchdog.tick(99)
    with watchdog.allow(0.1):  # never less than the usual
        time.sleep(0.4)
    with watchdog.allow(30.0):
        print("again", flush=True)
    time.sleep(20)  # the usual again
"""


def test_a_slow_run_is_left_alone():
    process = start(ALIVE)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.split() == ["alive", "again"], stderr
    assert process.returncode == 42 and "after step 99" in stderr


STOPPED = """
import time
from electra_jax.watch.watchdog import Watchdog

with Watchdog(2.0) as watchdog:
    watchdog.tick(1)
    print("go", flush=True)
    for _ in range(20):  # half a second of its own, wherever in it the process is stopped
        time.sleep(0.025)
    watchdog.tick(2)
    print("done", flush=True)
"""


def test_a_stopped_process_did_not_hang():
    """A suspended machine, or Ctrl-Z: the clock goes on, the run cannot."""
    process = start(STOPPED)
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == "done\n" and process.returncode == 0, stderr


# --- Stop signals

LOOP = """
import time
from electra_jax.watch.stopping import PreemptionSignal

with PreemptionSignal() as preemption:
    print("ready", flush=True)
    try:
        while not preemption.requested:
            time.sleep(0.01)
        print("requested", flush=True)
        time.sleep(SAVING)
        print("saved", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("left", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_save_and_stop(number):
    process = start(LOOP.replace("SAVING", "0.1"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert [process.stdout.readline() for _ in range(3)] == ["requested\n", "saved\n", "left\n"]
    process.send_signal(signal.SIGTERM)  # outside: the handler of before, which ends the process
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert stderr.split("\n")[1].startswith(f"{number.name}: saving after this step, then stopping")


def test_the_second_ctrl_c_interrupts_and_the_second_sigterm_does_not():
    process = start(LOOP.replace("SAVING", "30"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "requested\n"
    process.send_signal(signal.SIGTERM)
    assert not select.select([process.stdout], [], [], 0.5)[0]  # goes on saving
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert process.stdout.readline() == "left\n" and process.poll() is None
    process.kill()


def test_outside_the_main_thread_no_handler_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run():
        with PreemptionSignal() as preemption:
            found.append((preemption.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_the_handlers_come_back_also_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError):
        with PreemptionSignal():
            assert signal.getsignal(signal.SIGTERM) not in before
            raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# --- Numbers


def test_non_finite_steps_in_a_row_stop_the_run():
    policy = NonFinitePolicy(3, batch_rows=32, latest_step=lambda: 400)
    for step, in_a_row in enumerate((0.0, 1.0, 2.0, 0.0, 1.0, 2.0), start=410):
        policy.check(step, in_a_row)
    with pytest.raises(UserError) as error:
        policy.check(416, 3.0)
    message = str(error.value)
    assert message.startswith("the loss or the gradient was not finite at 3 steps in a row, the last being 416")
    # Step 416 is the one numbered 415 from 0: rows 415 x 32 up to the next step's first.
    assert "(rows 13280 to 13311 of the stream)" in message
    assert message.endswith("the newest checkpoint is at step 400") and "learning_rate" in message and "\n" not in message

    with pytest.raises(UserError, match="there is no checkpoint yet$"):
        NonFinitePolicy(1).check(1, 1.0)
    NonFinitePolicy(0).check(1, 0.0)  # 0 = never, not at once
    NonFinitePolicy(0).check(1000, 1000.0)


# --- The profiler


def traced_steps(directory: pathlib.Path) -> set[int]:
    """The step numbers in the one trace there, by the profiler's own reader."""
    (path,) = directory.rglob("*.xplane.pb")
    numbers = set()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == "train":
                    numbers |= {int(value) for name, value in event.stats if name == "step_num"}
    return numbers


@pytest.mark.parametrize(
    "first, last, window, expected",
    [(0, 8, (2, 5), {2, 3, 4}), (3, 8, (2, 5), {3, 4}), (0, 4, (2, 9), {2, 3}), (0, 8, (0, 0), None), (6, 8, (2, 5), None)],
    ids=["inside", "resumed inside", "the run ends inside", "none", "resumed after"],
)
def test_the_window_traces_its_steps(tmp_path, first, last, window, expected):
    add = jax.jit(lambda x: x + 1)
    x = jnp.zeros(8)
    with ProfilerWindow(tmp_path / "profile", *window) as profiler:
        for step in range(first, last):
            profiler.step(step)
            x = add(x)
    if expected is None:
        assert not (tmp_path / "profile").exists()
    else:
        assert traced_steps(tmp_path / "profile") == expected


def test_a_watchdog_costs_a_step_nothing():
    with Watchdog(60.0) as watchdog:
        start_secs = time.perf_counter()
        for step in range(1000):
            watchdog.tick(step)
        assert (time.perf_counter() - start_secs) / 1000 < 1e-4
