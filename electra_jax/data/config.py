"""The data section of a config: which prepared rows a run trains on."""

from dataclasses import dataclass

from electra_jax.cli import UserError
from electra_jax.options import option

# What prepare.py advises, and what pretraining warns by.
ENOUGH_EPOCHS = 40  # beyond, more steps on the same text teach little
FEWEST_STEPS = 1_000  # below, the tiny preset has learned little more than word frequencies


@dataclass(frozen=True)
class DataConfig:
    path: str = option("", "a folder of launch/prepare.py's, or several: a,b")
    weights: tuple | None = option(None, "of the several: (0.7, 0.3); None: by their rows")
    length: int = option(128, "tokens per row: as the rows were prepared")

    def __post_init__(self):
        if self.weights is not None and not all(isinstance(weight, int | float) for weight in self.weights):
            raise UserError(f"data.weights is {tuple(self.weights)}: it must be one number for each folder, such as (0.7, 0.3)")

    @property
    def folders(self) -> list[str]:
        return [folder for folder in self.path.split(",") if folder]
