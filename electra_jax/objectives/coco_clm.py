"""Corrective language modelling (COCO-LM, arXiv 2102.08473, 3.2), without its sequence contrast.

Beside RTD over all real tokens, the discriminator names the original of each chosen token. Its "lm_head" reads the hidden states without a
transform, with the table of words; where the copy head already believes that the token is the original, the loss counts less:

    loss = mlm_weight x MLM + rtd_weight x RTD + lm_weight x mean over chosen tokens of (1 - sigmoid(copy)) x -log softmax(x_i)

with no gradient through the factor, and copy = -(the logit of a replacement). Weights 1, 50 and 1: the author's criterion in
microsoft/COCO-LM#2 and `fairseq/models/cocolm/model.py`. There replacements are drawn without dropout (objective.sample_dropout=False)
and the generator has the full width and a third of the layers.
"""

import jax
import jax.numpy as jnp

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import Head, detection, generators, marking, masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms, Vocabulary

DISCRIMINATOR = "discriminator"


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return (*generators.READS, "rtd_weight", "lm_weight")


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {**generators.networks(config), DISCRIMINATOR: {"head": "rtd", "lm_head": "tied"}}


def directed(config: ObjectiveConfig) -> bool:
    return False


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    return {"pll": Head("generator", "head"), "rtd": Head(DISCRIMINATOR, "head")}


def make(
    model: ElectraConfig, masking_config: MaskingConfig, config: ObjectiveConfig, vocabulary: Vocabulary, slots_multiple: int = 1
) -> Objective:
    """`slots_multiple`: masked slots a row are padded to a multiple of it."""
    generator = generators.make(model, masking_config, config, vocabulary, slots_multiple)
    its_networks = networks(config)

    def init(key: Array) -> Params:
        return electra.init_params(key, model, its_networks)

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[generators.WithDiscriminator, dict[str, Array]]:
        planned, weights = generators.with_discriminator(generator, batch, rng, train)
        return planned, {**weights, "rtd": masking.count(batch.segments > 0), "lm": jnp.sum(planned.generator.slots.weights)}

    def terms(params: Params, batch: Batch, plan: generators.WithDiscriminator) -> Terms:
        made = generator.replace(params, batch, plan.generator)
        able_BxL = masking.candidates(batch, vocabulary)
        slots, real_BxL = made.slots, batch.segments > 0
        with jax.named_scope("discriminator"):
            x_BxLxH = electra.hidden_states(params, model, made.batch, plan.seeds)
            logits_BxL = electra.rtd_logits(params, model, x_BxLxH)
            nll_BxK, _, right_BxK, _ = electra.mlm_nll(params, model, x_BxLxH, slots.positions, made.targets_BxK, DISCRIMINATOR, "lm_head")
        rtd_BxL = detection.binary_nll(logits_BxL, made.replaced_BxL)
        doubt_BxK = jax.lax.stop_gradient(jax.nn.sigmoid(masking.gather(logits_BxL, slots)))
        losses = {
            **made.losses,
            "rtd": jnp.sum(rtd_BxL * real_BxL.astype(rtd_BxL.dtype)),
            "lm": jnp.sum(doubt_BxK * nll_BxK * slots.weights.astype(nll_BxK.dtype)),
        }
        metrics = {
            **made.metrics,
            "lm_accuracy": (jnp.sum(right_BxK * slots.weights), jnp.sum(slots.weights)),
            **detection.metrics(logits_BxL, made.replaced_BxL, able_BxL),
        }
        return Terms(losses, metrics, detection.outputs(made.batch, made.replaced_BxL, logits_BxL, able_BxL))

    def flops(rows: int, length: int) -> float:
        num_slots = masking_config.max_predictions(length)
        forward = costs.forward_flops(model, DISCRIMINATOR, length) + costs.head_flops(model, DISCRIMINATOR, "rtd", length)
        forward += costs.head_flops(model, DISCRIMINATOR, "tied", num_slots)
        return generator.flops(rows, length) + 3.0 * rows * forward

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {**generator.scales, "rtd": config.rtd_weight, "lm": config.lm_weight},
        flops=flops,
        measure=detection.measure,
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([generator.reading, readings.RTD, readings.lm("at the chosen tokens, weighted by doubt")], marking.suspicion),
        frozen=generator.frozen,
    )
