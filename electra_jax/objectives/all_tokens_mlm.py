"""All-tokens MLM: the original of every token is predicted, from a text with a generator's samples (arXiv 2003.10555, 3.4: 84.3).

With D_i, the probability that the token at i is to be copied, and the softmax of a head over the vocabulary,

    p(x_i) = D_i [x~_i = x_i] + (1 - D_i) softmax_i(x_i)

Loss = mlm_weight x the generator's MLM + lm_weight x the mean of -log p(x_i) over all real tokens, [CLS] and [SEP] too. "head" gives the
logit of a replacement, so that D_i = sigmoid(-logit). The paper gives no weight for the second; it is 1 here.
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
    return (*generators.READS, "lm_weight")


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {**generators.networks(config), DISCRIMINATOR: {"head": "rtd", "lm_head": "mlm"}}


def directed(config: ObjectiveConfig) -> bool:
    return False


def copied_nll(nll_BxL: Array, logits_BxL: Array, replaced_BxL: Array) -> Array:
    """-log p(x_i) of the equation above, [B, L]. nll: of the softmax alone; logits: of a replacement."""
    named_BxL = jax.nn.log_sigmoid(logits_BxL) - nll_BxL
    return -jnp.where(replaced_BxL, named_BxL, jnp.logaddexp(jax.nn.log_sigmoid(-logits_BxL), named_BxL))


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
        return planned, {**weights, "lm": masking.count(batch.segments > 0)}

    def terms(params: Params, batch: Batch, plan: generators.WithDiscriminator) -> Terms:
        made = generator.replace(params, batch, plan.generator)
        able_BxL = masking.candidates(batch, vocabulary)
        with jax.named_scope("discriminator"):
            x_BxLxH = electra.hidden_states(params, model, made.batch, plan.seeds)
            logits_BxL = electra.rtd_logits(params, model, x_BxLxH)
            nll_BxL, right_BxL = electra.mlm_nll_everywhere(params, model, x_BxLxH, batch.tokens)
        nll_BxL = copied_nll(nll_BxL, logits_BxL, made.replaced_BxL)
        real_BxL = batch.segments > 0
        lm = jnp.sum(nll_BxL * real_BxL.astype(nll_BxL.dtype))
        metrics = {
            **made.metrics,
            "lm_accuracy": (masking.count(right_BxL & made.replaced_BxL), masking.count(made.replaced_BxL)),
            **detection.metrics(logits_BxL, made.replaced_BxL, able_BxL),
        }
        outputs = detection.outputs(made.batch, made.replaced_BxL, logits_BxL, able_BxL)
        return Terms({**made.losses, "lm": lm}, metrics, outputs)

    def flops(rows: int, length: int) -> float:
        heads = sum(costs.head_flops(model, DISCRIMINATOR, head, length) for head in ("rtd", "mlm"))
        return generator.flops(rows, length) + 3.0 * rows * (costs.forward_flops(model, DISCRIMINATOR, length) + heads)

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {**generator.scales, "lm": config.lm_weight},
        flops=flops,
        measure=detection.measure,
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([generator.reading, readings.lm("at all tokens"), readings.COPY], marking.suspicion),
        frozen=generator.frozen,
    )
