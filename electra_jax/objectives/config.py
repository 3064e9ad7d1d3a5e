"""What an objective hides of a row, and how it weighs its losses. No jax."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from electra_jax.cli import UserError
from electra_jax.objectives import OBJECTIVES
from electra_jax.options import from_zero_up, one_of, option


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are to be predicted (google-research/electra `configure_pretraining.py`)."""

    rate: float = option(0.15, "share of a row's real tokens to predict; the paper's 0.15, Large's 0.25")
    mask_fraction: float = option(0.85, "of those, shown as [MASK]; BERT's 0.8")
    random_fraction: float = option(0.0, "of those, shown as a random token; BERT's 0.1; what is left stays as it is")
    with_replacement: bool = option(False, "draw positions with replacement, as the published code does (`faithful`)")
    whole_word: bool = option(False, "choose whole words, so that no piece of a word gives the others away")

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise UserError(f"masking.rate is {self.rate}: it must be between 0 and 1 (the paper's is 0.15, Large's 0.25)")
        for name in ("mask_fraction", "random_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"masking.{name} is {getattr(self, name)}: it must be from 0 to 1")
        if self.mask_fraction + self.random_fraction > 1.0:
            raise UserError(
                f"masking.mask_fraction and masking.random_fraction are {self.mask_fraction} and {self.random_fraction}: "
                "together they must be 1 at most"
            )
        if self.whole_word and self.with_replacement:
            raise UserError("masking.whole_word needs masking.with_replacement=False: a word is drawn once")

    def max_predictions(self, length: int) -> int:
        """The published N: 19 for rows of 128, 79 for 512 (130 at 25%)."""
        return min(length, max(1, int((self.rate + 0.005) * length)))

    def num_slots(self, length: int, multiple: int) -> int:
        """N rounded up to a multiple of what the hardware likes; the slots added have weight 0."""
        return -(-self.max_predictions(length) // multiple) * multiple


_NUMBER = r"\d+(?:\.\d*)?(?:e-?\d+)?"
GENERATORS = ("network", "uniform", "unigram")


class Part(NamedTuple):
    """An objective of a mixture, and its weight: `first` at step 0, changing evenly to `last` at `steps`."""

    name: str
    first: float
    last: float
    steps: int


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: the sum over an objective's terms of weight x mean loss. docs/objectives.md says which objective reads what;
    one that does not read a field refuses another value than the default."""

    name: str = option("electra", f"what to train on: {', '.join(OBJECTIVES)}")
    mlm_weight: float = option(1.0, "of the generator's masked language modelling loss")
    rtd_weight: float = option(50.0, "of the discriminator's binary loss, replaced or original")
    lm_weight: float = option(1.0, "of the discriminator's loss over the vocabulary")
    generator: str = option("network", f"what replaces the masked tokens: {', '.join(GENERATORS)} (tokens by their frequencies)")
    train_generator: bool = option(True, "False: the generator stays what init_from brought")
    temperature: float = option(1.0, "of the softmax that replacements are drawn from")
    temperature_decay_steps: int = option(0, "N: the temperature goes to 1 as exp(-step / N) goes to 0 (Fast-ELECTRA); 0: it stays")
    sample_dropout: bool = option(True, "False: replacements are drawn without dropout, by a second pass of the generator (COCO-LM)")
    allow_correct: bool = option(True, "False: the original token is never drawn as its own replacement")
    towers: bool = option(True, "electric: two towers give the noise at every token; False: one generator, at the masked tokens alone")
    mixture: str = option(
        "", "mixture: objectives and their weights, `electra=1,mlm=0.5`; `mlm=1>0@2000` changes within the first 2,000 steps"
    )
    causal_fraction: float = option(1 / 16, "mntp_clm: the share of rows that are read from left to right, and of the loss")
    z_weight: float = option(1e-4, "mntp_clm: of the squared logarithm of the softmax's denominator")

    def __post_init__(self):
        one_of("objective.name", self.name, OBJECTIVES)
        one_of("objective.generator", self.generator, GENERATORS)
        from_zero_up(self, "objective", "mlm_weight", "rtd_weight", "lm_weight", "z_weight")
        if not 0.0 <= self.causal_fraction < 1.0:
            raise UserError(f"objective.causal_fraction is {self.causal_fraction}: it must be from 0 to below 1")
        self.parts  # noqa: B018  its check
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"objective.temperature is {self.temperature}: it must be a number above 0")
        if self.temperature_decay_steps < 0:
            raise UserError(f"objective.temperature_decay_steps is {self.temperature_decay_steps}: it must be a number from 0 up")

    @property
    def parts(self) -> list[Part]:
        """Of a mixture. UserError where the text is no list of objectives and weights."""
        found = []
        for word in self.mixture.split(",") if self.mixture else ():
            name, _, weight = word.partition("=")
            match = re.fullmatch(rf"({_NUMBER})(?:>({_NUMBER})@(\d+))?", weight)
            if match is None:
                raise UserError(
                    f"objective.mixture has {word!r}: write NAME=WEIGHT, or NAME=FIRST>LAST@STEPS for a weight that changes evenly "
                    "within the first so many steps"
                )
            one_of("objective.mixture", name, [each for each in OBJECTIVES if each != "mixture"])
            first, last = float(match[1]), float(match[2] or match[1])
            found.append(Part(name, first, last, int(match[3] or 0)))
        if twice := [part.name for place, part in enumerate(found) if part.name in [each.name for each in found[:place]]]:
            raise UserError(f"objective.mixture has {twice[0]} twice")
        if self.name == "mixture" and not found:
            raise UserError("objective.name=mixture needs objective.mixture, such as electra=1,mlm=0.5")
        return found

    def refuse_unread(self, read: Sequence[str]) -> None:
        """UserError where a field that the objective does not read has another value than its default."""
        for field in dataclasses.fields(self):
            if field.name not in ("name", *read) and (value := getattr(self, field.name)) != field.default:
                reads = f"it reads {', '.join(read)}" if read else "it reads no other field of this section"
                raise UserError(f"objective.{field.name} is {value}, and {self.name} has no such thing: leave it out ({reads})")
