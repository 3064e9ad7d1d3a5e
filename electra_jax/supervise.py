"""Runs a command, understands how it ended, and starts it again where the same command goes on. Imports no jax.

A process that XLA aborts because a peer died cannot say so itself: what its stderr held is read here, and one line names
the process that was lost. The excerpts in tests/launch/stderr are what jax 0.10 and 0.12 print.
"""

import collections
import contextlib
import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from electra_jax import exit_codes
from electra_jax.cli import UserError
from electra_jax.store.names import CHECKPOINTS

KEPT_LINES = 200
MAX_WAIT_SECS = 60.0

# `processes: 0 hostA, 1 hostB`: what every process of a run prints at its start.
_PROCESSES = re.compile(r"^processes: (\d+ [^\s,]+(?:, \d+ [^\s,]+)*)\s*$")
_SERVICE = re.compile(r"coordination.?service|JAX distributed service", re.IGNORECASE)
_TASK = r"(?:/job:\S*/task:)?(\d+)"  # older coordinators write the long form
_SILENT = re.compile(rf"tasks are unhealthy \(stopped sending heartbeats\):\s*((?:{_TASK}[\s,]+)+)")
_TIMEOUT = re.compile(rf"Task {_TASK} heartbeat timeout")
_RESTARTED = re.compile(rf"{_TASK} unexpectedly tried to connect with a different incarnation")
_LEADER = re.compile(r"Either the leader task was preempted|Deadline Exceeded\s+RPC: \S*CoordinationService/Heartbeat")
_NEVER_CAME = re.compile(r"Deadline Exceeded\s+RPC: \S*CoordinationService/RegisterTask")
# The message of a Python exception that a dead peer causes, and the start of a line of XLA's log.
_COLLECTIVE = re.compile(r"gloo|nccl|heartbeat|barrier|by peer|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.IGNORECASE)
_GLOO = re.compile("terminate called after throwing .*gloo::")  # one end of a connection has gone, where no Python catches it
_LOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:|\*\*\* ")
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: not between fork and exec


class Ending(NamedTuple):
    """What an end of the command means: our exit code, and why in one line."""

    code: int
    reason: str


class Stderr:
    """Passes a stream on as it comes and keeps its last lines. Stack frames, which are indented, are not kept: a hundred
    threads of them would push out the line that matters."""

    def __init__(self, stream) -> None:
        self.hosts: dict[int, str] = {}
        self._lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._stream = stream
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        partial = b""
        while chunk := self._stream.read1(65536):
            with contextlib.suppress(OSError):  # nobody listens any more: go on reading, or the command would block
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
            *whole, partial = re.split(rb"[\r\n]", partial + chunk)
            partial = partial[-65536:]
            for line in whole:
                self._keep(line.decode(errors="replace"))
        self._keep(partial.decode(errors="replace"))

    def _keep(self, line: str) -> None:
        if match := _PROCESSES.match(line):
            self.hosts = {int(number): host for number, host in (entry.split() for entry in match[1].split(", "))}
        if line.strip() and not line[0].isspace():
            self._lines.append(line)

    def lines(self) -> list[str]:
        """The last lines. Waits a little only, because a grandchild that lives on may hold the stream open."""
        self._thread.join(timeout=2)
        return list(self._lines)


def lost_peer(lines: Sequence[str], hosts: dict[int, str]) -> str | None:
    """`lost process 3 (hostC): why`, where the lines tell that the coordination service ended this process; else None."""
    text = "\n".join(lines) + "\n"
    if not _SERVICE.search(text):
        return None

    def named(numbers, why: str) -> str:
        each = [f"{n} ({hosts[n]})" if n in hosts else f"{n} (host unknown)" for n in sorted(set(map(int, numbers)))]
        return f"lost process {', '.join(each)}: {why}"

    silent = [number for block in _SILENT.finditer(text) for number in re.findall(rf"{_TASK}[\s,]", block[1])]
    if silent or (silent := _TIMEOUT.findall(text)):
        return named(silent, "no sign of life from it (died, was preempted, or hangs)")
    if restarted := _RESTARTED.findall(text):
        return named(restarted, "it died and was started again")
    if _LEADER.search(text):
        return named([0], "the coordinator does not answer (died, was preempted, or hangs)")
    if _NEVER_CAME.search(text):
        return "lost a process: not all came to the start in time; the log of the one that is missing says why"
    return "lost a process: the coordination service ended this one and named none; the other logs say more"


def _defect(lines: Sequence[str]) -> str | None:
    """The Python error that this process itself died of, and that no dead peer explains.

    A defect in one process keeps it waiting for the others when it exits, and in the end is aborted like theirs.
    """
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts or starts[-1] + 1 >= len(lines):
        return None
    error, *after = lines[starts[-1] + 1 :]
    went_on = after and not _LOG.match(after[0])  # Python said more: the error was only reported
    return None if went_on or _LOG.match(error) or _COLLECTIVE.search(error) else error


def understand(returncode: int, lines: Sequence[str], hosts: dict[int, str]) -> Ending:
    """`returncode` as subprocess gives it: a negative signal number, or (behind a shell) 128 + the number."""
    number = -returncode if returncode < 0 else returncode - 128
    if returncode in (0, exit_codes.USER):
        return Ending(returncode, f"exit {returncode}")
    if returncode == exit_codes.AGAIN:
        return Ending(exit_codes.AGAIN, f"exit {exit_codes.AGAIN}" + (f": {' '.join(lines[-1].split())}" if lines else ""))
    if number == signal.SIGABRT and (lost := lost_peer(lines, hosts)):
        if error := _defect(lines):
            return Ending(exit_codes.DEFECT, f"aborted after its own error: {error}")
        return Ending(exit_codes.AGAIN, lost)
    if number == signal.SIGABRT and any(map(_GLOO.search, lines)):
        return Ending(exit_codes.AGAIN, "lost a process: Gloo met a broken connection and names none; another host's log may")
    if number == signal.SIGKILL:
        why = "most often the machine ran out of memory: `dmesg` tells, and a smaller batch a device helps"
        return Ending(exit_codes.AGAIN, f"killed (SIGKILL): {why}")
    if number in _STOPS:
        return Ending(exit_codes.AGAIN, f"ended by {signal.Signals(number).name}")
    what = signal.Signals(number).name if number in set(signal.Signals) else f"exit {returncode}"
    return Ending(exit_codes.DEFECT, f"{what}: a defect; it would happen again, so nothing is started again")


def workdir(command: Sequence[str]) -> str | None:
    """The value of the command's --workdir; as for absl, the last one counts."""
    found = None
    for i, word in enumerate(command):
        if match := re.fullmatch(r"--?workdir=(.*)", word, re.DOTALL):
            found = match[1]
        elif word in ("--workdir", "-workdir") and i + 1 < len(command):
            found = command[i + 1]
    return found or None


# In a process of its own, which can be given up.
_BUCKET = """
import sys
sys.path.insert(0, sys.argv[2])
from electra_jax import gcs
print(*gcs.filesystem().glob(sys.argv[1]), sep=chr(10))
"""
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def newest_checkpoint(folder: str | None) -> int:
    """The highest whole step in `folder`/checkpoints; -1 for none, or where it cannot be known.

    A bucket is listed by gcsfs, which the command itself needs there, and by gcloud where that cannot.
    """
    names: list[str] = []
    if folder and folder.startswith("gs://"):
        commits = f"{folder.rstrip('/')}/{CHECKPOINTS}/*/commit_success.txt"  # what Orbax writes last
        for command in ([sys.executable, "-c", _BUCKET, commits, _ROOT], ["gcloud", "storage", "ls", commits]):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
                if done.returncode == 0:
                    names = [line.rsplit("/", 2)[-2] for line in done.stdout.split()]
                    break
    elif folder:
        with contextlib.suppress(OSError):
            names = os.listdir(os.path.join(folder, CHECKPOINTS))
    return max((int(name) for name in names if re.fullmatch("[0-9]+", name)), default=-1)


def _die_with_parent() -> None:
    """Should the wrapper itself be killed, the command saves and stops, instead of training on unseen (Linux)."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Wrapper:
    """Starts the command again and again. Use it from the main thread: only there can signals be caught."""

    def __init__(self, command: Sequence[str], *, starts: int = 3, once: bool = False, wait_secs: float = 5.0) -> None:
        if not command:
            raise UserError("no command: write it after --, as in: python launch/supervise.py -- python launch/pretrain.py --workdir=...")
        if not math.isfinite(wait_secs):
            raise UserError(f"--wait_secs={wait_secs} is no number of seconds: choose one such as 5")
        self._command, self._starts, self._once, self._wait_secs = list(command), starts, once, wait_secs
        self._folder = workdir(command)
        self._child: subprocess.Popen | None = None
        self._pending: list[int] = []  # signals not yet passed on
        self._stop = False

    def run(self) -> int:
        """The exit code of our table."""
        before = {number: signal.getsignal(number) for number in _STOPS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as under nohup: what is ignored stays ignored
                signal.signal(number, self._on_signal)
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        newest, fruitless = newest_checkpoint(self._folder), 0
        while not self._stop:
            ending = self._start()
            if ending.code != exit_codes.AGAIN:
                if ending.code == exit_codes.DEFECT:
                    self._say(ending.reason)
                return ending.code
            latest = newest_checkpoint(self._folder)
            fruitless = 0 if latest > newest else fruitless + 1
            newest = max(newest, latest)
            if self._stop or self._once:
                self._say(f"{ending.reason}; " + ("told to stop" if self._stop else "--once: not started again"))
                return exit_codes.AGAIN
            where = f"newest: {newest}" if newest >= 0 else "there is none"
            if fruitless >= self._starts:
                self._say(f"{ending.reason}; gave up after {fruitless} starts without a new checkpoint ({where}): mend the cause first")
                return exit_codes.AGAIN
            wait_secs = min(self._wait_secs * 2 ** max(0, fruitless - 1), max(self._wait_secs, MAX_WAIT_SECS))
            count = f"start {fruitless + 1} of {self._starts} without a new checkpoint" if fruitless else "there is a new checkpoint"
            self._say(f"{ending.reason}; starting again in {wait_secs:g} s: {count} ({where})")
            self._wait(wait_secs)
        self._say("told to stop before the next start")
        return exit_codes.AGAIN

    def _start(self) -> Ending:
        """One start of the command, to its end."""
        try:
            # A process group of its own: Ctrl-C in a terminal reaches the whole foreground group, and with what we pass on
            # the command would get it twice. It reads no stdin: a second start would find it consumed.
            child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0, preexec_fn=_die_with_parent
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{self._command[0]}: cannot be started: {error}: mend the command after --") from error
        self._child = child
        self._pass_on()  # what came while it was being started
        stderr = Stderr(child.stderr)
        returncode = child.wait()
        self._child = None
        return understand(returncode, stderr.lines(), stderr.hosts)

    def _on_signal(self, number: int, frame) -> None:
        self._pending.append(signal.SIGTERM if number == signal.SIGHUP else number)  # one that is still starting dies of SIGHUP
        self._stop = True
        self._pass_on()

    def _pass_on(self) -> None:
        while self._child and self._pending:
            self._child.send_signal(self._pending.pop(0))

    def _wait(self, secs: float) -> None:
        end = time.monotonic() + secs
        while not self._stop and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    @staticmethod
    def _say(message: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(f"supervise.py: {message}", file=sys.stderr, flush=True)
