"""The equation of every objective, and the comparison with what the objective computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax import options, rng
from electra_jax.objectives import OBJECTIVES, masking
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.types import Vocabulary
from tests import tiny
from tests.objectives import plain

VOCABULARY = tiny.vocabulary(tiny.VOCAB_SIZE)


def make(name: str, model, masking_config=MaskingConfig(rate=0.3), vocabulary: Vocabulary = VOCABULARY, **fields):
    return options.load(OBJECTIVES, name).make(model, masking_config, ObjectiveConfig(name=name, **fields), vocabulary)


def masked_rows(batch, slots):
    """(tokens with what is shown at the slots, how often each token counts [B, L]), by loops."""
    tokens, chosen, hidden = np.array(batch.tokens), np.zeros(batch.tokens.shape), np.zeros(batch.tokens.shape, bool)
    for b, k in np.ndindex(slots.positions.shape):
        place = slots.positions[b, k]
        if slots.weights[b, k]:
            chosen[b, place] += 1
            if slots.masked[b, k]:
                tokens[b, place], hidden[b, place] = tiny.MASK, True
            elif slots.random is not None and slots.random[b, k] >= 0:
                tokens[b, place] = slots.random[b, k]
    return tokens, chosen, hidden


class Case:
    """What an equation is written with: the parameters, the rows, what was masked and sampled."""

    def __init__(self, model, params, plan, tokens, corrupted, masked, chosen, hidden):
        self.model, self.params, self.plan, self.tokens, self.corrupted = model, params, plan, tokens, corrupted
        self.masked, self.chosen, self.hidden = masked, chosen, hidden
        self.real, self.replaced = tokens > 0, corrupted != tokens

    def x(self, network, tokens, embeddings=None, direction=0):
        embeddings = self.params["embeddings"] if embeddings is None else embeddings
        return plain.hidden(embeddings, self.params[network], tokens, self.real, self.model.encoder(network).head_size, direction)

    def fill(self, network="generator", head="head", tokens=None, embeddings=None):
        """-log p of each original token, [B, L]."""
        tokens = self.masked if tokens is None else tokens
        embeddings = self.params["embeddings"] if embeddings is None else embeddings
        return -plain.log_p(plain.words(self.x(network, tokens, embeddings), self.params[network][head], embeddings), self.tokens)

    def mean(self, values, weights):
        return jnp.sum(values * weights) / jnp.sum(weights)

    def mlm(self):
        return self.mean(self.fill(), self.chosen)

    def detect(self, embeddings=None):
        """Cross-entropy of replaced or not, [B, L]."""
        p = jax.nn.sigmoid(plain.binary(self.x("discriminator", self.corrupted, embeddings), self.params["discriminator"]["head"]))
        return -jnp.where(self.replaced, jnp.log(p), jnp.log1p(-p))


def all_tokens(c: Case):
    d = c.params["discriminator"]
    x = c.x("discriminator", c.corrupted)
    copy = 1 - jax.nn.sigmoid(plain.binary(x, d["head"]))
    p = jnp.exp(plain.log_p(plain.words(x, d["lm_head"], c.params["embeddings"]), c.tokens))
    return -jnp.log(copy * ~c.replaced + (1 - copy) * p)


def corrective(c: Case):
    d = c.params["discriminator"]
    x = c.x("discriminator", c.corrupted)
    copy = jax.lax.stop_gradient(1 - jax.nn.sigmoid(plain.binary(x, d["head"])))
    return -(1 - copy) * plain.log_p(plain.tied(x, d["lm_head"], c.params["embeddings"]), c.tokens)


def electric(c: Case):
    e, able = c.params["embeddings"], c.real & (c.tokens != tiny.CLS) & (c.tokens != tiny.SEP)
    before, after = (c.x(f"generator_{name}", c.tokens, direction=d) for name, d in (("ltr", 1), ("rtl", -1)))
    beside = jnp.concatenate([jnp.roll(before, 1, axis=1), jnp.roll(after, -1, axis=1)], -1)
    logits = plain.words(beside, c.params["generator_ltr"]["head"], e)
    energy = plain.binary(c.x("discriminator", c.corrupted), c.params["discriminator"]["head"])
    noise = 0.3 * jax.lax.stop_gradient(jnp.exp(plain.log_p(logits, c.corrupted)))  # densities: of noise, of the text times what it lacks
    text = 0.7 * jnp.exp(-energy)
    told = jnp.where(c.chosen > 0, noise / (noise + text), text / (noise + text))
    return c.mean(-plain.log_p(logits, c.tokens), able) + 50 * c.mean(-jnp.log(told), able)


def electric_of_one(c: Case):
    logits = plain.words(c.x("generator", c.masked), c.params["generator"]["head"], c.params["embeddings"])
    energy = plain.binary(c.x("discriminator", c.corrupted), c.params["discriminator"]["head"])
    noise, text = jax.lax.stop_gradient(jnp.exp(plain.log_p(logits, c.corrupted))), jnp.exp(-energy)
    is_noise = spread(c.plan.slots.positions, c.plan.noise, c.tokens) > 0
    told = jnp.where(is_noise, noise / (noise + text), text / (noise + text))
    return c.mlm() + 50 * c.mean(-jnp.log(told), c.chosen)


def spread(positions, values, tokens):
    return jnp.zeros(tokens.shape).at[jnp.arange(len(tokens))[:, None], positions].add(values)


def mixed_rows(c: Case):
    causal = jnp.any(c.plan.causal_weights > 0, axis=1)
    logits = plain.words(c.x("discriminator", c.masked, direction=causal), c.params["discriminator"]["lm_head"], c.params["embeddings"])
    before = jnp.roll(logits, 1, axis=1)
    loss = -plain.log_p(before, c.tokens) + 0.01 * jax.nn.logsumexp(before, -1) ** 2
    return 0.6 * c.mean(loss, c.chosen * ~causal[:, None]) + 0.4 * c.mean(loss, c.chosen * causal[:, None])


# The loss of each objective, with its default weights.
EQUATIONS = {
    "electra": lambda c: c.mlm() + 50 * c.mean(c.detect(), c.real),
    "electra_15": lambda c: c.mlm() + 50 * c.mean(c.detect(), c.chosen > 0),
    "replace_mlm": lambda c: c.mlm() + c.mean(c.fill("discriminator", "lm_head", c.corrupted), c.chosen),
    "all_tokens_mlm": lambda c: c.mlm() + c.mean(all_tokens(c), c.real),
    "mlm": lambda c: c.mean(c.fill("discriminator", "lm_head"), c.chosen),
    "coco_clm": lambda c: c.mlm() + 50 * c.mean(c.detect(), c.real) + c.mean(corrective(c), c.chosen),
    "electric": electric,
    "electric, one generator": electric_of_one,
    "mntp_clm": mixed_rows,
}
BERT = MaskingConfig(rate=0.3, mask_fraction=0.5, random_fraction=0.3)
# Where an objective is not run with its defaults: how it masks, and fields of its own.
SETTINGS = {
    "mlm": (BERT, {}),
    "mntp_clm": (BERT, dict(causal_fraction=0.4, z_weight=0.01)),
    "electric, one generator": (MaskingConfig(rate=0.3, mask_fraction=1.0), dict(towers=False)),
}


def compare(goal, equation, model):
    """On three random cases."""

    @jax.jit
    def ours(params, batch, seed):
        plan, weights = goal.plan(batch, rng.StepRng(tiny.ROOT, seed), True)

        def loss(params):
            terms = goal.terms(params, batch, plan)
            return sum(goal.scales(seed)[name] * value / weights[name] for name, value in terms.losses.items()), terms.outputs

        (value, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
        slots = [x for x in jax.tree.leaves(plan, is_leaf=lambda x: isinstance(x, masking.Slots)) if isinstance(x, masking.Slots)]
        return value, grads, plan, slots[0], outputs.get("tokens", batch.tokens)

    theirs = jax.jit(jax.value_and_grad(lambda params, *rows: equation(Case(model, params, *rows))))
    init = jax.jit(goal.init)
    for seed in range(3):
        batch = tiny.batch(seed=seed)
        # Weights of deviation 0.02 give losses that hardly depend on the text: larger ones tell a wrong term from a right one.
        r = np.random.default_rng(seed)
        params = jax.tree.map(lambda x: x + 0.2 * r.normal(size=x.shape), init(rng.root_key(seed)))
        found, grads, plan, slots, corrupted = ours(params, batch, jnp.int32(seed))
        with jax.numpy_rank_promotion("allow"):
            wanted, wanted_grads = theirs(params, plan, batch.tokens, corrupted, *masked_rows(batch, jax.tree.map(np.asarray, slots)))
        assert float(found) == pytest.approx(float(wanted), rel=1e-12)
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted_grads))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * largest), grads, wanted_grads)
    return grads
