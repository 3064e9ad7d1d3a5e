"""What a run tells while it trains. No jax."""

import dataclasses

from electra_jax.cli import UserError
from electra_jax.options import at_least, option


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every_steps: int = option(100, "steps between lines of metrics.jsonl; 0 = only at the end")
    tensorboard: bool = option(True, "write TensorBoard's files too")
    profile_steps: tuple = option((0, 0), "(first, last): trace these steps, the last not included, for TensorBoard or Perfetto")

    def __post_init__(self):
        at_least(self, "log", every_steps=0)
        if len(self.profile_steps) != 2 or not all(type(number) is int and number >= 0 for number in self.profile_steps):
            raise UserError(f"log.profile_steps is {self.profile_steps}: it must be two step numbers, (first, last)")
