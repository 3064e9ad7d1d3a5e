"""How a run lies on its devices. No jax."""

import dataclasses

from electra_jax.options import one_of, option

EXECUTORS = ("auto", "jit", "shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    executor: str = option("auto", f"{', '.join(EXECUTORS)}; auto: shard_map for a mesh of data alone, jit elsewhere")
    slices: int = option(1, "slices of a TPU, joined by the data-center network")
    data: int = option(-1, "devices that share the rows; -1: those which the others leave")
    fsdp: int = option(1, "devices that share the rows, and the parameters and the optimizer's state too")

    def __post_init__(self):
        one_of("parallel.executor", self.executor, EXECUTORS)
