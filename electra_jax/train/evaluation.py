"""Held-out evaluation with constant keys: the same masks and samples every time, so that its numbers compare over a run."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params


def make_eval_step(objective: Objective, root: Array) -> Callable:
    """eval_step(params, batch, valid [B] bool) -> (weights, Terms): dropout off, step 0's keys; invalid rows count for nothing."""

    def eval_step(params: Params, batch: Batch, valid_B: Array):
        batch = batch.replace(segments=batch.segments * valid_B[:, None])
        # A stream of its own: held-out row 5 must not get the masks of training row 5.
        rng = StepRng(jax.random.fold_in(root, 1), jnp.zeros((), jnp.int32))
        plan, weights = objective.plan(batch, rng, False)
        return weights, objective.terms(params, batch, plan)

    return eval_step


def evaluate(
    eval_step: Callable, params: Params, batches: Iterable[tuple[Batch, np.ndarray]], scales: Mapping[str, float]
) -> dict[str, float]:
    """`eval/*` metrics over all batches: sums divided once, in float64; the AUC of every score is exact, over all its tokens."""
    losses: dict[str, float] = {}
    weights: dict[str, float] = {}
    sums: dict[str, np.ndarray] = {}
    scores: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch, valid_B in batches:  # on the host or on the devices
        batch_weights, terms = jax.device_get(eval_step(params, batch, valid_B))
        for name, value in terms.losses.items():
            losses[name] = losses.get(name, 0.0) + float(value)
            weights[name] = weights.get(name, 0.0) + float(batch_weights[name])
        for name, pair in terms.metrics.items():
            sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        for name, (score, label, counted) in terms.scores.items():
            scores.setdefault(name, []).append((score[counted], label[counted]))
    means = {name: losses[name] / max(weights[name], 1.0) for name in losses}
    metrics = {f"eval/{name}_loss": value for name, value in means.items()}
    metrics["eval/loss"] = sum(scales[name] * value for name, value in means.items())
    metrics |= {f"eval/{name}": float(value / max(weight, 1.0)) for name, (value, weight) in sums.items()}
    for name, pieces in scores.items():
        score, label = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        metrics[f"eval/{name}_auc"] = roc_auc(score, label)
    return metrics


def roc_auc(score_N: np.ndarray, label_N: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counted half. 0.5 where one class is absent."""
    positives = int(label_N.sum())
    negatives = len(label_N) - positives
    if not positives or not negatives:
        return 0.5
    _, place_N, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1; equal scores share their mean rank
    rank_sum = float(ranks[place_N][label_N.astype(bool)].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
