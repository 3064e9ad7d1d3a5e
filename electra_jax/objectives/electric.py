"""Electric: an energy for every token, learned by telling text from noise (Clark et al. 2020, "Pre-Training Transformers as Energy-Based
Cloze Models"; google-research/electra `run_pretraining.py`).

A generator gives q(x_t | the other tokens). Chosen tokens are replaced by samples of it. The discriminator's raw head is the energy E of
the token that it sees, and the logit of "this is noise" is

    z_t = E_t + log q(x~_t) + log(k)        with no gradient through q

where k is how many noise tokens there are to one of the text. Loss = mlm_weight x the generator's cross-entropy + rtd_weight x the binary
cross-entropy of z. A sample that equals the original is noise too. minus the sum of E is the score of a text (infer/scores.py).

towers (as published): two transformers of the generator's size, one that sees what stands before a token and one what comes after, and a
head over both. So q is known at every token that can be masked, both losses are over these, and k = rate / (1 - rate). (The published code
counts the energies of [CLS] and [SEP] too, which are never replaced and have no q.) Without, one generator fills masked tokens, so that q
is known at them alone: half of the chosen tokens, by their numbers, are replaced, both losses are over the chosen ones, and k = 1.
"""

import flax.struct
import jax
import jax.numpy as jnp

from electra_jax.cli import UserError
from electra_jax.models import costs, electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import Head, detection, marking, masking, readings
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, DirectedBatch, Objective, Params, Terms, Vocabulary

DISCRIMINATOR = "discriminator"
TOWERS = {"generator_ltr": 1, "generator_rtl": -1}  # name -> direction; the first has the head over both
HEAD_OF = "generator_ltr"
ONE = "generator"


class Plan(flax.struct.PyTreeNode):
    slots: masking.Slots
    noise: Array  # [B, K] bool: the slots that are replaced
    uniform: Array  # [B, K, 2]: which token is drawn at each slot
    seeds: dict[str, Array | None]  # of each network, uint32 [B, 2]; None: dropout is off


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return ("mlm_weight", "rtd_weight", "towers")


def networks(config: ObjectiveConfig) -> electra.Networks:
    if config.towers:
        return {**{name: {} for name in TOWERS}, DISCRIMINATOR: {"head": "rtd"}}
    return {ONE: {"head": "mlm"}, DISCRIMINATOR: {"head": "rtd"}}


def directed(config: ObjectiveConfig) -> bool:
    return config.towers


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    return {"electric": Head(DISCRIMINATOR, "head"), **({} if config.towers else {"pll": Head(ONE, "head")})}


def make(
    model: ElectraConfig, masking_config: MaskingConfig, config: ObjectiveConfig, vocabulary: Vocabulary, slots_multiple: int = 1
) -> Objective:
    """`slots_multiple`: masked slots a row are padded to a multiple of it."""
    if config.towers and model.sharing != "shared":
        raise UserError(f"model.sharing={model.sharing}: the towers of electric share its embeddings (model.sharing=shared)")
    if not config.towers and masking_config.mask_fraction != 1.0:
        raise UserError("objective.towers=False: a generator must not see what it is asked for: --config.masking.mask_fraction=1.0")
    if not config.towers and masking_config.with_replacement:
        raise UserError("objective.towers=False: a token is chosen once: --config.masking.with_replacement=False")
    its_networks = networks(config)
    tower_width = model.encoder(HEAD_OF).hidden_size

    def init(key: Array) -> Params:
        params = electra.init_params(key, model, its_networks)
        if not config.towers:
            return params
        head = electra.init_head(jax.random.fold_in(key, 1), model, HEAD_OF, "mlm", 2 * tower_width)
        return {**params, HEAD_OF: {**params[HEAD_OF], "head": head}}

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[Plan, dict[str, Array]]:
        slots = masking.choose(batch, rng, masking_config, vocabulary, slots_multiple)
        noise_BxK = slots.weights > 0
        if config.towers:
            num_able = masking.count(masking.candidates(batch, vocabulary))
            weights = {"mlm": num_able, "rtd": num_able}
        else:
            noise_BxK &= (jnp.arange(noise_BxK.shape[1]) % 2 == 0)[None]  # the slots are in random order
            weights = {"mlm": jnp.sum(slots.weights), "rtd": jnp.sum(slots.weights)}
        seeds = {name: rng.seeds(name, batch.row) if train else None for name in its_networks}
        uniform = masking.uniform(batch, rng, masking_config, slots)
        return Plan(slots, noise_BxK, uniform, seeds), weights

    def terms(params: Params, batch: Batch, plan: Plan) -> Terms:
        slots = plan.slots
        targets_BxK = masking.gather(batch.tokens, slots)
        with jax.named_scope("generator"):
            cloze = _by_towers if config.towers else _by_one
            mlm, right, nll_BxL, mass_BxKxV = cloze(params, model, batch, plan, targets_BxK, vocabulary)
        with jax.named_scope("sample"):
            replaces = slots.replace(weights=plan.noise.astype(jnp.float32))
            corrupted, _ = masking.corrupt(batch, replaces, masking.sample(mass_BxKxV, plan.uniform))
            noise_BxL = masking.marked(slots, plan.noise, batch)
            chosen_BxL = masking.marked(slots, slots.weights > 0, batch)
            log_q_BxK = _log_share(mass_BxKxV, masking.gather(corrupted.tokens, slots))
            log_q_BxL = jnp.where(chosen_BxL, masking.spread(slots, log_q_BxK, batch), 0.0 if nll_BxL is None else -nll_BxL)
        with jax.named_scope("discriminator"):
            energy_BxL = electra.discriminator_apply(params, model, corrupted, plan.seeds[DISCRIMINATOR])
        noise_to_text = masking_config.rate / (1 - masking_config.rate) if config.towers else 1.0
        logits_BxL = energy_BxL + jax.lax.stop_gradient(log_q_BxL).astype(energy_BxL.dtype) + jnp.log(noise_to_text)
        rtd_BxL = detection.binary_nll(logits_BxL, noise_BxL)
        able_BxL = masking.candidates(batch, vocabulary) if config.towers else chosen_BxL
        losses = {"mlm": mlm, "rtd": jnp.sum(rtd_BxL * able_BxL.astype(rtd_BxL.dtype))}
        metrics = {"mlm_accuracy": right, **detection.metrics(logits_BxL, noise_BxL, able_BxL)}
        return Terms(losses, metrics, detection.outputs(corrupted, noise_BxL, logits_BxL, able_BxL))

    def flops(rows: int, length: int) -> float:
        num_slots = masking_config.max_predictions(length)
        forward = costs.forward_flops(model, DISCRIMINATOR, length) + costs.head_flops(model, DISCRIMINATOR, "rtd", length)
        if not config.towers:
            return 3.0 * rows * (forward + costs.forward_flops(model, ONE, length) + costs.head_flops(model, ONE, "mlm", num_slots))
        forward += sum(costs.forward_flops(model, name, length) for name in TOWERS)
        of_head = [costs.head_flops(model, HEAD_OF, "mlm", tokens, 2 * tower_width) for tokens in (length, num_slots)]
        return rows * (3.0 * (forward + of_head[0]) + of_head[1])  # at the slots once more, to sample

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=lambda step: {"mlm": config.mlm_weight, "rtd": config.rtd_weight},
        flops=flops,
        measure=detection.measure,
        networks=tuple(its_networks),
        encoder=DISCRIMINATOR,
        view=readings.view([readings.CLOZE, readings.NOISE], marking.suspicion),
    )


def _by_towers(params, model, batch, plan, targets_BxK, vocabulary):
    """(the cross-entropy summed over all candidates, (right ones, candidates), -log q of every original token [B, L], unnormalised q at the
    slots [B, K, V])."""
    x_BxLxH = {}
    for name, direction in TOWERS.items():
        shown = DirectedBatch.of(batch, jnp.full(batch.row.shape, direction))
        # What stands beside the token has read everything up to it, and not the token.
        x_BxLxH[name] = jnp.roll(electra.hidden_states(params, model, shown, plan.seeds[name], name), direction, axis=1)
    x_BxLx2H = jnp.concatenate(list(x_BxLxH.values()), axis=-1)
    nll_BxL, right_BxL = electra.mlm_nll_everywhere(params, model, x_BxLx2H, batch.tokens, HEAD_OF, "head")
    able_BxL = masking.candidates(batch, vocabulary)
    mlm = jnp.sum(nll_BxL * able_BxL.astype(nll_BxL.dtype))
    given = jax.lax.stop_gradient((params, x_BxLx2H))
    _, mass_BxKxV, _, _ = electra.mlm_nll(given[0], model, given[1], plan.slots.positions, targets_BxK, HEAD_OF)
    return mlm, (masking.count(right_BxL & able_BxL), masking.count(able_BxL)), nll_BxL, mass_BxKxV


def _by_one(params, model, batch, plan, targets_BxK, vocabulary):
    """The same of one generator, summed over the slots; -log q is not known elsewhere: None."""
    masked = masking.mask(batch, plan.slots, vocabulary)
    slots = plan.slots
    nll_BxK, mass_BxKxV, right_BxK = electra.generator_nll(params, model, masked, slots.positions, targets_BxK, plan.seeds[ONE])
    mlm = jnp.sum(nll_BxK * slots.weights.astype(nll_BxK.dtype))
    return mlm, (jnp.sum(right_BxK * slots.weights), jnp.sum(slots.weights)), None, mass_BxKxV


def _log_share(mass_BxKxV: Array, tokens_BxK: Array) -> Array:
    """log of mass[token] / sum(mass), [B, K]; a mass of 0 counts as the smallest number."""
    of_token = jnp.take_along_axis(mass_BxKxV, tokens_BxK[..., None], axis=-1)[..., 0]
    return jnp.log(jnp.maximum(of_token, jnp.finfo(mass_BxKxV.dtype).tiny)) - jnp.log(jnp.sum(mass_BxKxV, axis=-1))
