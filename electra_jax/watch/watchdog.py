"""Ends a run that hangs."""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from electra_jax import exit_codes


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
                    f"nothing happened for {quiet_secs:.0f} seconds after {self._last}: the process ends with {exit_codes.AGAIN}; "
                    "the same command goes on from the last checkpoint. Where every thread stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(exit_codes.AGAIN)
