"""Replaced token detection: its loss, and what is measured of it."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.objectives import masking
from electra_jax.objectives.auc import roc_auc
from electra_jax.types import Array, Batch


def binary_nll(logits_BxL: Array, replaced_BxL: Array) -> Array:
    """[B, L]: -log sigmoid(logit) where replaced, -log sigmoid(-logit) elsewhere."""
    return jax.nn.softplus(jnp.where(replaced_BxL, -logits_BxL, logits_BxL))


def metrics(logits_BxL: Array, replaced_BxL: Array, able_BxL: Array) -> dict[str, tuple[Array, Array]]:
    """Accuracy, precision and recall. They, as the AUC, count the tokens that could have been replaced."""
    called_BxL = (logits_BxL > 0) & able_BxL
    right_BxL = (called_BxL == replaced_BxL) & able_BxL
    num_able, found = masking.count(able_BxL), masking.count(called_BxL & replaced_BxL)
    return {
        "rtd_accuracy": (masking.count(right_BxL), num_able),
        "rtd_precision": (found, masking.count(called_BxL)),
        "rtd_recall": (found, masking.count(replaced_BxL)),
        "majority_accuracy": (masking.count(able_BxL & ~replaced_BxL), num_able),
    }


def outputs(corrupted: Batch, replaced_BxL: Array, logits_BxL: Array, able_BxL: Array) -> dict[str, Array]:
    """What `measure` and marking.suspicion read."""
    return {"tokens": corrupted.tokens, "replaced": replaced_BxL, "logits": logits_BxL, "able": able_BxL}


def measure(outputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The discriminator's AUC over every token that could have been replaced."""
    pairs = [(batch["logits"][batch["able"]], batch["replaced"][batch["able"]]) for batch in outputs]
    return {"rtd_auc": roc_auc(*map(np.concatenate, zip(*pairs, strict=True)))}
