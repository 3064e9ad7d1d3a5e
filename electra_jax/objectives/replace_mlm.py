"""Replace MLM: masked language modelling on a text whose masked tokens are replaced by a generator's samples (arXiv 2003.10555, 3.4: 82.4).

Loss = mlm_weight x the generator's MLM + lm_weight x the cross-entropy of the original tokens at the chosen slots, each a global mean. It
isolates what comes from never seeing [MASK]: little. The paper gives no weight for the second; it is 1 here.
"""

import jax
import jax.numpy as jnp

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import Head, generators, marking, masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms, Vocabulary

DISCRIMINATOR = "discriminator"


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return (*generators.READS, "lm_weight")


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {**generators.networks(config), DISCRIMINATOR: {"lm_head": "mlm"}}


def directed(config: ObjectiveConfig) -> bool:
    return False


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    return {"pll": Head("generator", "head")}


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
        return planned, {**weights, "lm": jnp.sum(planned.generator.slots.weights)}

    def terms(params: Params, batch: Batch, plan: generators.WithDiscriminator) -> Terms:
        made = generator.replace(params, batch, plan.generator)
        weights_BxK = made.slots.weights
        with jax.named_scope("discriminator"):
            x_BxLxH = electra.hidden_states(params, model, made.batch, plan.seeds)
            nll_BxK, mass_BxKxV, right_BxK, _ = electra.mlm_nll(
                params, model, x_BxLxH, made.slots.positions, made.targets_BxK, DISCRIMINATOR, "lm_head"
            )
        lm = jnp.sum(nll_BxK * weights_BxK.astype(nll_BxK.dtype))
        metrics = {**made.metrics, "lm_accuracy": (jnp.sum(right_BxK * weights_BxK), jnp.sum(weights_BxK))}
        outputs = {**masking.guesses(made.slots, mass_BxKxV), "tokens": made.batch.tokens}
        return Terms({**made.losses, "lm": lm}, metrics, outputs)

    def flops(rows: int, length: int) -> float:
        num_slots = masking_config.max_predictions(length)
        forward = costs.forward_flops(model, DISCRIMINATOR, length) + costs.head_flops(model, DISCRIMINATOR, "mlm", num_slots)
        return generator.flops(rows, length) + 3.0 * rows * forward

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {**generator.scales, "lm": config.lm_weight},
        flops=flops,
        measure=lambda outputs: {},
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([generator.reading, readings.lm("at the chosen tokens")], marking.filled),
        frozen=generator.frozen,
    )
