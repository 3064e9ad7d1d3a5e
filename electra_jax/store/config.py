"""How often a run is saved, and how many checkpoints stay. No jax."""

import dataclasses

from electra_jax.cli import UserError
from electra_jax.options import at_least, option


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = option(1_000, "steps between checkpoints; 0 = only at the end")
    keep: int = option(3, "the newest so many stay")
    keep_every_steps: int = option(0, "and each multiple of so many steps stays for good; 0 = none")

    def __post_init__(self):
        at_least(self, "checkpoint", every_steps=0, keep_every_steps=0)
        if self.keep < 1:
            raise UserError(f"checkpoint.keep={self.keep} would keep nothing to go on from: 1 or more")
