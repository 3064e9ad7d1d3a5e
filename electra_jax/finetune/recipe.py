"""The recipe of a fine-tuning run: the sections that every run has, the task, and how it is learned. No jax."""

import dataclasses
from typing import Any, Self

from electra_jax.cli import UserError
from electra_jax.finetune.config import FinetuneConfig, TaskConfig, null_threshold
from electra_jax.options import option
from electra_jax.recipe import RunRecipe


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe(RunRecipe):
    seeds: int = option(1, "runs that train together in one program, with seed, seed + 1, ...")
    task: TaskConfig = TaskConfig()
    finetune: FinetuneConfig = FinetuneConfig()

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.seeds <= 1000:
            raise UserError(f"seeds is {self.seeds}: it must be from 1 to 1000")
        if self.seed + self.seeds > 2**32:  # the next one would be seed 0 again
            raise UserError(f"seed is {self.seed}: with seeds={self.seeds} it must be at most 2**32 - {self.seeds}")
        for one, other in (("train.steps", "finetune.epochs"), ("schedule.warmup_steps", "finetune.warmup_share")):
            if one in self.given and other in self.given:
                raise UserError(f"{one} and {other} say the same: leave one of them out")

    def of_rows(self, steps: int, length: int, head: str) -> Self:
        """The recipe with what follows from the task and its rows, where the config leaves it open: steps, warm-up, row length, head and
        no-answer threshold."""
        train, schedule = self.train, self.schedule
        if "train.steps" not in self.given:
            train = dataclasses.replace(train, steps=steps)
        if "schedule.warmup_steps" not in self.given:
            warmup_steps = int(self.finetune.warmup_share * (schedule.decay_steps or train.steps))
            schedule = dataclasses.replace(schedule, warmup_steps=warmup_steps)
        threshold = self.finetune.no_answer_threshold
        if threshold is None:
            threshold = null_threshold(head)
        finetune = dataclasses.replace(self.finetune, length=length, head=head, no_answer_threshold=threshold)
        return dataclasses.replace(self, train=train, schedule=schedule, finetune=finetune)

    def resolve(self, platform: Any, network: str) -> Self:
        return self.resolved(platform, self.finetune.length, [network])
