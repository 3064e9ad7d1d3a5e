"""The clock of a run: where its seconds went, over all its sessions, and the rates that follow.

MFU (model FLOPs utilisation) = the model's own FLOPs / seconds of training / peak FLOP/s of the devices.
"""

import collections
import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

SECTIONS = ("init", "compile", "data", "step", "eval", "checkpoint", "other")  # other: outside every section

_RATE_WINDOW_SECS = 20.0
_RATE_WINDOW_MIN_STEPS = 16


def measure_matmul_peak(dtype: str = "float32", size: int = 2048, budget_secs: float = 0.25) -> float:
    """FLOP/s of a `size`-cubed matrix product on the default device: the best of as many as fit.

    It stands in where there is no data sheet: a CPU's figure depends on its cores, clock and neighbours.
    """
    import jax
    import jax.numpy as jnp

    matmul = jax.jit(jnp.matmul)
    x_NxN = jnp.ones((size, size), dtype)
    start = time.monotonic()
    matmul(x_NxN, x_NxN).block_until_ready()
    best_secs, tries = math.inf, 0
    while tries < 2 or time.monotonic() - start < budget_secs:
        began = time.perf_counter()
        matmul(x_NxN, x_NxN).block_until_ready()
        best_secs, tries = min(best_secs, time.perf_counter() - began), tries + 1
    return 2 * size**3 / best_secs


def stragglers(own_secs: Mapping[int, float], step_secs: float) -> tuple[dict[str, float], str | None]:
    """What the hosts' own seconds a step, by process, say: metrics, and a line where one holds up the others; ({}, None) for one host.

    Hosts wait for one another in every step, so that all of them take the same time for it; the slow one is the one that
    works while the others wait. It matters where its own work is more than a tenth of a step.
    """
    if len(own_secs) < 2:
        return {}, None
    slowest, middle = max(own_secs.values()), statistics.median_low(own_secs.values())
    metrics = {"clock/host_secs_slowest": slowest, "clock/host_secs_median": middle}
    if slowest < 1.5 * middle or slowest < 0.1 * step_secs:
        return metrics, None
    return metrics, (
        f"straggler: process {max(own_secs, key=own_secs.get)} works {slowest:.3f} s a step by itself, the median {middle:.3f} s "
        f"({slowest / max(middle, 1e-9):.1f} x): its disk or its CPU is slow"
    )


class Rates(NamedTuple):
    steps_per_sec: float
    tokens_per_sec: float
    mfu: float | None  # None where the FLOPs of steps or the devices' peak are not known


class Reached(NamedTuple):
    """How far metrics.jsonl went before it was cut back."""

    step: int  # never less than the step that it was cut back to
    clock: dict[str, float]  # the last `clock/*` values in it
    damaged: int  # lines that could not be read


class Clock:
    """Where the seconds of a run went. The checkpoint carries it, so that a resume goes on counting.

    Sections exclude one another: a nested one pauses the outer. Time while no process ran is nobody's, and
    not counted. `peak_flops_per_sec` (all devices together) may be set when it becomes known.
    """

    def __init__(
        self,
        *,
        peak_flops_per_sec: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.peak_flops_per_sec = peak_flops_per_sec
        self.peak_is_measured = False  # here, and not of a data sheet: what is achieved may then be more
        self.steps = 0
        self.tokens = 0
        self.lost_steps = 0  # run, then run again because the process died before they were saved
        self.lost_secs = 0.0
        self._restored_wall_secs = 0.0
        self._waited_secs = 0.0
        self._secs = dict.fromkeys(SECTIONS, 0.0)
        self._current = "other"
        self._now = now
        self._since = now()
        self._flops = 0.0  # of this session
        # (seconds of training, steps, tokens, FLOPs) after each of the last steps
        self._window: collections.deque[tuple[float, int, int, float]] = collections.deque()

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        if name not in SECTIONS:
            raise ValueError(f"no section {name!r}: one of {', '.join(SECTIONS)}")
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the devices, and so for the slowest host: it is no work of this host's own."""
        start = self._now()
        try:
            yield
        finally:
            self._waited_secs += self._now() - start

    def own_secs(self) -> float:
        """Seconds of training up to now in which this host itself was at work, most of all at the next batch."""
        return self._training_secs() - self._waited_secs

    def _enter(self, name: str) -> str:
        now = self._now()
        self._secs[self._current] += now - self._since
        self._since = now
        before, self._current = self._current, name
        return before

    def secs(self) -> dict[str, float]:
        """Seconds by section up to now."""
        self._enter(self._current)
        return dict(self._secs)

    def wall_secs(self) -> float:
        """All seconds that the run has had, those included whose work was lost."""
        return sum(self.secs().values()) + self.lost_secs

    def count(self, *, steps: int, tokens: int, flops: float) -> None:
        """Steps that have finished on the device. `tokens`: the real ones. `flops`: analytic, because XLA's own count varies with
        sharding and kernels."""
        self.steps += steps
        self.tokens += tokens
        self._flops += flops
        window, training_secs = self._window, self._training_secs()
        # The first entry is the end of the session's first step: if that one compiled, no rate shows it.
        window.append((training_secs, self.steps, self.tokens, self._flops))
        while len(window) > _RATE_WINDOW_MIN_STEPS and training_secs - window[1][0] > _RATE_WINDOW_SECS:
            window.popleft()

    def _training_secs(self) -> float:
        # With the wait for data: the device works on the step before meanwhile, so that the seconds of the
        # step's section alone would flatter the rate.
        secs = self.secs()
        return secs["data"] + secs["step"]

    def rates(self) -> Rates | None:
        """Over about the last 20 seconds of training, evaluation and checkpoints left out; None at first."""
        if len(self._window) < 2:
            return None
        ends = self._window[0], self._window[-1]
        secs, steps, tokens, flops = (last - first for first, last in zip(*ends, strict=True))
        secs = max(secs, 1e-9)
        achieved = flops / secs
        if self.peak_is_measured and self.peak_flops_per_sec:
            self.peak_flops_per_sec = max(self.peak_flops_per_sec, achieved)  # it was measured beside other load
        mfu = achieved / self.peak_flops_per_sec if flops and self.peak_flops_per_sec else None
        return Rates(steps / secs, tokens / secs, mfu)

    def eta_secs(self, steps_left: int) -> float | None:
        """Seconds for `steps_left` at the present rate, with pauses in proportion."""
        rates = self.rates()
        if rates is None or not rates.steps_per_sec:
            return None
        secs = self.secs()
        pauses = (secs["eval"] + secs["checkpoint"]) / max(secs["data"] + secs["step"], 1e-9)
        return steps_left / rates.steps_per_sec * (1 + pauses)

    def summary(self) -> dict[str, float]:
        """`clock/*` metrics. Goodput is the share of all seconds that went into steps which count."""
        secs, wall_secs = self.secs(), self.wall_secs()
        metrics: dict[str, float] = {
            "clock/tokens": self.tokens,
            "clock/goodput": secs["step"] / max(wall_secs, 1e-9),
        }
        if rates := self.rates():
            metrics["clock/steps_per_sec"] = rates.steps_per_sec
            metrics["clock/tokens_per_sec"] = rates.tokens_per_sec
            if rates.mfu is not None:
                metrics["clock/mfu"] = rates.mfu
        metrics |= {f"clock/secs_{name}": value for name, value in secs.items()}
        return metrics | {
            "clock/secs_lost": self.lost_secs,
            "clock/secs_wall": wall_secs,
            "clock/lost_steps": self.lost_steps,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for the checkpoint."""
        return {
            "secs": self.secs(),
            "steps": self.steps,
            "tokens": self.tokens,
            "lost_steps": self.lost_steps,
            "lost_secs": self.lost_secs,
        }

    def from_dict(self, saved: Mapping[str, Any]) -> None:
        """Adds what earlier sessions spent and counted (their `to_dict`) to this one."""
        self.secs()
        for name, value in saved["secs"].items():
            self._secs[name if name in SECTIONS else "other"] += float(value)
        self.steps += int(saved["steps"])
        self.tokens += int(saved["tokens"])
        self.lost_steps += int(saved["lost_steps"])
        self.lost_secs += float(saved["lost_secs"])
        self._restored_wall_secs = sum(saved["secs"].values()) + saved["lost_secs"]
        self._window.clear()

    def resumed(self, restored_step: int, reached: Reached) -> None:
        """Counts as lost what the session before did after the restored step. Call it after `from_dict`.

        `reached` comes from cutting back its metrics.jsonl; what it did after its last line is not known.
        Write `summary()` at the restored step next, so that sessions which die before a checkpoint add up.
        """
        self.lost_steps = max(self.lost_steps, int(reached.clock.get("clock/lost_steps", 0)))
        self.lost_steps += max(reached.step - restored_step, 0)
        self.lost_secs += max(reached.clock.get("clock/secs_wall", 0.0) - self._restored_wall_secs, 0.0)
