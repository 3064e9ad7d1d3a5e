"""Losses and outputs of each kind against plain numpy on the same hidden states; the heads against the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, log_softmax, softmax

from electra_jax.finetune import objective
from electra_jax.models import electra
from electra_jax.rng import StepRng, root_key
from tests import tiny

L = tiny.LENGTH
MODEL = tiny.double()


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def labelled(labels) -> objective.Labelled:
    batch = tiny.batch(8)
    types = (np.arange(L) >= 4).astype(np.int32) * batch.segments
    return objective.Labelled(batch.tokens, batch.segments, batch.positions, types, batch.row, np.asarray(labels))


def run(goal, params, batch, train: bool):
    def losses(params):
        plan, weights = goal.plan(batch, StepRng(root_key(0), jnp.int32(3)), train)
        found = goal.terms(params, batch, plan)
        return found.losses["task"], (weights["task"], found.outputs)

    return jax.jit(losses)(params)


def hidden(params, batch) -> np.ndarray:
    return np.asarray(jax.jit(lambda params, batch: electra.hidden_states(params, MODEL, batch))(params, batch))


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def make(kind, head, num_labels, **options):
    goal = objective.make(MODEL, kind, head, num_labels, None, lambda outputs: {"rows": len(outputs["row"])}, **options)
    return goal, jax.jit(goal.init)(root_key(1))


def dense(params, name, x):
    return x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])


def test_classes_numbers_and_tags():
    r = np.random.default_rng(0)
    labels = {
        "class": r.integers(0, 3, 8).astype(np.int32),
        "classes": r.integers(0, 2, (8, 3)).astype(np.int32),
        "number": r.random(8).astype(np.float32),
        "tags": np.where(r.random((8, L)) < 0.5, r.integers(0, 5, (8, L)), -1).astype(np.int32),
    }
    for kind, head, count in (("class", "classification", 3), ("classes", "classification", 3), ("number", "classification", 1)):
        goal, params = make(kind, head, count)
        batch = labelled(labels[kind])
        loss, (weight, outputs) = run(goal, params, batch, False)
        logits = dense(params[head], "out", hidden(params, batch)[:, 0])
        if kind == "class":
            wanted = -log_softmax(logits, axis=1)[np.arange(8), labels[kind]].sum()
            np.testing.assert_allclose(outputs["log_p"], log_softmax(logits, axis=1), atol=1e-9)
        elif kind == "classes":
            wanted = np.log1p(np.exp(np.where(labels[kind] > 0, -logits, logits))).sum()
        else:
            wanted = ((logits[:, 0] - labels[kind]) ** 2).sum()
        np.testing.assert_allclose((loss, weight), (wanted, 8), rtol=1e-9)

    goal, params = make("tags", "token_classification", 5)
    batch = labelled(np.where(tiny.batch(8).segments > 0, labels["tags"], -1))
    loss, (weight, outputs) = run(goal, params, batch, False)
    log_p = log_softmax(dense(params["token_classification"], "out", hidden(params, batch)), axis=2)
    chosen = np.asarray(batch.labels) >= 0
    wanted = -np.take_along_axis(log_p, np.maximum(batch.labels, 0)[..., None], axis=2)[..., 0][chosen].sum()
    np.testing.assert_allclose((loss, weight), (wanted, chosen.sum()), rtol=1e-9)
    np.testing.assert_array_equal(outputs["called"], log_p.argmax(axis=2))


def test_the_joint_head_is_the_published_one():
    """google-research/electra qa_tasks.py, get_prediction_module, with the two products of a pair written as one of both vectors."""
    goal, params = make("answer", "joint_answer", 2)
    labels = np.array([[5, 6, 0], [0, 0, 1]] * 4, np.int32)
    batch = labelled(labels)
    head, h = params["joint_answer"], hidden(params, batch)
    allowed = ((np.asarray(batch.types) == 1) & (np.asarray(batch.segments) > 0)) | (np.arange(L) == 0)
    mask = 1000.0 * (allowed - 1.0)
    start = dense(head, "start", h)[..., 0] + mask

    def ends(starts):  # [B, S] -> [B, S, L]
        pairs = np.concatenate([np.broadcast_to(np.take_along_axis(h, starts[..., None], 1)[:, :, None], (*starts.shape, *h.shape[1:])),
                                np.broadcast_to(h[:, None], (*starts.shape, *h.shape[1:]))], -1)  # fmt: skip
        return dense(head, "end", gelu(dense(head, "end_hidden", pairs)))[..., 0] + mask[:, None]

    mean = np.einsum("bl,blh->bh", softmax(start, axis=1), h)
    none = dense(head, "no_answer", gelu(dense(head, "no_answer_hidden", np.concatenate([h[:, 0], mean], -1))))[:, 0]
    log_start, log_end = log_softmax(start, axis=1), log_softmax(ends(labels[:, :1]), axis=2)[:, 0]
    rows = np.arange(8)
    losses = -(log_start[rows, labels[:, 0]] + log_end[rows, labels[:, 1]]) / 2
    losses += 0.5 * np.log1p(np.exp(np.where(labels[:, 2] > 0, -none, none)))
    loss, (weight, outputs) = run(goal, params, batch, False)
    np.testing.assert_allclose((loss, weight), (losses.sum(), 8), rtol=1e-9)
    np.testing.assert_allclose(outputs["no_answer"], none, atol=1e-9)
    beam = np.argsort(-log_start, axis=1, kind="stable")
    np.testing.assert_allclose(outputs["start_log_p"], np.take_along_axis(log_start, beam, 1), atol=1e-9)
    np.testing.assert_allclose(outputs["end_log_p"], -np.sort(-log_softmax(ends(np.asarray(outputs["start"])), axis=2)), atol=1e-8)


def test_the_independent_head():
    goal, params = make("answer", "question_answering", 2)
    labels = np.array([[5, 6, 0], [0, 0, 1]] * 4, np.int32)
    batch = labelled(labels)
    allowed = ((np.asarray(batch.types) == 1) & (np.asarray(batch.segments) > 0)) | (np.arange(L) == 0)
    logits = dense(params["question_answering"], "out", hidden(params, batch)) + 1000.0 * (allowed - 1.0)[..., None]
    log_p, rows = log_softmax(logits, axis=1), np.arange(8)
    loss, _ = run(goal, params, batch, False)
    np.testing.assert_allclose(loss, -(log_p[rows, labels[:, 0], 0] + log_p[rows, labels[:, 1], 1]).sum() / 2, rtol=1e-9)


def test_rows_that_are_none_count_for_nothing():
    goal, params = make("class", "classification", 3)
    batch = labelled(np.zeros(8, np.int32))
    cut = batch.replace(segments=batch.segments * (np.arange(8) < 5)[:, None].astype(np.int32))
    loss, (weight, _) = run(goal, params, cut, False)
    first, _ = run(goal, params, jax.tree.map(lambda x: x[:5], batch), False)
    np.testing.assert_allclose((loss, weight), (first, 5), rtol=1e-9)


def test_a_sum_over_the_batch_has_no_denominator():
    """The step divides by max(weight, 1)."""
    goal, params = make("class", "classification", 3, sum_over_batch=True)
    batch = labelled(np.zeros(8, np.int32))
    assert float(run(goal, params, batch, True)[1][0]) == 0.0
    assert float(run(goal, params, batch, False)[1][0]) == 8.0  # an evaluation tells the mean


def test_outputs_of_several_lengths_join_in_the_order_of_rows():
    first = {"row": np.array([3, 0]), "called": np.array([[1, 2, 3], [4, 5, 6]])}
    second = {"row": np.array([2, 1]), "called": np.array([[7], [8]])}
    found = objective.joined([first, second])
    np.testing.assert_array_equal(found["row"], [0, 1, 2, 3])
    np.testing.assert_array_equal(found["called"], [[4, 5, 6], [8, 0, 0], [7, 0, 0], [1, 2, 3]])
