"""What replaces the masked tokens: a network that learns to fill them, or a distribution that reads nothing (arXiv 2003.10555, 3.2)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.cli import UserError
from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Params, Vocabulary

NAME = "generator"
HEADS = {"head": "mlm"}
READS = ("mlm_weight", "generator", "train_generator", "temperature", "temperature_decay_steps", "sample_dropout", "allow_correct")


class Plan(flax.struct.PyTreeNode):
    slots: masking.Slots
    uniform: Array  # [B, K, 2]: which token is drawn at each slot
    mlm_weights: Array | None = None  # [B, K] float32: the slots whose loss counts; None, with the seeds: no network
    seeds: Array | None = None  # uint32 [B, 2]; None: dropout is off
    temperature: Array | None = None  # [B]; None: it is 1


class WithDiscriminator(flax.struct.PyTreeNode):
    """The plan of an objective whose discriminator sees what the generator made."""

    generator: Plan
    seeds: Array | None  # uint32 [B, 2], the discriminator's; None: dropout is off


class Made(NamedTuple):
    """A batch with replacements, and what there is to say of them."""

    batch: Batch  # what the discriminator sees
    replaced_BxL: Array  # bool: another token than before
    slots: masking.Slots
    targets_BxK: Array  # the tokens that stood at the slots
    losses: dict[str, Array]
    metrics: dict[str, tuple[Array, Array]]


class Generator(NamedTuple):
    """plan(batch, rng, train) -> (Plan, {term: denominator}); replace(params, batch, plan) -> Made; flops(rows, length) of a training step;
    scales: {term: factor}; frozen: a regex over the paths of parameters that do not train, "" for none."""

    plan: Callable[[Batch, StepRng, bool], tuple[Plan, dict[str, Array]]]
    replace: Callable[[Params, Batch, Plan], Made]
    flops: Callable[[int, int], float]
    scales: Mapping[str, float]
    frozen: str
    reading: readings.Reading


def with_discriminator(generator: Generator, batch: Batch, rng: StepRng, train: bool) -> tuple[WithDiscriminator, dict[str, Array]]:
    """(the plan of both, the generator's denominators)."""
    planned, weights = generator.plan(batch, rng, train)
    return WithDiscriminator(planned, rng.seeds("discriminator", batch.row) if train else None), weights


def networks(config: ObjectiveConfig) -> electra.Networks:
    return {NAME: HEADS} if config.generator == "network" else {}


def make(
    model: ElectraConfig, masking_config: MaskingConfig, config: ObjectiveConfig, vocabulary: Vocabulary, slots_multiple: int
) -> Generator:
    """The generator that the config names. UserError where its fields contradict one another."""
    _check(model, config)
    if config.generator == "network":
        return _network(model, masking_config, config, vocabulary, slots_multiple)
    return _distribution(masking_config, config, vocabulary, slots_multiple)


def _check(model: ElectraConfig, config: ObjectiveConfig) -> None:
    if config.generator != "network":
        of_network = [name for name in READS if name not in ("generator", "allow_correct")]
        if asked := [name for name in of_network if getattr(config, name) != getattr(ObjectiveConfig(), name)]:
            raise UserError(f"objective.{asked[0]} is of a generator that is a network, and objective.generator is {config.generator}")
        if model.sharing != "shared":
            raise UserError(f"model.sharing={model.sharing} is of two networks, and objective.generator={config.generator} is none")
    if config.temperature_decay_steps and config.temperature == 1.0:
        raise UserError("objective.temperature_decay_steps needs an objective.temperature to begin with, such as 2.0")
    if not config.train_generator and model.sharing in ("shared", "all"):
        raise UserError(
            f"objective.train_generator=False: with model.sharing={model.sharing} the discriminator would train what they share: "
            "--config.model.sharing=none (or gdes)"
        )


def _network(model, masking_config, config, vocabulary, slots_multiple) -> Generator:
    trains = config.train_generator
    # Without dropout a second pass would be the first again.
    twice = not config.sample_dropout and (model.dropout > 0 or model.attention_dropout > 0)

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        # In training every chosen slot counts, as published. Held out, only those shown as [MASK] count: the 15% that stay visible are
        # easily copied, and would put a generator that knows word frequencies alone well under their entropy.
        mlm_weights = slots.weights if train else slots.masked.astype(jnp.float32)
        temperature = None
        if config.temperature != 1.0:
            # Held out it is the last one, so that evaluations compare over a run.
            share = 1.0 if not config.temperature_decay_steps else 0.0
            if config.temperature_decay_steps and train:
                share = jnp.exp(-rng.step.astype(jnp.float32) / config.temperature_decay_steps)
            temperature = jnp.full(batch.row.shape, 1.0 + (config.temperature - 1.0) * share, jnp.float32)
        # Dropout stays on while the generator samples, as published.
        seeds = rng.seeds(NAME, batch.row) if train else None
        planned = Plan(slots, masking.uniform(batch, rng, masking_config, slots), mlm_weights, seeds, temperature)
        return planned, {"mlm": jnp.sum(mlm_weights)} if trains else {}

    def replace(params: Params, batch: Batch, plan: Plan) -> Made:
        slots, weights_BxK = plan.slots, plan.mlm_weights
        masked = masking.mask(batch, slots, vocabulary)
        with jax.named_scope("generator"):
            targets_BxK = masking.gather(batch.tokens, slots)
            given = params if trains else jax.lax.stop_gradient(params)
            fill = partial(electra.generator_nll, given, model, masked, slots.positions, targets_BxK)
            mlm_BxK, mass_BxKxV, right_BxK = fill(plan.seeds)
            if plan.seeds is not None and twice:
                mass_BxKxV = jax.lax.stop_gradient(fill(None)[1])
        with jax.named_scope("sample"):
            if plan.temperature is not None:
                mass_BxKxV = mass_BxKxV ** (1.0 / plan.temperature.astype(mass_BxKxV.dtype))[:, None, None]
            if not config.allow_correct:
                mass_BxKxV = jnp.where(targets_BxK[..., None] == jnp.arange(mass_BxKxV.shape[-1])[None, None], 0, mass_BxKxV)
            made = _made(batch, slots, targets_BxK, masking.sample(mass_BxKxV, plan.uniform), vocabulary)
        loss, weight = jnp.sum(mlm_BxK * weights_BxK.astype(mlm_BxK.dtype)), jnp.sum(weights_BxK)
        metrics = {"mlm_accuracy": (jnp.sum(weights_BxK * right_BxK), weight), **made.metrics}
        if not trains:  # it is shown, and no part of the loss
            metrics["mlm_loss"] = (loss, weight)
        return made._replace(losses={"mlm": loss} if trains else {}, metrics=metrics)

    def flops(rows: int, length: int) -> float:
        forward = costs.forward_flops(model, NAME, length)
        forward += costs.head_flops(model, NAME, "mlm", masking_config.max_predictions(length))
        return rows * forward * ((3.0 if trains else 1.0) + (1.0 if twice else 0.0))

    scales = {"mlm": config.mlm_weight} if trains else {}
    return Generator(plan, replace, flops, scales, "" if trains else rf"^{NAME}/", readings.GENERATOR)


def _distribution(masking_config, config, vocabulary, slots_multiple) -> Generator:
    """Draws every token alike, as the published `uniform_generator`, which draws special tokens too; or by the frequencies of the training
    rows, which have none."""
    mass_V = np.ones(len(vocabulary.word_starts)) if config.generator == "uniform" else vocabulary.counts
    if mass_V is None or not np.any(mass_V > 0):
        raise UserError("objective.generator=unigram needs the frequencies of the training rows, and there are none")

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        return Plan(slots, masking.uniform(batch, rng, masking_config, slots)), {}

    def replace(params: Params, batch: Batch, plan: Plan) -> Made:
        targets_BxK = masking.gather(batch.tokens, plan.slots)
        without = None if config.allow_correct else targets_BxK
        return _made(batch, plan.slots, targets_BxK, masking.sample_fixed(mass_V, plan.uniform, without), vocabulary)

    return Generator(plan, replace, lambda rows, length: 0.0, {}, "", readings.DRAWN)


def _made(batch: Batch, slots: masking.Slots, targets_BxK: Array, sampled_BxK: Array, vocabulary: Vocabulary) -> Made:
    corrupted, replaced_BxL = masking.corrupt(batch, slots, sampled_BxK)
    able_BxL = masking.candidates(batch, vocabulary)
    metrics = {
        "sampled_accuracy": (jnp.sum(slots.weights * (sampled_BxK == targets_BxK)), jnp.sum(slots.weights)),
        "replace_rate": (masking.count(replaced_BxL), masking.count(able_BxL)),
    }
    return Made(corrupted, replaced_BxL, slots, targets_BxK, {}, metrics)
