"""How a run trains and evaluates. No jax."""

import dataclasses
import math
import re

from electra_jax.cli import UserError
from electra_jax.options import at_least, from_zero_up, one_of, option

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes over a run; see optimizer.schedule. Its peak is the optimizer's."""

    warmup_steps: int = option(10_000, "steps until the rate is at its peak")
    decay_steps: int = option(0, "the step at which the rate reaches 0; 0 = train.steps, which then cannot change on resume")
    product: bool = option(False, "warm-up and decay multiply from step 0 on, as in the published code")

    def __post_init__(self):
        at_least(self, "schedule", warmup_steps=0, decay_steps=0)
        if self.decay_steps >= 2**31:
            raise UserError(f"schedule.decay_steps is {self.decay_steps}: it must be below 2**31")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Raises UserError for a value that no optimizer can have."""

    name: str = option("adamw", f"{', '.join(OPTIMIZERS)} (muon: on the layers' matrices, and AdamW elsewhere)")
    learning_rate: float = option(5e-4, "AdamW's, at its peak")
    muon_learning_rate: float = option(0.02, "Muon's, at its peak")
    muon_weight_decay: float = option(0.1, "Muon's, times its rate")
    beta1: float = option(0.9, "decay of AdamW's mean of the gradients, per step")
    beta2: float = option(0.999, "decay of AdamW's mean of their squares, per step")
    epsilon: float = option(1e-6, "added to the root of that mean")
    weight_decay: float = option(0.01, "AdamW's, times its rate; LayerNorms and biases have none")
    bias_correction: bool = option(True, "of AdamW's two means; the published code has none")
    clip_norm: float = option(1.0, "largest norm of all gradients together; 0 = no clip")
    rates: tuple = option(
        (),
        "(path regex, factor on the rate), the first match counts: (('layers/', 0.5),); a tuple of factors is one a layer",
    )

    def __post_init__(self):
        one_of("optimizer.name", self.name, OPTIMIZERS)
        from_zero_up(self, "optimizer", "learning_rate", "muon_learning_rate", "muon_weight_decay", "epsilon", "weight_decay", "clip_norm")
        for name in ("beta1", "beta2"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: it must be between 0 and 1")
        for rate in self.rates:
            try:
                regex, factor = rate
                re.compile(regex)
                factors = factor if isinstance(factor, tuple) else (factor,)
                if not all(isinstance(each, int | float) and math.isfinite(each) for each in factors):
                    raise ValueError(f"{factor!r} is no number, nor one for each layer")
            except (TypeError, ValueError, re.error) as error:
                raise UserError(
                    f"optimizer.rates: {rate!r} is no pair of a regular expression and a factor ({error}): write (('layers/', 0.5),)"
                ) from error


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
        for name in ("steps", "batch_rows", "accumulation_steps"):
            if getattr(self, name) >= 2**31:
                raise UserError(f"train.{name} is {getattr(self, name)}: it must be below 2**31")
        at_least(self, "train", max_non_finite_steps=0, hang_secs=0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every_steps: int = option(5_000, "steps between evaluations; 0 = only at the end")
    max_rows: int = option(2_000, "held-out rows to evaluate on; 0 = all")
    batch_rows: int = option(32, "rows at a time, rounded up to a multiple of the devices")
    mask_rate: float = option(
        0.0,
        "share of a held-out row's tokens to predict, all shown as [MASK]: to compare runs that mask otherwise; 0: as masking says",
    )
    rank_rows: int = option(256, "held-out rows, at least, of which the effective rank of each layer's states is measured; 0 = none")

    def __post_init__(self):
        at_least(self, "eval", batch_rows=1, max_rows=0, every_steps=0, rank_rows=0)
        if not 0.0 <= self.mask_rate < 1.0:
            raise UserError(f"eval.mask_rate is {self.mask_rate}: it must be from 0 to below 1")
        if self.batch_rows >= 2**31:
            raise UserError(f"eval.batch_rows is {self.batch_rows}: it must be below 2**31")
