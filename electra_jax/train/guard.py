"""What ends a run that should not go on: a hang, a stop signal, numbers that are no longer numbers. And a look inside."""

import faulthandler
import os
import pathlib
import signal
import sys
import threading
import time

import jax

from electra_jax.cli import EXIT_AGAIN, UserError


class Watchdog:
    """Ends the process with 42, every thread's stack printed, when no `tick` came for `timeout_secs` (0 = never).

    A context manager; time before it is entered (init, compilation) is not watched.
    """

    def __init__(self, timeout_secs: float):
        self._timeout_secs = timeout_secs
        self._last = (0, time.monotonic())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.tick(self._last[0])
        if self._timeout_secs:
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()

    def tick(self, step: int) -> None:
        self._last = (step, time.monotonic())

    def _watch(self) -> None:
        while not self._done.wait(min(self._timeout_secs / 4, 10.0)):
            step, since = self._last
            if time.monotonic() - since > self._timeout_secs:
                print(
                    f"no step for {self._timeout_secs:.0f}s after step {step}: every thread's stack follows; "
                    "run the same command again, it goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_AGAIN)


class PreemptionSignal:
    """SIGTERM, or a first Ctrl-C, asks the loop to save and stop; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "PreemptionSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class NonFinitePolicy:
    """Each non-finite step is skipped on the device and counted; so many in a row are a divergence, and a person's business."""

    def __init__(self, max_in_a_row: int):
        self._max_in_a_row = max_in_a_row

    def check(self, step: int, skipped_in_a_row: float) -> None:
        if skipped_in_a_row >= self._max_in_a_row:
            raise UserError(
                f"diverged: loss or gradient was not finite for {int(skipped_in_a_row)} steps in a row, up to step {step} (each was skipped): "
                "lower optimizer.learning_rate or raise schedule.warmup_steps, and start in another --workdir"
            )


class ProfilerWindow:
    """Traces steps [first, last) with jax.profiler, for TensorBoard or Perfetto. first == last: nothing."""

    def __init__(self, directory: str | os.PathLike, first_step: int, last_step: int):
        self._directory, self._first, self._last = pathlib.Path(directory), first_step, last_step
        self._running = False

    def step(self, step: int) -> None:
        """Call it before each step."""
        if self._running and step >= self._last:
            jax.profiler.stop_trace()
            self._running = False
        elif not self._running and self._first <= step < self._last:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
