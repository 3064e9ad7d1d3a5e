"""Masked next token prediction mixed with causal rows (GPT-BERT, arXiv 2410.24159; ltgoslo/gpt-bert `pretraining/train_10m.py`).

A masked row is read whole, and each of its chosen tokens is predicted from the position before it. A causal row shows every token, each
sees what stands before it, and the next one is predicted in the same way. So both kinds teach one function: name the token that follows.

    loss = (1 - f) x mean of the masked rows + f x mean of the causal rows, each of -log p + z_weight x (log of the softmax's denominator)^2

with f = causal_fraction, the share of rows that are causal (1/16 there, 15 of 16 devices having masked rows; here each row is drawn by
itself). There a causal row's loss is taken at all of its tokens; here at as many as a masked row's, drawn at random: the same in the mean,
and a seventh of the projections onto the vocabulary. There the masked share falls from .3 to .15; here masking.rate is one number.
"""

import flax.struct
import jax.numpy as jnp

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import Head, marking, masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, DirectedBatch, Objective, Params, Terms, Vocabulary

DISCRIMINATOR = "discriminator"


class Plan(flax.struct.PyTreeNode):
    slots: masking.Slots
    masked_weights: Array  # [B, K] float32: the slots of masked rows whose loss counts
    causal_weights: Array  # [B, K] float32: of causal rows
    seeds: Array | None  # uint32 [B, 2]; None: dropout is off


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return ("causal_fraction", "z_weight")


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {DISCRIMINATOR: {"lm_head": "mlm"}}


def directed(config: ObjectiveConfig) -> bool:
    return True


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    return {"pll": Head(DISCRIMINATOR, "lm_head", shift=-1)}


def make(
    model: ElectraConfig, masking_config: MaskingConfig, config: ObjectiveConfig, vocabulary: Vocabulary, slots_multiple: int = 1
) -> Objective:
    """`slots_multiple`: masked slots a row are padded to a multiple of it."""
    its_networks = networks(config)

    def init(key: Array) -> Params:
        return electra.init_params(key, model, its_networks)

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        causal_Bx1 = rng.uniform("causal", batch.row, (1,)) < config.causal_fraction
        # Nothing of a causal row is hidden by a mask.
        slots = slots.replace(masked=slots.masked & ~causal_Bx1)
        if slots.random is not None:
            slots = slots.replace(random=jnp.where(causal_Bx1, -1, slots.random))
        # Held out, only what is shown as [MASK] counts, as elsewhere.
        masked_BxK = slots.weights * ~causal_Bx1 if train else slots.masked.astype(jnp.float32)
        causal_BxK = slots.weights * causal_Bx1
        seeds = rng.seeds(DISCRIMINATOR, batch.row) if train else None
        sums = jnp.sum(masked_BxK), jnp.sum(causal_BxK)
        return Plan(slots, masked_BxK, causal_BxK, seeds), {"mlm": sums[0], "mlm_z": sums[0], "clm": sums[1], "clm_z": sums[1]}

    def terms(params: Params, batch: Batch, plan: Plan) -> Terms:
        slots = plan.slots
        is_causal_B = jnp.any(plan.causal_weights > 0, axis=1)
        shown = DirectedBatch.of(masking.mask(batch, slots, vocabulary), is_causal_B.astype(jnp.int32))
        targets_BxK = masking.gather(batch.tokens, slots)
        x_BxLxH = electra.hidden_states(params, model, shown, plan.seeds)
        # A chosen token has one before it: [CLS], which begins every text, is never chosen. Unused slots stand at 0.
        before_BxK = jnp.maximum(slots.positions - 1, 0)
        nll_BxK, mass_BxKxV, right_BxK, log_total_BxK = electra.mlm_nll(
            params, model, x_BxLxH, before_BxK, targets_BxK, DISCRIMINATOR, "lm_head"
        )
        losses, metrics = {}, {}
        for name, weights_BxK in (("mlm", plan.masked_weights), ("clm", plan.causal_weights)):
            losses[name] = jnp.sum(nll_BxK * weights_BxK.astype(nll_BxK.dtype))
            losses[f"{name}_z"] = jnp.sum(log_total_BxK**2 * weights_BxK.astype(nll_BxK.dtype))
            metrics[f"{name}_accuracy"] = (jnp.sum(right_BxK * weights_BxK), jnp.sum(weights_BxK))
        return Terms(losses, metrics, masking.guesses(slots, mass_BxKxV))

    def flops(rows: int, length: int) -> float:
        num_slots = masking_config.max_predictions(length)
        return 3.0 * rows * (costs.forward_flops(model, DISCRIMINATOR, length) + costs.head_flops(model, DISCRIMINATOR, "mlm", num_slots))

    share, z = config.causal_fraction, config.z_weight
    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {"mlm": 1 - share, "mlm_z": z * (1 - share), "clm": share, "clm_z": z * share},
        flops=flops,
        measure=lambda outputs: {},
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([readings.MASKED_LM, *([readings.CAUSAL_LM] if share else [])], marking.filled),
    )
