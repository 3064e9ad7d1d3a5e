"""What stops a run between two steps: a signal, or numbers that are no longer finite. The exit codes: exit_codes.py."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable

from jax.experimental import multihost_utils

from electra_jax.cli import Diverged
from electra_jax.parallel import multihost


class PreemptionSignal:
    """SIGTERM, a lost terminal (SIGHUP, unless ignored as under nohup), or a first Ctrl-C asks the loop to save and stop; a second
    Ctrl-C interrupts it at once.

    A context manager, of the main thread (elsewhere Python allows no handlers, and nothing is caught); the handlers of
    before come back when it is left. Where several processes run, jax's own service hears SIGTERM on any of them and agrees
    with the others on a step; the other two are passed on to it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "PreemptionSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGHUP, *((signal.SIGTERM,) if multihost.count() == 1 else ())):
                if signal.getsignal(number) is not signal.SIG_IGN:
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
            with contextlib.suppress(OSError):
                os.write(2, f"\n{signal.Signals(number).name}: saving after this step, then stopping{again}\n".encode())
        self.requested = True
        if number == signal.SIGHUP:
            _let_go_of_the_terminal()

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; the same answer on every process. Call it after each step."""
        return multihost_utils.reached_preemption_sync_point(step) if multihost.count() > 1 else self.requested


def _let_go_of_the_terminal() -> None:
    """Where it is gone, each print would raise, and the save would not be reached: what is said from now on goes nowhere."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it may be closed already
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class NonFinitePolicy:
    """A step whose loss or gradient is not finite changes nothing but its count; so many in a row are a divergence.

    max_in_a_row: 0 = never stop. batch_rows: rows a step, to name the rows at fault. latest_step: the newest checkpoint's.
    """

    def __init__(self, max_in_a_row: int, *, batch_rows: int | None = None, latest_step: Callable[[], int | None] = lambda: None):
        self._max_in_a_row, self._batch_rows, self._latest_step = max_in_a_row, batch_rows, latest_step

    def check(self, step: int, skipped_in_a_row: float) -> None:
        """Given the count after `step` steps (the metric of the train step). Raises Diverged at `max_in_a_row`."""
        if not self._max_in_a_row or skipped_in_a_row < self._max_in_a_row:
            return
        rows, newest = "", self._latest_step()
        if self._batch_rows:
            rows = f" (rows {(step - 1) * self._batch_rows} to {step * self._batch_rows - 1} of the stream)"
        raise Diverged(
            f"the loss or the gradient was not finite at {int(skipped_in_a_row)} steps in a row, the last being {step}{rows}; "
            "each was skipped: lower optimizer.learning_rate or raise schedule.warmup_steps, and start in another --workdir; "
            + ("there is no checkpoint yet" if newest is None else f"the newest checkpoint is at step {newest}")
        )
