"""What a run writes down while it trains: metrics.jsonl (the truth), TensorBoard, and a progress bar."""

import json
import math
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from electra_jax.files import sync_folder, whole_file
from electra_jax.watch.clock import Clock, Rates, Reached

_LINE_EVERY_SECS = 30.0  # where stderr is a file
_DRAW_EVERY_SECS = 0.2  # where it is a terminal
_TENSORBOARD_FLUSH_SECS = 30.0


def read_lines(path: str | os.PathLike) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """(line, its values) for each line of a metrics.jsonl; None for the values of a damaged line. The end that a death tore off is
    passed over."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            values = parse_line(line)
            if values is not None or line.endswith(b"\n"):
                yield line, values


_CRC = b', "crc32": '


def is_whole(line: bytes) -> bool:
    """Whether the line is as it was written: it ends with the CRC-32 of the bytes before that."""
    body, _, crc = line.removesuffix(b"\n").rpartition(_CRC)
    return crc == b"%d}" % zlib.crc32(body)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """`{"step": s, name: number, ...}`, NaN and infinities as floats again; None where the line is torn or damaged."""
    if not is_whole(line):
        return None
    values = json.loads(line)
    del values["crc32"]
    return {name: float(value) if type(value) is str else value for name, value in values.items()}


def format_line(step: int, metrics: Mapping[str, float]) -> bytes:
    """One line of metrics.jsonl. Floats by repr, which reads back to the same bits.

    JSON has no NaN and no infinities: they are the strings "NaN", "Infinity" and "-Infinity", as protobuf's
    JSON mapping writes them, which Python's `float` and JavaScript's `Number` read. A null would not tell
    them apart. The last field, `crc32`, is of the bytes before it: a flipped bit in a digit would else be another number.
    """
    values: dict[str, Any] = {"step": int(step)}
    for name, value in metrics.items():
        value = value if isinstance(value, int) else float(value)
        if math.isfinite(value):
            values[name] = value
        else:
            values[name] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    body = json.dumps(values, allow_nan=False).encode().removesuffix(b"}")
    return body + _CRC + b"%d}\n" % zlib.crc32(body)


def cut_back(path: str | os.PathLike, step: int) -> Reached:
    """Drops from a metrics.jsonl every line after `step`, and damaged ones: the steps after it will be run again.

    Atomic: after a death in here, the file is the old one or the new one.
    """
    path = pathlib.Path(path)
    reached, with_clock, kept_bytes, damaged = step, {}, 0, 0
    for line, values in read_lines(path):
        if values is None:
            damaged += 1
            continue
        reached = max(reached, values["step"])
        with_clock = values if b'"clock/' in line else with_clock
        kept_bytes += len(line) if values["step"] <= step and line.endswith(b"\n") else 0
    if path.exists() and kept_bytes != path.stat().st_size:
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            kept = (line for line, values in read_lines(path) if values is not None and values["step"] <= step)
            file.writelines(line.removesuffix(b"\n") + b"\n" for line in kept)
        sync_folder(path.parent)
    return Reached(reached, {name: value for name, value in with_clock.items() if name.startswith("clock/")}, damaged)


class Telemetry:
    """Writes the metrics of one session and shows its progress (one process's business).

    Opening it cuts metrics.jsonl back to `start_step` (0 for a run without a checkpoint) and hides later
    steps in TensorBoard; `reached` says how far an earlier session had come, and how many damaged lines were
    dropped. Raises OSError where the disk is full; what was written before stays good.
    """

    def __init__(
        self,
        metrics: str | os.PathLike,
        tensorboard: str | os.PathLike | None,
        *,
        total_steps: int,
        start_step: int,
        progress: bool = True,
    ):
        """metrics: the metrics.jsonl, made where it is not there. tensorboard: the folder of TensorBoard's files; None: none."""
        path = pathlib.Path(metrics)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.reached = cut_back(path, start_step)
        self._file = open(path, "ab", buffering=0)
        sync_folder(path.parent)
        self._events = _EventFile(pathlib.Path(tensorboard), start_step) if tensorboard is not None else None
        self._display = _Display(total_steps, start_step) if progress else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line. It outlives this process when the call returns, and the machine after `flush`."""
        line = format_line(step, metrics)
        # A file without a buffer may take a part of it, as a disk fills; the next write then raises.
        while line:
            line = line[self._file.write(line) :]
        if self._events:
            self._events.write(step, metrics)

    def flush(self) -> None:
        """Every line so far is on the disk when this returns."""
        os.fsync(self._file.fileno())
        if self._events:
            self._events.flush()

    def progress(self, step: int, loss: float, clock: Clock) -> None:
        """Shows how far the run is. Call it at every step: it draws a few times a second at most."""
        if self._display:
            self._display.progress(step, loss, clock)

    def note(self, message: str) -> None:
        """A line on stderr, without tearing the bar."""
        if self._display:
            self._display.note(message)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Shows the last step, and puts everything on the disk. A second call does nothing."""
        if self._file.closed:
            return
        try:
            if self._display:
                self._display.close()
            self.flush()
            if self._events:
                self._events.close()
        finally:
            self._file.close()


class Silent:
    """The Telemetry of every process but the first."""

    reached = Reached(0, {}, 0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def progress(self, step: int, loss: float, clock: Clock) -> None: ...
    def note(self, message: str) -> None: ...
    def close(self) -> None: ...


class _EventFile:
    """TensorBoard scalars, written by the caller at each flush.

    Not tensorboardX's SummaryWriter: on a full disk its writer thread dies with a trace, and the training
    loop then waits for ever at its full queue of ten. tensorboardX is imported at the first flush and not before the
    first step: it takes a second or two with it (torch, google.cloud.storage) where they are installed.
    """

    def __init__(self, folder: pathlib.Path, start_step: int):
        self._folder, self._start_step = folder, start_step
        self._writer = None
        self._waiting: list[tuple[float, int, Mapping[str, float]]] = []
        self._flushed = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._waiting.append((time.time(), int(step), metrics))
        if time.monotonic() - self._flushed > _TENSORBOARD_FLUSH_SECS:
            self.flush()

    def flush(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            self._folder.mkdir(exist_ok=True)
            # The name alone has whole seconds, and a second session within one would overwrite the first.
            self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{time.time_ns()}")
            # TensorBoard reads the files in name order, and here forgets what it read of this step and later
            # (what SummaryWriter calls purge_step).
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=self._start_step + 1, session_log=start))
        for wall_time, step, metrics in self._waiting:
            values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
            self._writer.write_event(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))
        self._waiting.clear()
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        self._writer.close()


class _Display:
    """A bar on a terminal; elsewhere a plain line now and then, for logs."""

    def __init__(self, total_steps: int, start_step: int):
        self._total_steps = total_steps
        self._bar = None
        if sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        self._shown_at = -math.inf
        self._pending: tuple[int, float, Clock] | None = None

    def progress(self, step: int, loss: float, clock: Clock) -> None:
        self._pending = (step, loss, clock)
        every_secs = _LINE_EVERY_SECS if self._bar is None else _DRAW_EVERY_SECS
        if time.monotonic() - self._shown_at >= every_secs:
            self._show()

    def _show(self) -> None:
        if self._pending is None:
            return
        step, loss, clock = self._pending
        self._pending, self._shown_at = None, time.monotonic()
        text = describe(loss, clock.rates(), clock.eta_secs(self._total_steps - step))
        if self._bar is None:
            percent = 100 * step / max(self._total_steps, 1)
            print(f"step {step}/{self._total_steps} ({percent:.0f}%): {text}", file=sys.stderr, flush=True)
        else:
            self._bar.n = step
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.refresh()

    def note(self, message: str) -> None:
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        self._show()
        if self._bar is not None:
            self._bar.close()


def describe(loss: float, rates: Rates | None, eta_secs: float | None) -> str:
    """`loss 8.912, 12.3k tokens/s, MFU 41%, ETA 5m10s`, as much of it as is known."""
    parts = [f"loss {loss:.3f}"]
    if rates is not None:
        parts.append(f"{format_count(rates.tokens_per_sec)} tokens/s")
        if rates.mfu is not None:
            parts.append(f"MFU {100 * rates.mfu:.0f}%")
    if eta_secs is not None:
        parts.append(f"ETA {format_secs(eta_secs)}")
    return ", ".join(parts)


def format_count(value: float) -> str:
    """Three digits: 987, 12.3k, 1.20M."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            break
        value /= 1000
    digits = 0 if not unit or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def format_secs(secs: float) -> str:
    """The two largest units: 42s, 5m10s, 3h07m, 2d04h."""
    secs = round(secs)
    for unit, larger, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if secs >= unit:
            return f"{secs // unit}{larger}{secs % unit // smaller:02d}{name}"
    return f"{secs}s"
