"""The records that every part of the system passes around."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from electra_jax.views import View

Array = jax.Array
Params = Mapping[str, Any]


class Batch(flax.struct.PyTreeNode):
    """`B` rows of `L` tokens, all int32. An unpacked row is the case of one document; attention never crosses a segment.

    A task that needs more of its rows (labels, patches) subclasses it: step, loop and executors only map over its leaves, each of
    which has a leading axis of rows.
    """

    tokens: Array  # [B, L]
    segments: Array  # [B, L] which packed document a token belongs to, 1-based; 0 = padding
    positions: Array  # [B, L] restart in every document
    types: Array  # [B, L] 0 or 1: the two segments of the paper's examples
    row: Array  # [B] the place in the step's global batch; in evaluation, in the held-out set


class DirectedBatch(Batch):
    """A batch of which some tokens are hidden from others. Only attention=xla can do it."""

    direction: (
        Array  # [B] what a token attends to in its segment: 0 all, 1 itself and what stands before it, -1 itself and what comes after
    )

    @classmethod
    def of(cls, batch: Batch, direction_B: Array) -> "DirectedBatch":
        return cls(**vars(batch), direction=direction_B)


class TrainState(flax.struct.PyTreeNode):
    """All that one step reads and writes on the device. Global arrays, without a device axis, whatever the executor.

    Of several seeds that train in one program (train/seeds.py) every array but `step` has a leading axis of seeds.
    """

    step: Array  # int32 scalar: updates tried so far, and so the number of the next batch
    root: Array  # uint32 [2]: the words of the key that all randomness of the run is folded from; they never change
    params: Params
    opt_state: Any
    skipped: Array  # int32 scalar: steps whose loss or gradient was not finite, and which changed nothing else
    skipped_in_a_row: Array  # int32 scalar


class Vocabulary(NamedTuple):
    """What an objective must know of tokens. `word_starts` [V] bool: the piece begins a word."""

    cls_id: int
    sep_id: int
    mask_id: int
    word_starts: np.ndarray
    counts: np.ndarray | None = None  # [V] how often each is in the training rows, 0 for special tokens


class Terms(NamedTuple):
    """What an objective's forward pass over some rows gives. Sums, never means: they add over micro-batches and devices."""

    losses: dict[str, Array]  # term -> sum over its weights
    metrics: dict[str, tuple[Array, Array]]  # name -> (sum, weight)
    # For evaluation alone, a leading axis of rows each: what `measure` and the view's examples are made of. In the train step nothing
    # uses them, and the compiler drops them.
    outputs: dict[str, Array]


class Objective(NamedTuple):
    """A pretraining or fine-tuning task as pure functions; the train step knows nothing else of it.

    init(key) -> params: the networks and heads that the objective needs, with the shared embeddings.
    plan(batch, rng, train) -> (plan, weights): everything decided before the forward pass (masked slots, noise,
      dropout seeds; each leaf with a leading batch axis), and `{term: denominator}`, known before the backward pass.
    terms(params, batch, plan) -> Terms.
    scales(step) -> `{term: factor}`; the loss is the sum over terms of factor x sum / global denominator. step: of the run, from 0; in an
      evaluation, which compares over a run, math.inf.
    frozen: a regex over the paths of parameters that do not train; "": all do.
    flops(rows, length) -> floating-point operations of one training step of so many rows, forward and backward.
    measure(outputs of each held-out batch's valid rows, one after the other) -> {metric: value}: what is no quotient of sums (AUC, F1), on
      the host. It keeps what it needs of them.
    networks: their names, which are paths in params beside "embeddings".
    encoder: which of them fine-tuning, export and vectors take.
    """

    init: Callable[[Array], Params]
    plan: Callable[..., tuple[Any, dict[str, Array]]]
    terms: Callable[[Params, Batch, Any], Terms]
    scales: Callable[[Array | float], Mapping[str, Array | float]]
    flops: Callable[[int, int], float]
    measure: Callable[[Iterable[Mapping[str, np.ndarray]]], dict[str, float]]
    networks: tuple[str, ...]
    encoder: str
    view: View
    frozen: str = ""
