"""A toy objective of one network: fill the masked words, and nothing else. Its config.objective.name is the line that a test adds."""

import jax
import jax.numpy as jnp

from electra_jax.models import costs, electra
from electra_jax.objectives import masking
from electra_jax.types import Objective, Terms
from electra_jax.views import Curve, Examples, Panel, Span, View

NETWORK = "encoder"
VIEW = View(
    verdict=lambda metrics: "It fills words.",
    headline=lambda metrics: f"words filled with loss {metrics['eval/words_loss']:.3f}, worst {metrics['eval/worst']:.2f}",
    shown=("eval/words_loss", "eval/worst"),
    warnings=lambda metrics, step, run: [("toy", "this is a toy")] if step >= run.total_steps else [],
    panels=(Panel("Words", "It should fall.", (Curve("train/words_loss", "training", "blue"),)),),
    examples=lambda batch, outputs, pieces: Examples(
        "What was filled", "", [[Span(word, " ") for word in pieces(outputs["targets"][0].tolist())]]
    ),
)


def reads(config):
    return ("mlm_weight",)


def networks(config):
    return {NETWORK: {"head": "mlm"}}


def directed(config):
    return False


def make(model, masking_config, config, vocabulary, slots_multiple=1) -> Objective:
    def plan(batch, rng, train):
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        return (slots, rng.seeds(NETWORK, batch.row) if train else None), {"words": jnp.sum(slots.weights)}

    def terms(params, batch, plan):
        slots, seeds = plan
        targets_BxK = masking.gather(batch.tokens, slots)
        masked = masking.mask(batch, slots, vocabulary)
        nll_BxK, _, right_BxK = electra.generator_nll(params, model, masked, slots.positions, targets_BxK, seeds, NETWORK)
        losses = {"words": jnp.sum(nll_BxK * slots.weights)}
        metrics = {"words_accuracy": (jnp.sum(right_BxK * slots.weights), jnp.sum(slots.weights))}
        return Terms(losses, metrics, {"nll": nll_BxK * slots.weights, "targets": targets_BxK})

    def init(key: jax.Array):
        return electra.init_params(key, model, networks(config))

    def flops(rows, length):
        slots = masking_config.max_predictions(length)
        return 3.0 * rows * (costs.forward_flops(model, NETWORK, length) + costs.head_flops(model, NETWORK, "mlm", slots))

    measure = lambda outputs: {"worst": float(max(batch["nll"].max() for batch in outputs))}  # noqa: E731
    return Objective(init, plan, terms, lambda step: {"words": config.mlm_weight}, flops, measure, (NETWORK,), NETWORK, VIEW)
