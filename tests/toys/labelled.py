"""A toy task with labels, in rows of two lengths, through the same session as pretraining.

    python -m tests.toys.labelled WORKDIR [STEPS]

A row's words are of the first half of the vocabulary or of the second, and its label says which. Odd steps have rows of 32 tokens, even
ones of 16.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import session
from electra_jax.build import Devices, build
from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.models import costs, electra
from electra_jax.recipe import Recipe
from electra_jax.store.config import CheckpointConfig
from electra_jax.train.config import EvalConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from electra_jax.types import Array, Batch, Objective, Terms
from electra_jax.views import Examples, Span, View
from electra_jax.watch.config import LogConfig
from tests import tiny

HEAD, NETWORK = "sequence_classification", "encoder"
LENGTHS = (32, 16)
ROWS, HELDOUT_ROWS = 8, 24


class Labelled(Batch):
    labels: Array  # [B] int32: 0 or 1


def rows(length: int, numbers: np.ndarray, seed: int) -> Labelled:
    """Rows that follow from their numbers alone."""
    labels, words, half = [], [], (tiny.VOCAB_SIZE + tiny.FIRST) // 2
    for number in numbers:
        r = np.random.default_rng((seed, length, number))
        labels.append(r.integers(2))
        words.append(r.integers(half, tiny.VOCAB_SIZE, length) if labels[-1] else r.integers(tiny.FIRST, half, length))
    tokens, lengths = np.stack(words), 3 + numbers % (length - 2)
    tokens[:, 0] = tiny.CLS
    tokens = np.where(np.arange(length) < lengths[:, None], tokens, 0).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    row = np.arange(len(numbers), dtype=np.int32)
    return Labelled(tokens, (tokens > 0).astype(np.int32), positions, np.zeros_like(tokens), row, np.array(labels, np.int32))


def objective(model) -> Objective:
    def init(key):
        params = electra.init_params(key, model, {NETWORK: {}})
        return {**params, HEAD: electra.init_task(jax.random.fold_in(key, 1), model, HEAD, 2, NETWORK)}

    def plan(batch, rng, train):
        valid_B = (batch.segments[:, 0] > 0).astype(jnp.float32)
        return (valid_B, rng.seeds(NETWORK, batch.row) if train else None), {"label": jnp.sum(valid_B)}

    def terms(params, batch, plan):
        valid_B, seeds = plan
        logits_Bx2 = electra.task_apply(params, model, batch, HEAD, seeds, NETWORK)
        log_p_B = jnp.take_along_axis(jax.nn.log_softmax(logits_Bx2), batch.labels[:, None], axis=1)[:, 0]
        called_B = jnp.argmax(logits_Bx2, axis=1).astype(jnp.int32)
        accuracy = jnp.sum(valid_B * (called_B == batch.labels)), jnp.sum(valid_B)
        return Terms({"label": -jnp.sum(log_p_B * valid_B)}, {"accuracy": accuracy}, {"called": called_B, "labels": batch.labels})

    def measure(outputs):
        """F1, which is no quotient of sums over batches."""
        pairs = [(batch["called"], batch["labels"]) for batch in outputs]
        called, labels = map(np.concatenate, zip(*pairs, strict=True))
        hits = int(np.sum((called == 1) & (labels == 1)))
        return {"f1": 2 * hits / max(int(np.sum(called == 1) + np.sum(labels == 1)), 1)}

    view = View(
        verdict=lambda metrics: f"It tells the classes apart with accuracy {metrics['eval/accuracy']:.2f}.",
        headline=lambda metrics: f"accuracy {metrics['eval/accuracy']:.2f}, F1 {metrics['eval/f1']:.2f}",
        shown=("eval/accuracy", "eval/f1"),
        warnings=lambda metrics, step, run: [],
        panels=(),
        examples=lambda batch, outputs, pieces: Examples("Rows", "", [[Span(str(label), " ")] for label in outputs["called"]]),
    )

    def flops(rows: int, length: int) -> float:
        return 3.0 * rows * costs.forward_flops(model, NETWORK, length)

    return Objective(init, plan, terms, lambda step: {"label": 1.0}, flops, measure, (NETWORK,), NETWORK, view)


def open_work(recipe: Recipe, scratch) -> session.Work:
    devices = Devices.of(recipe)
    recipe = recipe.resolve(devices.platform, ["discriminator"])

    def batches(start_step: int, places: np.ndarray):
        step = start_step
        while True:
            batch = rows(LENGTHS[step % 2], step * ROWS + np.arange(ROWS), recipe.seed)
            yield jax.tree.map(lambda x: x[places], batch)
            step += 1

    heldout = [
        (rows(length, 10**6 + np.arange(HELDOUT_ROWS), recipe.seed), np.arange(HELDOUT_ROWS) < HELDOUT_ROWS - 1) for length in LENGTHS
    ]
    return session.Work(
        recipe=recipe,
        parts=build(recipe, devices, objective(recipe.model)),
        tokenizer=WordPiece([*SPECIALS, *(f"w{number}" for number in range(tiny.VOCAB_SIZE - len(SPECIALS)))]),
        first_batch=rows(LENGTHS[0], np.arange(ROWS), 0),
        batches=batches,
        heldout=heldout,
        reference={"eval/chance": 0.5},
        identity={"data": "toy"},
        about="a toy",
        num_rows=10**6,
    )


def recipe(steps: int) -> Recipe:
    return Recipe(
        preset="labelled",
        model=tiny.model(),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=4),
        train=TrainConfig(steps=steps, batch_rows=ROWS),
        log=LogConfig(every_steps=1, tensorboard=False),
        eval=EvalConfig(every_steps=10),
        checkpoint=CheckpointConfig(every_steps=7),
    )


if __name__ == "__main__":
    result = session.run(recipe(int(sys.argv[2]) if len(sys.argv) > 2 else 60), open_work, sys.argv[1])
    print(result.metrics)
