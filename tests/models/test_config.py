"""Sizes and counts against the published figures (recipe: the paper's table 6, KerasHub's presets, google-research/electra)."""

import dataclasses

import jax
import pytest

from electra_jax.cli import UserError
from electra_jax.models import electra
from electra_jax.models.config import PRESETS, ElectraConfig, parse_arg

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
    # trap 5 and 6 of the recipe: full depth, heads by width
    g = config.generator
    assert (g.hidden_size, g.num_heads, g.num_layers, g.ffn_size) == generator
    # The closed formulas, from which the plan is printed, are the same counts.
    counts = config.num_params()
    assert counts["embeddings"] + counts["discriminator"] == encoder and counts["rtd_head"] == rtd_head
    assert sum(counts.values()) == size(shapes)


def test_flops_of_small_and_base():
    """speed.md counts 1.15 and 87.6 TFLOP a step of 128 x 128 and 256 x 512 rows by hand."""
    assert 128 * PRESETS["small"].train_flops(128, 19) / 1e12 == pytest.approx(1.15, rel=0.01)
    assert 256 * PRESETS["base"].train_flops(512, 79) / 1e12 == pytest.approx(87.6, rel=0.01)


def test_generator_size_rule_rounds_and_keeps_a_head():
    config = dataclasses.replace(PRESETS["small"], generator_hidden_fraction=0.125, generator_layers_fraction=0.3)
    assert (config.generator.hidden_size, config.generator.num_heads, config.generator.num_layers) == (32, 1, 4)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(hidden_size=200, head_size=64), "3 heads do not divide"),
        (dict(positions="absolute"), "model.positions"),
        (dict(hidden_size=0), "at least 1"),
        (dict(dropout=1.0), "below 1"),
        (dict(generator_hidden_fraction=0.001), "generator"),
        (dict(positions="rotary", hidden_size=65, head_size=65, generator_hidden_fraction=1.0), "even"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        ElectraConfig(**fields)


def test_config_argument_names_the_nearest():
    assert parse_arg("base,flash", default="small", flags=("flash",)) == ("base", frozenset({"flash"}))
    assert parse_arg(None, default="small", flags=()) == ("small", frozenset())
    with pytest.raises(UserError, match="did you mean 'small_pp'"):
        parse_arg("small_p", default="small", flags=())
    with pytest.raises(UserError, match="flash"):
        parse_arg("base,flsh", default="small", flags=("flash",))
