"""ELECTRA: a generator learns to fill masked tokens, a discriminator to tell which were replaced (arXiv 2003.10555, section 2).

Loss = mlm_weight x MLM over the chosen slots + rtd_weight x RTD over every real token, [CLS] and [SEP] too, each a global mean
(1 and 50: google-research/electra `configure_pretraining.py`).
"""

import flax.struct
import jax
import jax.numpy as jnp

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import Head, detection, generators, marking, masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms, Vocabulary

DISCRIMINATOR = "discriminator"


class Plan(flax.struct.PyTreeNode):
    generator: generators.Plan
    counts: Array  # [B, L] bool: the tokens whose RTD loss counts
    seeds: Array | None  # uint32 [B, 2]; None: dropout is off


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return (*generators.READS, "rtd_weight")


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {**generators.networks(config), DISCRIMINATOR: {"head": "rtd"}}


def directed(config: ObjectiveConfig) -> bool:
    return False


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    return {"pll": Head("generator", "head"), "rtd": Head(DISCRIMINATOR, "head")}


def make(
    model: ElectraConfig,
    masking_config: MaskingConfig,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    slots_multiple: int = 1,
    masked_only: bool = False,
) -> Objective:
    """The objective for rows of any length. `slots_multiple`: masked slots a row are padded to a multiple of it.

    masked_only: RTD counts the chosen tokens alone (electra_15.py).
    """
    generator = generators.make(model, masking_config, config, vocabulary, slots_multiple)
    its_networks = networks(config)

    def init(key: Array) -> Params:
        return electra.init_params(key, model, its_networks)

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        planned, weights = generator.plan(batch, rng, train)
        slots = planned.slots
        counts_BxL = masking.marked(slots, slots.weights > 0, batch) if masked_only else batch.segments > 0
        seeds = rng.seeds(DISCRIMINATOR, batch.row) if train else None
        return Plan(planned, counts_BxL, seeds), {**weights, "rtd": masking.count(counts_BxL)}

    def terms(params: Params, batch: Batch, plan: Plan) -> Terms:
        made = generator.replace(params, batch, plan.generator)
        able_BxL = masking.candidates(batch, vocabulary)
        with jax.named_scope("discriminator"):
            logits_BxL = electra.discriminator_apply(params, model, made.batch, plan.seeds)
        with jax.named_scope("rtd_loss"):
            rtd_BxL = detection.binary_nll(logits_BxL, made.replaced_BxL)
            rtd = jnp.sum(rtd_BxL * plan.counts.astype(rtd_BxL.dtype))
        metrics = {**made.metrics, **detection.metrics(logits_BxL, made.replaced_BxL, able_BxL)}
        outputs = detection.outputs(made.batch, made.replaced_BxL, logits_BxL, able_BxL)
        return Terms({**made.losses, "rtd": rtd}, metrics, outputs)

    def flops(rows: int, length: int) -> float:
        forward = costs.forward_flops(model, DISCRIMINATOR, length) + costs.head_flops(model, DISCRIMINATOR, "rtd", length)
        return generator.flops(rows, length) + 3.0 * rows * forward

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {**generator.scales, "rtd": config.rtd_weight},
        flops=flops,
        measure=detection.measure,
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([generator.reading, readings.RTD], marking.suspicion),
        frozen=generator.frozen,
    )
