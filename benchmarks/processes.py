"""Sides that are measured against each other: a process each, which waits for its turn.

Load on the machine hits neighbours in time alike, so a ratio is taken round by round, of two turns that follow one another, and the
order turns round from one round to the next. Each side has its own peak of memory and the same allocator setting.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax.cli import UserError, one_line

WARMUP_TURNS = 2  # first touch of the memory, one to settle; the call that compiles comes before
_SERVE = "from benchmarks import processes; processes.serve()"


class Side(NamedTuple):
    """`function`, "module:name", called with `arguments` (JSON values) in the child, returns run() -> figures of one turn.

    `environment` is the child's own; `needs`: packages. What run() returns ("flops", "tokens" ...) stands in the turn beside its time.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str] = {}
    needs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """What to install for it; None where it is there."""
        absent = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None


class Spread(NamedTuple):
    """The median, and the first and third quartile."""

    median: float
    low: float
    high: float


class Turns(NamedTuple):
    """What each side's turns gave, in the order of the rounds. `failed`: side -> why it has none."""

    samples: dict[str, list[dict[str, float]]]
    failed: dict[str, str]

    def spread(self, side: str, name: str) -> Spread:
        return spread([sample[name] for sample in self.samples[side]])

    def median(self, side: str, name: str) -> float:
        return self.spread(side, name).median

    def peak(self, side: str, name: str = "peak_mib") -> float:
        return max(sample[name] for sample in self.samples[side])

    def ratio(self, above: str, below: str, name: str) -> Spread:
        """Of `above`'s figure to `below`'s, round by round."""
        pairs = zip(self.samples[above], self.samples[below], strict=True)
        return spread([a[name] / b[name] for a, b in pairs])

    def rate(self, side: str, work: str, secs: str = "wall") -> Spread:
        """`work` a second."""
        return spread([sample[work] / sample[secs] for sample in self.samples[side]])

    def rates(self, above: str, below: str, work: str, secs: str = "wall") -> Spread:
        """Of `above`'s rate to `below`'s, round by round."""
        pairs = zip(self.samples[above], self.samples[below], strict=True)
        return spread([a[work] / a[secs] / (b[work] / b[secs]) for a, b in pairs])


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(*[values[0]] * 3)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def measure(sides: Sequence[Side], rounds: int, optional: Container[str] = ()) -> Turns:
    """`rounds` turns of each side, one at a time, the order turned round after each.

    A side whose name is in `optional` may be unable to start, or die: it is left out, with the reason. UserError where another does.
    """
    samples: dict[str, list[dict[str, float]]] = {}
    failed = {}
    with contextlib.ExitStack() as stack:
        children = {}
        for side in sides:
            reason = side.missing()
            if not reason:
                child = stack.enter_context(_Child(side))
                reason = child.answer().get("failed")
            if not reason:
                children[side.name], samples[side.name] = child, []
            elif side.name in optional:
                failed[side.name] = reason
            else:
                raise UserError(f"{side.name}: {reason}")
        for number in range(rounds):
            names = list(children) if number % 2 == 0 else list(reversed(children))
            for name in names:
                turn = children[name].turn()
                if "failed" not in turn:
                    samples[name].append(turn)
                    continue
                reason = f"failed in round {number + 1}: {turn['failed']}"
                if name not in optional:
                    raise UserError(f"{name} {reason}")
                failed[name] = reason
                del children[name], samples[name]
    return Turns(samples, failed)


def first_turn_secs(side: Side) -> float:
    """From the start of a process to the end of its first turn: imports, building, compiling. UserError where it fails."""
    if reason := side.missing():
        raise UserError(reason)
    start = time.monotonic()
    with _Child(side, warmup=0) as child:
        answer = child.answer()
        if "failed" in answer:
            raise UserError(answer["failed"])
        return time.monotonic() - start


class _Child:
    def __init__(self, side: Side, warmup: int = WARMUP_TURNS):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._errors = tempfile.TemporaryFile()  # shown where the child dies without a word
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # for its own temporary files: it will be killed
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, side.function, json.dumps(dict(side.arguments)), str(warmup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "TMPDIR": self._folder.name,
                **side.environment,
                "PYTHONPATH": path,
            },
        )

    def answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return {"failed": f"it ended with exit code {self._process.wait()} {' '.join(last)}".strip()}

    def turn(self) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()


def serve() -> None:
    """The child: a line in, a turn and a line out."""
    function, arguments, warmup = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be read as an answer

    def say(answer: dict) -> None:
        print(json.dumps(answer), file=out, flush=True)

    from electra_jax.parallel import allocator

    allocator.keep_memory()  # before jax is imported
    module, name = function.split(":")
    try:
        run = getattr(importlib.import_module(module), name)(**arguments)
        for _ in range(1 + warmup):
            run()
        say({"ready": True})
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), _cpu_secs()
            figures = run()
            figures = {"wall": time.perf_counter() - wall, "cpu": _cpu_secs() - cpu, **figures}
            say({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **figures})
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {one_line(error)[:300]}"})
        raise


def _cpu_secs() -> float:
    """Of this process and of its children that have ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
