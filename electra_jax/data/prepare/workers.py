"""Worker processes that die with their parent, and a meter of progress: a bar on a terminal, a line now and then elsewhere."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from electra_jax.cli import UserError
from electra_jax.limits import available_cores

BYTES_PER_WORKER = 4 << 20  # starting a process takes as long as preparing so much text


class Workers:
    """A pool of processes; with one worker, this process itself does the work."""

    def __init__(self, workers: int, num_bytes: int):
        """`workers` 0: all cores, but no more than `num_bytes` of input keep busy."""
        self.workers = workers or max(1, min(available_cores(), num_bytes // BYTES_PER_WORKER))
        self._pool = None

    def __enter__(self) -> "Workers":
        if self.workers > 1:
            # Spawned and not forked: a fork of a process in which Rust or ArrayRecord have run threads may hang.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=_start_worker)
        return self

    def __exit__(self, *_):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, function: Callable, tasks: Iterable[tuple]) -> Iterator:
        """What `function(*task)` returns for each task, as they end. At most two tasks per worker are held in memory."""
        if self._pool is None:
            yield from (function(*task) for task in tasks)
            return
        try:
            pending = set()
            for task in tasks:
                pending.add(self._pool.submit(function, *task))
                if len(pending) >= 2 * self.workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely for lack of memory: run the same command again with fewer --workers"
            ) from None


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads of Rust's own: there is a process for each core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Meter:
    """Progress of one stage on stderr: tqdm on a terminal, else a line every 30 seconds and one at the end."""

    LINE_SECS = 30

    def __init__(self, title: str, total: int, unit: str, shown: bool):
        self._title, self._total, self._unit, self._done = title, total, unit, 0
        self._start = self._last = time.monotonic()
        self._shown, self._bar = shown, None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=title, unit=unit, unit_scale=unit == "B", dynamic_ncols=True)

    def __enter__(self) -> "Meter":
        return self

    def add(self, amount: int) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.total = max(self._bar.total, self._done)
            self._bar.update(amount)
        elif self._shown and time.monotonic() - self._last > self.LINE_SECS:
            self._last = time.monotonic()
            secs = self._last - self._start
            left = max(0, self._total - self._done) / self._done * secs if self._done else float("inf")
            self._line(f", about {left / 60:.0f} min left")

    def __exit__(self, kind, *_):
        if self._bar is not None:
            if kind is None:
                self._bar.total = self._done
            self._bar.close()
        elif self._shown and kind is None and self._done:
            self._line("")

    def _line(self, more: str) -> None:
        secs = max(1e-9, time.monotonic() - self._start)
        if self._unit == "B":
            amount = f"{self._done / 1e6:,.1f} MB of text, {self._done / 1e6 / secs:.1f} MB/s"
        else:
            amount = f"{self._done} of {self._total} {self._unit}"
        print(f"{self._title}: {amount}, {secs:.0f} s{more}", file=sys.stderr, flush=True)
