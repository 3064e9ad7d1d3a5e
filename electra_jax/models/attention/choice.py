"""Which path of attention runs. No jax is imported here, so that a config can be checked without it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from electra_jax.cli import UserError
from electra_jax.models.attention import PATHS, path

if TYPE_CHECKING:
    from electra_jax.models.config import EncoderConfig

# Below this length the scores are too small for a fused kernel to be worth its calls.
FUSED_FROM = 256


def choose(asked: str, platform: str, length: int, networks: Sequence["EncoderConfig"]) -> str:
    """The name of the one path that all networks take; `asked` is "auto" or one of PATHS.

    Raises UserError where the one that is asked for cannot run here.
    """

    def refusal(name: str) -> str | None:
        return next((why for network in networks if (why := path(name).refuses(network, length, platform))), None)

    if asked == "auto":
        return next(name for name in PATHS if name == "xla" or (length >= FUSED_FROM and not refusal(name)))
    if why := refusal(asked):
        raise UserError(f"model.attention={asked}: {why} (model.attention=auto takes what can run)")
    return asked
