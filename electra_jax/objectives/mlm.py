"""Masked language modelling, BERT's objective without next sentence prediction (arXiv 1810.04805, 3.1).

Loss = the cross-entropy of the original tokens at the chosen slots, a global mean. Of the chosen tokens `masking.mask_fraction` are shown
as [MASK] and `masking.random_fraction` as random tokens: .8 and .1 in BERT, which the variant `mlm` of configs/pretrain.py sets.
"""

import flax.struct
import jax.numpy as jnp

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import Head, marking, masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms, Vocabulary

DISCRIMINATOR = "discriminator"


class Plan(flax.struct.PyTreeNode):
    slots: masking.Slots
    weights: Array  # [B, K] float32: the slots whose loss counts
    seeds: Array | None  # uint32 [B, 2]; None: dropout is off


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return ()


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {DISCRIMINATOR: {"lm_head": "mlm"}}


def directed(config: ObjectiveConfig) -> bool:
    return False


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    return {"pll": Head(DISCRIMINATOR, "lm_head")}


def make(
    model: ElectraConfig, masking_config: MaskingConfig, config: ObjectiveConfig, vocabulary: Vocabulary, slots_multiple: int = 1
) -> Objective:
    """`slots_multiple`: masked slots a row are padded to a multiple of it."""
    its_networks = networks(config)

    def init(key: Array) -> Params:
        return electra.init_params(key, model, its_networks)

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        # Held out, only what is shown as [MASK] counts, so that the loss compares with a generator's and with the unigram entropy.
        weights_BxK = slots.weights if train else slots.masked.astype(jnp.float32)
        return Plan(slots, weights_BxK, rng.seeds(DISCRIMINATOR, batch.row) if train else None), {"mlm": jnp.sum(weights_BxK)}

    def terms(params: Params, batch: Batch, plan: Plan) -> Terms:
        slots = plan.slots
        targets_BxK = masking.gather(batch.tokens, slots)
        x_BxLxH = electra.hidden_states(params, model, masking.mask(batch, slots, vocabulary), plan.seeds)
        nll_BxK, mass_BxKxV, right_BxK, _ = electra.mlm_nll(params, model, x_BxLxH, slots.positions, targets_BxK, DISCRIMINATOR, "lm_head")
        mlm = jnp.sum(nll_BxK * plan.weights.astype(nll_BxK.dtype))
        metrics = {"mlm_accuracy": (jnp.sum(right_BxK * plan.weights), jnp.sum(plan.weights))}
        return Terms({"mlm": mlm}, metrics, masking.guesses(slots, mass_BxKxV))

    def flops(rows: int, length: int) -> float:
        num_slots = masking_config.max_predictions(length)
        return 3.0 * rows * (costs.forward_flops(model, DISCRIMINATOR, length) + costs.head_flops(model, DISCRIMINATOR, "mlm", num_slots))

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {"mlm": 1.0},
        flops=flops,
        measure=lambda outputs: {},
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([readings.MASKED_LM], marking.filled),
    )
