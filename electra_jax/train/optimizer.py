"""Optimizers as optax chains; what differs by parameter is chosen by a regex over its path ("discriminator/layers/ffn/...").

The published optimizer (google-research/electra `model/optimization.py`): AdamW with beta 0.9 and 0.999, epsilon 1e-6, no bias
correction, decay 0.01 times the rate on all but LayerNorms and biases, one clip of the global norm at 1.0, warm-up times linear decay.
Muon, for the layers' matrices alone, is an addition; configs/pretrain.py says what for. It is optax.contrib's with its defaults: Jordan's
(github.com/KellerJordan/Muon: Nesterov momentum 0.95, five Newton-Schulz steps in his coefficients, an update times
sqrt(max(1, fan_out / fan_in))), and not that of arXiv 2502.16982, which scales by 0.2 sqrt(max(fan_in, fan_out)); from there is the decay
of the matrices, `muon_weight_decay` times the rate. Without it they grow without bound, because an orthogonal update has a fixed size.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from electra_jax.cli import UserError
from electra_jax.parallel import sharding
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from electra_jax.types import Array, Params

NO_DECAY = r"(^|/)(\w*norm/(scale|bias)|bias)$"
LAYER_MATRICES = sharding.STACKED + r".*/kernel$"


def schedule(config: ScheduleConfig, total_steps: int) -> Callable[[Array], Array]:
    """The factor on the peak rate at a step counted from 0, float32, of a run of `total_steps`.

    product (as published): min(1, step / warmup) x (1 - step / total): warm-up and decay act together, and step 0 does nothing.
    Otherwise: linear up to 1 at the last warm-up step, then linear down to 0 just after the last step; no step is wasted.
    """
    total = config.decay_steps or total_steps

    def product(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        decay = 1.0 - jnp.minimum(step, total) / total
        return decay * jnp.minimum(1.0, step / config.warmup_steps) if config.warmup_steps else decay

    def linear(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        decay = (total - step) / (total - config.warmup_steps)
        rise = (step + 1.0) / config.warmup_steps if config.warmup_steps else 1.0
        return jnp.clip(jnp.minimum(rise, decay), 0.0, 1.0)

    return product if config.product else linear


def paths(params: Params) -> Params:
    """The tree of each leaf's path, "discriminator/layers/attention/query/kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(key.key for key in path), params)


def matching(regex: str) -> Callable[[Params], Params]:
    """params -> tree of bool: the leaves whose path has a match of `regex`. MaskedNodes of optax have no leaves, and stay."""
    return lambda params: jax.tree.map(lambda path: re.search(regex, path) is not None, paths(params))


class AdamState(NamedTuple):
    count: Array
    mu: Params
    nu: Params


def scale_by_adam(beta1: float, beta2: float, epsilon: float, bias_correction: bool) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + epsilon). Without bias correction it is TF BERT's and ELECTRA's, which optax has not."""

    def init(params: Params) -> AdamState:
        return AdamState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state: AdamState, params=None):
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: beta1 * m + (1.0 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1.0 - beta2) * g * g, state.nu, grads)
        first = second = 1.0
        if bias_correction:
            # expm1: 1 - 0.999 ** count in float32 loses five digits of its first values.
            first, second = (-jnp.expm1(count * math.log(beta)) for beta in (beta1, beta2))
        direction = jax.tree.map(lambda m, v: ((m / first) / (jnp.sqrt(v / second) + epsilon)).astype(m.dtype), mu, nu)
        return direction, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_path(rates: Sequence[tuple[str, float | tuple[float, ...]]]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first regex that matches its path; 1 where none does.

    A tuple has a factor for each layer, from the embeddings up: it goes along the leading axis of the stacked arrays that it matches.
    Raises UserError where a matched array is not stacked, or has another number of layers.
    """

    def scaled(path: str, update: Array) -> Array:
        regex, factor = next(((regex, factor) for regex, factor in rates if re.search(regex, path)), (None, 1.0))
        if not isinstance(factor, tuple):
            return update * factor
        if not sharding.is_stacked(path):
            raise UserError(
                f"optimizer.rates: {regex!r} has a factor for each layer and matches {path}, which has no layers: give one factor"
            )
        if len(factor) != update.shape[0]:
            raise UserError(f"optimizer.rates: {regex!r} has {len(factor)} factors and matches {path}, which has {update.shape[0]} layers")
        return update * jnp.asarray(factor, update.dtype).reshape(-1, *[1] * (update.ndim - 1))

    def scale(updates: Params) -> Params:
        return jax.tree.map(scaled, paths(updates), updates)

    def init(params: Params) -> optax.EmptyState:
        jax.eval_shape(scale, params)  # so that a mistake is said before anything is compiled
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (scale(updates), state))


def norm(tree: Params) -> Array:
    """The Euclidean norm of all leaves together.

    XLA's CPU compiler writes every square into memory and reads it again for the sum (docs/speed.md). So there a large leaf is cut into
    equal parts whose squares are added to one another first; not under fsdp, where that would gather the leaf.
    """
    large, parts = 2**15, 16

    def by_parts(x: Array) -> Array:
        flat = x.reshape(-1)
        cut = flat.size // parts * parts
        sums = sum(part * part for part in flat[:cut].reshape(parts, -1))
        return jnp.sum(sums) + jnp.sum(flat[cut:] ** 2)

    def plain(x: Array) -> Array:
        return jnp.sum(x * x)

    def squares(x: Array) -> Array:
        if x.size < large or sharding.fsdp() > 1:
            return plain(x)
        return jax.lax.platform_dependent(x, cpu=by_parts, default=plain)

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree))))


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """All updates times most / norm, where their norm is above `most`. optax's divides by the norm first, which is an array in memory for
    each leaf; this is one factor, that whatever reads the updates multiplies by."""

    def update(updates, state, params=None):
        length = norm(updates)
        factor = jnp.where(length < most, 1.0, most / length)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_rate(rate: Callable[[Array], Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies by rate(step), the run's own step, which `update` is given. optax's schedules count updates, and a skipped step is none:
    the rate would lag behind the run and not reach its end."""

    def update(updates, state, params=None, *, step, **extra):
        factor = rate(step)
        return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config: OptimizerConfig, schedule_config: ScheduleConfig, total_steps: int, frozen: str = ""
) -> optax.GradientTransformationExtraArgs:
    """clip -> AdamW, or Muon on the layers' matrices and AdamW elsewhere -> rates by path. Its `update` wants `step`, from 0.

    frozen: a regex; the parameters whose path it matches stay as they are, and have no optimizer's memory. "": none.
    """
    factor = schedule(schedule_config, total_steps)
    adamw = optax.chain(
        scale_by_adam(config.beta1, config.beta2, config.epsilon, config.bias_correction),
        optax.add_decayed_weights(config.weight_decay, lambda params: jax.tree.map(lambda x: not x, matching(NO_DECAY)(params))),
        optax.scale(-1.0),
        scale_by_rate(lambda step: config.learning_rate * factor(step)),
    )
    rule = adamw
    if config.name == "muon":
        # [layers, in, out]: each layer's matrix is orthogonalised by itself; query, key and value are matrices of their own.
        matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        direction = optax.contrib.muon(
            1.0,
            weight_decay=config.muon_weight_decay,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params),
        )
        muon = optax.chain(direction, scale_by_rate(lambda step: config.muon_learning_rate * factor(step)))
        labels = lambda params: jax.tree.map(lambda is_matrix: "muon" if is_matrix else "adamw", matching(LAYER_MATRICES)(params))  # noqa: E731
        rule = optax.multi_transform({"muon": muon, "adamw": adamw}, labels)
    clip = [clip_by_norm(config.clip_norm)] if config.clip_norm else []
    rates = [scale_by_path(config.rates)] if config.rates else []
    whole = optax.chain(*clip, rule, *rates)
    if not frozen:
        return whole
    stays = lambda params: jax.tree.map(lambda is_frozen: "stays" if is_frozen else "trains", matching(frozen)(params))  # noqa: E731
    return optax.multi_transform({"trains": whole, "stays": optax.set_to_zero()}, stays)
