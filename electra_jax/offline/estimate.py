"""How long a compiled step may take on a chip that is not there: two estimates, between which the truth on a chip lies.

- C: the cycles of every scheduled operation as the compiler prices them ("CLASSIC"), and those of each Pallas kernel as libtpu's
  simulator counts them ("STATIC-LLO", simulator.py). Pessimistic: elementwise work is charged 2 to 25 times too much. It knows no
  collectives.
- composite: matrix products and kernels as in C, everything else at 80% of the memory's bandwidth, collectives at half of the sum of a
  chip's links. Optimistic: it knows no stalls, and no arithmetic outside of matrix products.
"""

from collections.abc import Sequence
from typing import Any

from electra_jax.offline import hlo
from electra_jax.parallel.chips import Chip

SHARE_OF_MEMORY_BANDWIDTH = 0.8


def secs_of(operation: hlo.Priced, chip: Chip) -> tuple[float, float]:
    """(C, composite) of one operation of the step; of a chip whose prices are known."""
    c_secs = operation.cycles * operation.times / chip.clock_hz
    if operation.multiplies or not operation.cycles:
        return c_secs, c_secs
    return c_secs, operation.bytes_hbm * operation.times / (SHARE_OF_MEMORY_BANDWIDTH * chip.memory_bytes_per_sec)


def estimates(module: hlo.Module, chip: Chip, flops: float, kernels: float | None, found: Sequence[hlo.Collective]) -> dict[str, Any]:
    """The two estimates of a step, in seconds and as the share of the chip's peak that the model's own `flops` are.

    kernels: cycles of all Pallas kernels in the step; None where they are not known. found: the step's collectives.
    """
    operations = list(hlo.priced(module))
    each = [secs_of(operation, chip) for operation in operations]
    links = sum(max(c.bytes_once, c.bytes_made) * c.times for c in found)  # a gather sends a part and receives the whole
    kernel_secs = (kernels or 0) / chip.clock_hz
    c_secs = sum(c for c, _ in each) + kernel_secs
    composite_secs = sum(composite for _, composite in each) + kernel_secs + links / chip.link_bytes_per_sec
    return {
        "cycles_classic": sum(op.cycles * op.times for op in operations),
        "cycles_matrix_products": sum(op.cycles * op.times for op in operations if op.multiplies),
        "cycles_kernels": kernels,
        "secs_c": c_secs,
        "secs_composite": composite_secs,
        "utilisation_c": flops / c_secs / chip.bfloat16_flops,
        "utilisation_composite": flops / composite_secs / chip.bfloat16_flops,
    }


def traffic(found: Sequence[hlo.Collective]) -> dict[str, Any]:
    """{kind of collective: what a step moves by it}, JSON values."""
    kinds = {kind: [c for c in found if c.kind == kind] for kind in sorted({c.kind for c in found})}
    return {
        kind: {
            "count": sum(c.times for c in of_kind),
            "bytes": sum(c.times * c.bytes_once for c in of_kind),
            "in_loops": sum(c.times for c in of_kind if c.depth),
            "dtypes": sorted({dtype for c in of_kind for dtype in c.dtypes}),
            "largest_elements": max(c.elements for c in of_kind),
        }
        for kind, of_kind in kinds.items()
    }
