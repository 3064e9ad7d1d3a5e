"""The peers that benchmarks/ measures do the same work: their losses are ours for the same weights and tokens, and they learn."""

import dataclasses
import math

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the extra [parity]: make parity")
pytest.importorskip("transformers", reason="transformers is in the extra [parity]: make parity")

from benchmarks import peers, rows  # noqa: E402
from electra_jax.data.config import DataConfig  # noqa: E402
from electra_jax.models import electra as models  # noqa: E402
from electra_jax.models.config import ElectraConfig  # noqa: E402
from electra_jax.objectives import masking  # noqa: E402
from electra_jax.recipe import Recipe  # noqa: E402
from electra_jax.train.config import TrainConfig  # noqa: E402
from electra_jax.types import Vocabulary  # noqa: E402
from tests.parity.test_transformers import EMBEDDINGS, all_names, flatten, load, random_params  # noqa: E402

pytestmark = pytest.mark.parity
MODEL = ElectraConfig(
    vocab_size=1200, max_length=256, embedding_size=32, hidden_size=64, num_layers=2, head_size=32, generator_hidden_fraction=0.5
)
RECIPE = Recipe(model=MODEL, train=TrainConfig(batch_rows=4), data=DataConfig(length=256))


@pytest.mark.parametrize("projected", ["slots", "all"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_are_ours(attention, projected):
    config = dataclasses.replace(MODEL, dropout=0.0, attention_dropout=0.0)
    params, batch = random_params(config, seed=1), rows.make("padded", config.vocab_size, 4, 256)
    both, flat = peers.models(config, attention), flatten(params)
    generator_names, discriminator_names = all_names(config)
    load(both.generator, flat, {**EMBEDDINGS, **generator_names})
    load(both.discriminator, flat, {**EMBEDDINGS, **discriminator_names})
    assert both.discriminator.electra.embeddings is both.generator.electra.embeddings
    given = peers.given(RECIPE, "padded")
    tokens, real, used, able = given.tokens, given.real, given.used, ~np.isin(batch.tokens, (rows.PAD, rows.CLS, rows.SEP))
    slots, shown = given.draw()
    assert 0 < int(used.sum()) < used.numel()
    mlm, rtd, corrupted = peers.losses(both, tokens, real, slots, used, shown, peers.gumbel, projected)

    vocabulary = Vocabulary(rows.CLS, rows.SEP, rows.MASK, np.ones(config.vocab_size, bool))
    ours = masking.Slots(*(x.numpy() for x in (slots.int(), used.float(), used & shown)))
    logits = models.generator_apply(params, config, masking.mask(batch, ours, vocabulary), ours.positions)
    nats = jax.nn.logsumexp(logits, 2) - np.take_along_axis(np.asarray(logits), tokens.gather(1, slots).numpy()[..., None], 2)[..., 0]
    assert float(mlm.detach()) == pytest.approx(float(np.mean(np.asarray(nats)[used.numpy()])), rel=1e-5)
    scores = models.discriminator_apply(params, config, batch.replace(tokens=corrupted.int().numpy()))
    replaced = (corrupted != tokens).numpy()
    assert 0 < replaced.sum() <= int(used.sum()) and not (replaced & ~able).any()
    bits = jax.nn.softplus(np.where(replaced, -np.asarray(scores), np.asarray(scores)))
    assert float(rtd.detach()) == pytest.approx(float(np.mean(np.asarray(bits)[batch.segments > 0])), rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "padded"])
@pytest.mark.parametrize("side", ["eager", "sdpa", "all", "txtai"])
def test_a_peer_learns(side, kind):
    if side == "txtai":
        pytest.importorskip("txtai", reason="txtai is in the extra [bench]: make bench")
        run = peers.txtai_step(RECIPE.stored(), kind)
    else:
        run = peers.step(RECIPE.stored(), kind, **({"projected": "all"} if side == "all" else {"attention": side}))
    losses = [run()["loss"] for _ in range(8)]
    assert losses[0] == pytest.approx(math.log(MODEL.vocab_size) + 50 * math.log(2), abs=3)
    assert losses[-1] < losses[0] - 2


def test_samples_follow_the_logits():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, 1.0, -3.0]).expand(1, 20_000, 4)
    for sample in (peers.gumbel, peers.inverse_cdf):
        counts = torch.bincount(sample(logits).flatten(), minlength=4) / 20_000
        assert torch.allclose(counts, logits[0, 0].softmax(-1), atol=0.02)
