"""Which path of attention runs. No jax is imported here, so that a config can be checked without it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from electra_jax.cli import UserError
from electra_jax.models.attention import PATHS, path

if TYPE_CHECKING:
    from electra_jax.models.config import EncoderConfig

# Below this length the scores are too small for a fused kernel to be worth its calls.
FUSED_FROM = 256
# Rows of several lengths have lengths that are multiples of one of these.
MULTIPLES = (8, 128)


def choose(asked: str, platform: str, length: int, networks: Sequence["EncoderConfig"], directed: bool = False) -> str:
    """The name of the one path that all networks take; `asked` is "auto" or one of PATHS.

    directed: it must heed a DirectedBatch.

    Raises UserError where the one that is asked for cannot run here.
    """
    if asked == "auto":
        able = (name for name in PATHS if length >= FUSED_FROM and not _refusal(name, platform, length, networks, directed))
        return next(able, "xla")
    if why := _refusal(asked, platform, length, networks, directed):
        raise UserError(f"model.attention={asked}: {why} (model.attention=auto takes what can run)")
    return asked


def row_multiple(name: str, platform: str, length: int, networks: Sequence["EncoderConfig"]) -> int:
    """The least of MULTIPLES, or else `length` itself, such that the path that was chosen for rows of `length` tokens also runs all shorter
    rows whose length is a multiple of it. Kernels want multiples of 128, which is how many lanes a TPU has."""
    return next(
        (
            multiple
            for multiple in MULTIPLES
            if not any(_refusal(name, platform, shorter, networks) for shorter in range(multiple, length, multiple))
        ),
        length,
    )


def _refusal(name: str, platform: str, length: int, networks: Sequence["EncoderConfig"], directed: bool = False) -> str | None:
    if directed and not path(name).directed:
        return "the objective hides from a token what comes after it, which this path cannot"
    return next((why for network in networks if (why := path(name).refuses(network, length, platform))), None)
