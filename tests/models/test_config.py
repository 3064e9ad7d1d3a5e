"""The rules that size the networks, and what contradicts them."""

import dataclasses

import pytest

from electra_jax import options
from electra_jax.cli import UserError
from electra_jax.models.config import PRESETS, ElectraConfig


def test_generator_size_rule_rounds_and_keeps_a_head():
    config = dataclasses.replace(PRESETS["small"], generator_hidden_fraction=0.125, generator_layers_fraction=0.3)
    assert (config.generator.hidden_size, config.generator.num_heads, config.generator.num_layers) == (32, 1, 4)


def test_feed_forward_widths_are_free_and_four_times_the_width_by_default():
    assert (PRESETS["base"].discriminator.ffn_size, PRESETS["base"].generator.ffn_size) == (3072, 1024)
    config = dataclasses.replace(PRESETS["small"], ffn_size=37, generator_ffn_size=5)
    assert (config.discriminator.ffn_size, config.generator.ffn_size) == (37, 5)
    assert dataclasses.replace(config, generator_ffn_size=0).generator.ffn_size == 4 * 64


def test_a_network_of_another_name_has_the_models_own_sizes():
    assert PRESETS["base"].encoder("encoder") == PRESETS["base"].discriminator != PRESETS["base"].encoder("generator")


def test_every_field_says_what_it_means():
    assert options.names(ElectraConfig) == [field.name for field in dataclasses.fields(ElectraConfig)]
    for field in dataclasses.fields(ElectraConfig):
        assert len(field.metadata["help"]) > 10, field.name


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(hidden_size=200, head_size=64), "3 heads do not divide"),
        (dict(positions="absolute"), "model.positions"),
        (dict(hidden_size=0), "at least 1"),
        (dict(ffn_size=-1), "model.ffn_size is -1"),
        (dict(backbone="transfomer"), "did you mean 'transformer'"),
        (dict(attention="splosh"), "did you mean 'splash'"),
        (dict(dtype="float16"), "model.dtype"),
        (dict(dropout=1.0), "below 1"),
        (dict(generator_hidden_fraction=0.001), "generator"),
        (dict(positions="rotary", hidden_size=65, head_size=65, generator_hidden_fraction=1.0), "even"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        ElectraConfig(**fields).encoder("generator")
