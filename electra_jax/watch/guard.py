"""What ends a run that should not go on: a hang, a stop signal, numbers that are no longer finite. And a look inside one."""

import faulthandler
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from electra_jax.cli import EXIT_AGAIN, UserError
from electra_jax.parallel import multihost


class Watchdog:
    """Ends the process with 42 (run the same command again), after the stack of every thread, when it hangs.

    One rule: that is when `timeout_secs` pass without a `tick` (0 = never), or as many as `allow` says inside of it. A
    context manager; outside of it nothing is watched. Time in which the process itself was stopped does not count.

    It needs the interpreter's lock for its message: a hang in native code that holds the lock is not seen. What jax waits
    for (a device, a compilation, a peer) is waited for without it.
    """

    def __init__(self, timeout_secs: float):
        self._timeout_secs = self._limit_secs = timeout_secs
        self._ticks, self._last = 0, "the start"
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._ticks += 1
        if self._timeout_secs:
            self._closed.clear()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def tick(self, step: int) -> None:
        """The run is alive, and came to `step`. Costs nothing."""
        self._last = f"step {step}"
        self._ticks += 1

    @contextmanager
    def allow(self, secs: float) -> Iterator[None]:
        """Around what may take longer than a step: a compilation, an evaluation, a save."""
        self._limit_secs = max(secs, self._timeout_secs)
        self._ticks += 1
        try:
            yield
        finally:
            self._ticks += 1
            self._limit_secs = self._timeout_secs

    def _watch(self) -> None:
        poll_secs = min(self._timeout_secs / 10, 1.0)
        seen, quiet_secs = self._ticks, 0.0
        # Rounds are counted and no clock is read: a process that was stopped (SIGSTOP, a suspended machine) lost one round.
        while not self._closed.wait(poll_secs):
            if self._ticks != seen:
                seen, quiet_secs = self._ticks, 0.0
                continue
            quiet_secs += poll_secs
            if quiet_secs >= self._limit_secs:
                print(
                    f"nothing happened for {quiet_secs:.0f} seconds after {self._last}: the process ends with {EXIT_AGAIN}; "
                    "the same command goes on from the last checkpoint. Where every thread stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(EXIT_AGAIN)


class PreemptionSignal:
    """SIGTERM, or a first Ctrl-C, asks the loop to save and stop; a second Ctrl-C interrupts it at once.

    A context manager, of the main thread (elsewhere Python allows no handlers, and nothing is caught); the handlers of
    before come back when it is left. Where several processes run, jax's own service hears SIGTERM on any of them and agrees
    with the others on a step; Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "PreemptionSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if multihost.count() > 1 else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if multihost.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self.requested:  # os.write, because the signal may have come in the middle of a print
            again = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
            os.write(2, f"\n{signal.Signals(number).name}: saving after this step, then stopping{again}\n".encode())
        self.requested = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; the same answer on every process. Call it after each step."""
        return multihost_utils.reached_preemption_sync_point(step) if multihost.count() > 1 else self.requested


class NonFinitePolicy:
    """A step whose loss or gradient is not finite changes nothing but its count; so many in a row are a divergence.

    max_in_a_row: 0 = never stop. batch_rows: rows a step, to name the rows at fault. latest_step: the newest checkpoint's.
    """

    def __init__(self, max_in_a_row: int, *, batch_rows: int | None = None, latest_step: Callable[[], int | None] = lambda: None):
        self._max_in_a_row, self._batch_rows, self._latest_step = max_in_a_row, batch_rows, latest_step

    def check(self, step: int, skipped_in_a_row: float) -> None:
        """Given the count after `step` steps (the metric of the train step). Raises UserError at `max_in_a_row`."""
        if not self._max_in_a_row or skipped_in_a_row < self._max_in_a_row:
            return
        rows, newest = "", self._latest_step()
        if self._batch_rows:
            rows = f" (rows {(step - 1) * self._batch_rows} to {step * self._batch_rows - 1} of the stream)"
        raise UserError(
            f"the loss or the gradient was not finite at {int(skipped_in_a_row)} steps in a row, the last being {step}{rows}; "
            "each was skipped: lower optimizer.learning_rate or raise schedule.warmup_steps, and start in another --workdir; "
            + ("there is no checkpoint yet" if newest is None else f"the newest checkpoint is at step {newest}")
        )


class ProfilerWindow:
    """Traces steps [start_step, stop_step) with jax.profiler into `directory`, for TensorBoard or Perfetto; each step is named.

    start_step == stop_step: nothing. A context manager, so that a run which ends inside the window writes its trace too.
    """

    def __init__(self, directory: str | os.PathLike, start_step: int, stop_step: int):
        self._directory, self._steps = pathlib.Path(directory), range(start_step, stop_step)
        self._annotation: jax.profiler.StepTraceAnnotation | None = None  # of the step that is being traced

    def __enter__(self) -> "ProfilerWindow":
        return self

    def __exit__(self, *_) -> None:
        self.step(self._steps.stop)

    def step(self, step: int) -> None:
        """Call it before each step is dispatched, with its number from 0."""
        tracing = self._annotation is not None
        if tracing:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if step in self._steps:
            if not tracing:
                jax.profiler.start_trace(str(self._directory))
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._annotation.__enter__()
        elif tracing:
            jax.profiler.stop_trace()
