"""What an objective hides of a row, and how it weighs its losses. No jax."""

import dataclasses

from electra_jax.cli import UserError
from electra_jax.objectives import OBJECTIVES
from electra_jax.options import from_zero_up, one_of, option


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are to be predicted (google-research/electra `configure_pretraining.py`)."""

    rate: float = option(0.15, "share of a row's real tokens to predict; the paper's 0.15, Large's 0.25")
    mask_fraction: float = option(0.85, "of those, shown as [MASK]; the others stay as they are, none becomes a random token")
    with_replacement: bool = option(False, "draw positions with replacement, as the published code does (`faithful`)")
    whole_word: bool = option(False, "choose whole words, so that no piece of a word gives the others away")

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise UserError(f"masking.rate is {self.rate}: it must be between 0 and 1 (the paper's is 0.15, Large's 0.25)")
        if not 0.0 <= self.mask_fraction <= 1.0:
            raise UserError(f"masking.mask_fraction is {self.mask_fraction}: it must be from 0 to 1")
        if self.whole_word and self.with_replacement:
            raise UserError("masking.whole_word needs masking.with_replacement=False: a word is drawn once")

    def max_predictions(self, length: int) -> int:
        """The published N: 19 for rows of 128, 79 for 512 (130 at 25%)."""
        return min(length, max(1, int((self.rate + 0.005) * length)))

    def num_slots(self, length: int, multiple: int) -> int:
        """N rounded up to a multiple of what the hardware likes; the slots added have weight 0."""
        return -(-self.max_predictions(length) // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: the sum over an objective's terms of weight x mean loss."""

    name: str = option("electra", f"what to train on: {', '.join(OBJECTIVES)}")
    mlm_weight: float = option(1.0, "of the generator's masked language modelling loss")
    rtd_weight: float = option(50.0, "of the discriminator's replaced token detection loss")

    def __post_init__(self):
        one_of("objective.name", self.name, OBJECTIVES)
        from_zero_up(self, "objective", "mlm_weight", "rtd_weight")
