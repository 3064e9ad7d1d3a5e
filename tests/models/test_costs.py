"""Counts against the published figures: the paper's table 6, KerasHub's presets, google-research/electra."""

import jax
import pytest

from electra_jax.models import costs, electra
from electra_jax.models.config import PRESETS

# encoder with embeddings, RTD head; the generator's width, heads, layers, feed-forward
PUBLISHED = {
    "small": (13_483_008, 66_049, (64, 1, 12, 256)),
    "small_pp": (13_483_008, 66_049, (256, 4, 12, 1024)),
    "base": (108_891_648, 591_361, (256, 4, 12, 1024)),
    "large": (334_092_288, 1_050_625, (256, 4, 24, 1024)),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_counts_of_parameters(preset):
    encoder, rtd_head, generator = PUBLISHED[preset]
    config = PRESETS[preset]
    shapes = jax.eval_shape(lambda key: electra.init_params(key, config), jax.random.key(0))
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    discriminator = {k: v for k, v in shapes["discriminator"].items() if k != "head"}
    assert size(shapes["embeddings"]) + size(discriminator) == encoder
    assert size(shapes["discriminator"]["head"]) == rtd_head
    # run_pretraining.py:get_generator_config: full depth, heads by width.
    g = config.generator
    assert (g.hidden_size, g.num_heads, g.num_layers, g.ffn_size) == generator
    # The closed formulas, from which the plan is printed, are the same counts.
    counts = costs.num_params(config)
    assert counts["embeddings"] + counts["discriminator"] == encoder and counts["rtd_head"] == rtd_head
    assert sum(counts.values()) == size(shapes)


def test_flops_of_small_and_base():
    """1.15 and 87.6 TFLOP a step of 128 x 128 and 256 x 512 rows, counted by hand."""
    assert 128 * costs.train_flops(PRESETS["small"], 128, 19) / 1e12 == pytest.approx(1.15, rel=0.01)
    assert 256 * costs.train_flops(PRESETS["base"], 512, 79) / 1e12 == pytest.approx(87.6, rel=0.01)


def test_a_model_of_one_network_is_counted_by_its_own_parts():
    networks = {"encoder": {"head": "mlm"}}
    config = PRESETS["tiny"]
    shapes = jax.eval_shape(lambda key: electra.init_params(key, config, networks), jax.random.key(0))
    assert sum(costs.num_params(config, networks).values()) == sum(x.size for x in jax.tree.leaves(shapes))
