"""Fine-tuning as an objective: an encoder with a task's head, and a loss that depends on the kind of label.

The losses are the published ones (google-research/electra `finetune/`). Classes: cross-entropy. Numbers: squared error. Tags:
cross-entropy at each of a sentence's words. Answers: the mean of the cross-entropies of start and end, plus, with the head joint_answer,
half the binary cross-entropy of there being no answer. `run_finetuning.py` sums them over the batch; here they are averaged unless
`sum_over_batch` is set.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms
from electra_jax.views import View

NO_ANSWER_WEIGHT = 0.5  # google-research/electra configure_finetuning.py, answerable_weight
BEAM = 20  # how many starts are kept, and how many ends of each (configure_finetuning.py, beam_size)
TERM = "task"


class Labelled(Batch):
    """A batch with labels. `labels` by kind: "class" int32 [B]; "classes" int32 [B, C], 0 or 1; "number" float32 [B]; "tags" int32 [B, L],
    -1 at tokens that are not the first piece of a word; "answer" int32 [B, 3]: start, end, and 1 if there is no answer. In rows without
    a label (a test set) these are zeros.
    """

    labels: Array


class Plan(flax.struct.PyTreeNode):
    weights: Array  # [B] float32: 1, for tags the row's number of labelled words; 0 for an empty row
    seeds: Array | None  # uint32 [B, 2] for dropout; None: dropout is off


class Scores(NamedTuple):
    """What a kind computes from a batch: the losses, and the outputs that predictions are made of."""

    losses_B: Array  # for tags, summed over a row's words
    outputs: dict[str, Array]  # each with a leading axis of rows


# (params, model, batch, head, dropout's seeds [B, 2] or None in an evaluation, network) -> Scores
Kind = Callable[[Params, ElectraConfig, Labelled, str, Array | None, str], Scores]


def make(
    model: ElectraConfig,
    kind: str,
    head: str,
    num_labels: int,
    view: View,
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]],
    *,
    network: str = "discriminator",
    sum_over_batch: bool = False,
) -> Objective:
    """The objective of a task.

    head: one of models.heads.TASKS.
    score({name: one array of all held-out rows}) -> the task's metrics. The rows are in the order of the held-out set, and arrays with an
      axis of tokens are padded to one length.
    sum_over_batch: the loss is the sum over rows and words, as published, and not their mean.
    """

    def init(key: Array) -> Params:
        body, of_head = jax.random.split(key)
        params = electra.init_params(body, model, {network: {}})
        return {**params, head: electra.init_task(of_head, model, head, num_labels, network)}

    def plan(batch: Labelled, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        real_B = batch.segments[:, 0] > 0
        weights_B = jnp.sum(batch.labels >= 0, axis=1) * real_B if kind == "tags" else real_B
        weights_B = weights_B.astype(jnp.float32)
        # The step divides the loss by this total, or by 1 if the total is less. So a total of 0 leaves the loss as the sum over the batch.
        total = jnp.zeros(()) if sum_over_batch and train else jnp.sum(weights_B)
        return Plan(weights_B, rng.seeds(network, batch.row) if train else None), {TERM: total}

    def terms(params: Params, batch: Labelled, plan: Plan) -> Terms:
        scores = KINDS[kind](params, model, batch, head, plan.seeds, network)
        loss = jnp.sum(jnp.where(plan.weights > 0, scores.losses_B, 0.0))
        return Terms({TERM: loss}, {}, {**scores.outputs, "row": batch.row})

    def flops(rows: int, length: int) -> float:
        return 3.0 * rows * costs.forward_flops(model, network, length)

    def measure(outputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        return score(joined(outputs))

    return Objective(init, plan, terms, lambda step: {TERM: 1.0}, flops, measure, (network,), network, view)


def joined(outputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of several batches, each joined into one array in the order of "row"; its other axes are padded with zeros to the
    longest."""
    batches = list(outputs)
    order = np.argsort(np.concatenate([batch["row"] for batch in batches]))

    def whole(arrays: list[np.ndarray]) -> np.ndarray:
        longest = np.max([x.shape[1:] for x in arrays], axis=0, initial=0)
        padded = [np.pad(x, [(0, 0), *((0, int(n) - m) for n, m in zip(longest, x.shape[1:], strict=True))]) for x in arrays]
        return np.concatenate(padded)[order]

    return {name: whole([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}


def are_finite(outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether predictions can be made of the outputs: NaN as a class's probability would give the first class."""
    return all(np.isfinite(each).all() for each in outputs.values())


def _class(params, model, batch, head, seeds_Bx2, network) -> Scores:
    log_p_BxC = jax.nn.log_softmax(electra.task_apply(params, model, batch, head, seeds_Bx2, network))
    return Scores(-jnp.take_along_axis(log_p_BxC, batch.labels[:, None], axis=1)[:, 0], {"log_p": log_p_BxC})


def _classes(params, model, batch, head, seeds_Bx2, network) -> Scores:
    """Each label is a decision of its own: a row's loss is the sum of the labels' binary cross-entropies."""
    logits_BxC = electra.task_apply(params, model, batch, head, seeds_Bx2, network)
    losses_BxC = jax.nn.softplus(jnp.where(batch.labels > 0, -logits_BxC, logits_BxC))
    return Scores(jnp.sum(losses_BxC, axis=1), {"log_p": jax.nn.log_sigmoid(logits_BxC)})


def _number(params, model, batch, head, seeds_Bx2, network) -> Scores:
    values_B = electra.task_apply(params, model, batch, head, seeds_Bx2, network)[:, 0]
    return Scores((values_B - batch.labels.astype(values_B.dtype)) ** 2, {"value": values_B})


def _tags(params, model, batch, head, seeds_Bx2, network) -> Scores:
    log_p_BxLxC = jax.nn.log_softmax(electra.task_apply(params, model, batch, head, seeds_Bx2, network))
    nll_BxL = -jnp.take_along_axis(log_p_BxLxC, jnp.maximum(batch.labels, 0)[..., None], axis=2)[..., 0]
    called_BxL = jnp.argmax(log_p_BxLxC, axis=2).astype(jnp.int32)
    outputs = {"called": called_BxL, "log_p": jnp.max(log_p_BxLxC, axis=2)}
    return Scores(jnp.sum(jnp.where(batch.labels >= 0, nll_BxL, 0.0), axis=1), outputs)


def allowed(batch: Batch) -> Array:
    """bool [B, L]: where an answer may begin or end: in the context, whose type is 1; at the [SEP] behind it; and at [CLS], which stands
    for no answer (google-research/electra `qa_tasks.py`, answer_mask)."""
    is_context_BxL = (batch.segments > 0) & (batch.types == 1)
    return is_context_BxL | (jnp.arange(batch.tokens.shape[1]) == 0)[None]


def _answer(params, model, batch, head, seeds_Bx2, network) -> Scores:
    allowed_BxL, (start_B, end_B, impossible_B) = allowed(batch), batch.labels.T
    if head == "joint_answer":

        def choose(start_BxL: Array) -> Array:
            """The true start, which the loss needs; in an evaluation it is followed by the likeliest starts, which predictions need."""
            beam_BxS = jax.lax.top_k(start_BxL, min(BEAM, start_BxL.shape[1]))[1]
            return start_B[:, None] if seeds_Bx2 is not None else jnp.concatenate([start_B[:, None], beam_BxS], axis=1)

        start_BxL, starts_BxS, end_BxSxL, none_B = electra.answer_apply(params, model, batch, allowed_BxL, choose, seeds_Bx2, network)
        log_start_BxL, log_end_BxSxL = jax.nn.log_softmax(start_BxL), jax.nn.log_softmax(end_BxSxL)
        of_end_B = jnp.take_along_axis(log_end_BxSxL[:, 0], end_B[:, None], axis=1)[:, 0]
        no_answer_B = jax.nn.softplus(jnp.where(impossible_B > 0, -none_B, none_B))
        beam_BxS = starts_BxS[:, 1:]
        top_end_BxSxE, end_index_BxSxE = jax.lax.top_k(log_end_BxSxL[:, 1:], min(BEAM, start_BxL.shape[1]))
        outputs = {
            "start_log_p": jnp.take_along_axis(log_start_BxL, beam_BxS, axis=1),
            "start": beam_BxS,
            "end_log_p": top_end_BxSxE,
            "end": end_index_BxSxE,
            "no_answer": none_B,
        }
    else:
        logits_BxLx2 = electra.task_apply(params, model, batch, head, seeds_Bx2, network)
        logits_BxLx2 = logits_BxLx2 + 1000.0 * (allowed_BxL.astype(jnp.float32) - 1.0)[..., None]
        log_p_BxLx2 = jax.nn.log_softmax(logits_BxLx2, axis=1)
        log_start_BxL = log_p_BxLx2[..., 0]
        of_end_B = jnp.take_along_axis(log_p_BxLx2[..., 1], end_B[:, None], axis=1)[:, 0]
        no_answer_B = 0.0
        outputs = {"start_logits": logits_BxLx2[..., 0], "end_logits": logits_BxLx2[..., 1]}
    of_start_B = jnp.take_along_axis(log_start_BxL, start_B[:, None], axis=1)[:, 0]
    return Scores(-(of_start_B + of_end_B) / 2 + NO_ANSWER_WEIGHT * no_answer_B, outputs)


KINDS: Mapping[str, Kind] = {"class": _class, "classes": _classes, "number": _number, "tags": _tags, "answer": _answer}
