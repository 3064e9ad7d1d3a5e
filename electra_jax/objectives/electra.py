"""ELECTRA: a generator learns to fill masked tokens, a discriminator to tell which were replaced (arXiv 2003.10555, section 2).

Loss = mlm_weight x MLM over the chosen slots + rtd_weight x RTD over every real token, [CLS] and [SEP] too, each a global mean.
"""

from collections.abc import Iterable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import masking
from electra_jax.objectives.auc import roc_auc
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.objectives.electra_view import VIEW
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms, Vocabulary

NETWORKS = GENERATOR, DISCRIMINATOR = tuple(electra.NETWORKS)  # with an MLM head, and with an RTD head


class Plan(flax.struct.PyTreeNode):
    slots: masking.Slots
    mlm_weights: Array  # [B, K] float32: the slots whose loss counts
    uniform: Array  # [B, K, 2]: which token is sampled at each slot
    generator_seeds: Array | None  # uint32 [B, 2]; None = dropout off
    discriminator_seeds: Array | None


def make(
    model: ElectraConfig,
    masking_config: MaskingConfig,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    slots_multiple: int = 1,
) -> Objective:
    """The objective for rows of any length. `slots_multiple`: masked slots a row are padded to a multiple of it."""

    def init(key: Array) -> Params:
        return electra.init_params(key, model)

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        num_predictions = masking_config.max_predictions(batch.tokens.shape[1])
        uniform = rng.uniform("samples", batch.row, (num_predictions, 2))
        uniform = jnp.pad(uniform, ((0, 0), (0, slots.positions.shape[1] - num_predictions), (0, 0)))
        # In training every chosen slot counts, as published. Held out, only those shown as [MASK] count: the 15% that stay visible are
        # easily copied, and would put a generator that knows word frequencies alone well under their entropy.
        mlm_weights = slots.weights if train else slots.masked.astype(jnp.float32)
        # Dropout stays on while the generator samples, as published.
        seeds = [rng.seeds(name, batch.row) if train else None for name in (GENERATOR, DISCRIMINATOR)]
        return Plan(slots, mlm_weights, uniform, *seeds), {"mlm": jnp.sum(mlm_weights), "rtd": count(batch.segments > 0)}

    def terms(params: Params, batch: Batch, plan: Plan) -> Terms:
        slots = plan.slots
        masked = masking.mask(batch, slots, vocabulary)
        with jax.named_scope("generator"):
            targets_BxK = masking.gather(batch.tokens, slots)
            mlm_BxK, mass_BxKxV, right_BxK = electra.generator_nll(
                params, model, masked, slots.positions, targets_BxK, plan.generator_seeds
            )
        with jax.named_scope("sample"):
            sampled_BxK = masking.sample(mass_BxKxV, plan.uniform)
            corrupted, replaced_BxL = masking.corrupt(batch, slots, sampled_BxK)
        with jax.named_scope("discriminator"):
            rtd_logits_BxL = electra.discriminator_apply(params, model, corrupted, plan.discriminator_seeds)
        with jax.named_scope("rtd_loss"):
            real_BxL = (batch.segments > 0).astype(rtd_logits_BxL.dtype)
            # -log sigmoid(logit) where replaced, -log sigmoid(-logit) elsewhere.
            rtd_BxL = jax.nn.softplus(jnp.where(replaced_BxL, -rtd_logits_BxL, rtd_logits_BxL))

        # Accuracy, precision and recall of the discriminator, as its AUC, count the tokens that could have been replaced.
        able_BxL = masking.candidates(batch, vocabulary)
        called_BxL = (rtd_logits_BxL > 0) & able_BxL
        right_BxL = (called_BxL == replaced_BxL) & able_BxL
        num_able = count(able_BxL)
        metrics = {
            "mlm_accuracy": (jnp.sum(plan.mlm_weights * right_BxK), jnp.sum(plan.mlm_weights)),
            "sampled_accuracy": (jnp.sum(slots.weights * (sampled_BxK == targets_BxK)), jnp.sum(slots.weights)),
            "replace_rate": (count(replaced_BxL), num_able),
            "rtd_accuracy": (count(right_BxL), num_able),
            "rtd_precision": (count(called_BxL & replaced_BxL), count(called_BxL)),
            "rtd_recall": (count(called_BxL & replaced_BxL), count(replaced_BxL)),
            "majority_accuracy": (count(able_BxL & ~replaced_BxL), num_able),
        }
        losses = {"mlm": jnp.sum(mlm_BxK * plan.mlm_weights.astype(mlm_BxK.dtype)), "rtd": jnp.sum(rtd_BxL * real_BxL)}
        outputs = {"tokens": corrupted.tokens, "replaced": replaced_BxL, "logits": rtd_logits_BxL, "able": able_BxL}
        return Terms(losses, metrics, outputs)

    def flops(rows: int, length: int) -> float:
        return rows * costs.train_flops(model, length, masking_config.max_predictions(length))

    scales = {"mlm": config.mlm_weight, "rtd": config.rtd_weight}
    return Objective(init, plan, terms, scales, flops, measure, (GENERATOR, DISCRIMINATOR), DISCRIMINATOR, VIEW)


def measure(outputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The discriminator's AUC over every token that could have been replaced."""
    pairs = [(batch["logits"][batch["able"]], batch["replaced"][batch["able"]]) for batch in outputs]
    return {"rtd_auc": roc_auc(*map(np.concatenate, zip(*pairs, strict=True)))}


def count(mask: Array) -> Array:
    return jnp.sum(mask.astype(jnp.float32))
