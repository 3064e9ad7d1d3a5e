"""Self-attention over packed rows: a token sees the tokens of its own segment, and nothing else.

A path is one way of computing it, in a file of its own that has a `PATH`; `model.attention` names it. Adding one is that file and its
line in PATHS. No jax is imported here, so that a config can be checked without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from electra_jax import options

if TYPE_CHECKING:
    from electra_jax.models.config import EncoderConfig

# In the order of preference: "auto" takes the first that can run.
PATHS = {
    "rows": "electra_jax.models.attention.rows",
    "splash": "electra_jax.models.attention.splash",
    "cudnn": "electra_jax.models.attention.cudnn",
    "xla": "electra_jax.models.attention.xla",
}
NO_DROPOUT = "it has no dropout on attention weights: --config.model.attention_dropout=0"  # why most fused paths refuse


class Path(NamedTuple):
    """One way of computing attention.

    refuses(network: EncoderConfig, length, platform) -> why rows of so many tokens cannot run there, in words of the config; or None.
    apply(x [N, H], kernels, biases, batch, seeds [B, 2] or None, config: EncoderConfig) -> [N, H], heads side by side, before the
      output projection. `kernels` [H, H] and `biases` [H] are those of query, key and value; N is B x L. Scores and softmax are at
      least float32; dropout at the rate config.attention_dropout falls on the weights, where there are seeds.
    directed: whether it heeds a DirectedBatch.
    """

    refuses: Callable[["EncoderConfig", int, str], str | None]
    apply: Callable[..., Any]
    directed: bool = False


def path(name: str) -> Path:
    """Of a config that choice.py has not seen, "auto" is XLA's own, which runs everywhere."""
    return options.load(PATHS, "xla" if name == "auto" else name).PATH
