"""How a run trains and evaluates. No jax."""

import dataclasses

from electra_jax.cli import UserError
from electra_jax.options import at_least, option


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = option(1_000_000, "training steps")
    batch_rows: int = option(128, "rows a step, on all devices together")
    accumulation_steps: int = option(1, "micro-batches a step: the same result to rounding, in less memory")
    max_non_finite_steps: int = option(
        10, "skipped steps in a row whose loss or gradient is not finite, before the run stops; 0 = any number"
    )
    hang_secs: float = option(1800.0, "no step for so long: all stacks are printed, and the process exits 42; 0 = wait for ever")

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"train.steps is {self.steps}: it must be at least 1")
        at_least(self, "train", max_non_finite_steps=0, hang_secs=0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every_steps: int = option(5_000, "steps between evaluations; 0 = only at the end")
    max_rows: int = option(2_000, "held-out rows to evaluate on; 0 = all")
    batch_rows: int = option(32, "rows at a time, rounded up to a multiple of the devices")

    def __post_init__(self):
        at_least(self, "eval", batch_rows=1, max_rows=0, every_steps=0)
