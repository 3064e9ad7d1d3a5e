"""A config file's argument."""

import pytest

from electra_jax import options
from electra_jax.cli import UserError

PRESETS = ("small", "small_pp", "base")


def test_config_argument_names_the_nearest():
    assert options.parse_arg("base,flash", presets=PRESETS, default="small", flags=("flash",)) == ("base", frozenset({"flash"}))
    assert options.parse_arg(None, presets=PRESETS, default="small", flags=()) == ("small", frozenset())
    with pytest.raises(UserError, match="did you mean 'small_pp'"):
        options.parse_arg("small_p", presets=PRESETS, default="small", flags=())
    with pytest.raises(UserError, match="flash"):
        options.parse_arg("base,flsh", presets=PRESETS, default="small", flags=("flash",))
