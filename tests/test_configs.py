"""Every preset resolved, beside a snapshot: no hyper-parameter drifts unseen. UPDATE_GOLDEN=1 writes them anew."""

import importlib.util
import os
import pathlib

import pytest

from electra_jax.cli import UserError
from electra_jax.models.config import PRESETS
from electra_jax.objectives import OBJECTIVES
from electra_jax.recipe import Recipe

ROOT = pathlib.Path(__file__).resolve().parents[1]


def config_file(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_config", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pretrain_config, finetune_config = config_file("pretrain"), config_file("finetune")
ARGS = [*PRESETS, "small,faithful", "base,flash", "large,flash", "small,mlm", "small,coco_clm"]


def lines(tree, prefix=""):
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            yield from lines(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {value!r}"


@pytest.mark.parametrize("file, arg", [*(("pretrain", arg) for arg in ARGS), ("finetune", "own"), ("finetune", "squad2,faithful")])
def test_golden_snapshot(file, arg):
    module = {"pretrain": pretrain_config, "finetune": finetune_config}[file]
    text = "\n".join(lines(module.get_config(arg).to_dict())) + "\n"
    path = ROOT / "configs" / "golden" / f"{file}-{arg.replace(',', '-')}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, f"{arg} has drifted; if that is meant: UPDATE_GOLDEN=1 make test"


@pytest.mark.parametrize("arg", ARGS)
def test_presets_are_complete_and_valid(arg):
    recipe = Recipe.parse(pretrain_config.get_config(arg))
    assert recipe.preset == arg.split(",")[0] and recipe.data.length <= recipe.model.max_length
    assert Recipe.parse(recipe.stored()) == recipe


def test_variants_name_every_other_objective_once():
    assert {*pretrain_config.OBJECTIVE_VARIANTS, "electra", "mixture"} == OBJECTIVES.keys()
    for name in pretrain_config.OBJECTIVE_VARIANTS:
        recipe = Recipe.parse(pretrain_config.get_config(f"tiny,{name}"))
        assert recipe.objective.name == name
        recipe.resolve(type("Platform", (), {"name": "cpu", "dtype": "float32"}))
    with pytest.raises(UserError, match="name 2 objectives, electric, mlm"):
        pretrain_config.get_config("tiny,mlm,electric")


def test_the_published_recipe():
    """The paper's table 6 and configure_pretraining.py: rows, length, steps, rate, warm-up, masked share."""
    got = {}
    for name in ("small", "small_pp", "base", "large"):
        c = pretrain_config.get_config(name)
        got[name] = (
            c.train.batch_rows,
            c.data.length,
            c.train.steps,
            c.optimizer.learning_rate,
            c.schedule.warmup_steps,
            c.masking.rate,
            c.model.generator_hidden_fraction,
        )
        assert (c.objective.mlm_weight, c.objective.rtd_weight, c.masking.mask_fraction) == (1.0, 50.0, 0.85)
        assert (c.optimizer.beta1, c.optimizer.beta2, c.optimizer.epsilon, c.optimizer.weight_decay, c.optimizer.clip_norm) == (
            0.9,
            0.999,
            1e-6,
            0.01,
            1.0,
        )
        assert (c.model.dropout, c.model.attention_dropout, c.model.positions, c.optimizer.name) == (0.1, 0.1, "learned", "adamw")
    assert got == {
        "small": (128, 128, 1_000_000, 5e-4, 10_000, 0.15, 0.25),
        "small_pp": (128, 512, 4_000_000, 5e-4, 10_000, 0.15, 1.0),
        "base": (256, 512, 766_000, 2e-4, 10_000, 0.15, 0.33333),
        "large": (2048, 512, 1_750_000, 2e-4, 10_000, 0.25, 0.25),
    }


def test_variants_change_what_they_say_and_nothing_else():
    def fields(arg):
        return dict(line.split(" = ") for line in lines(pretrain_config.get_config(arg).to_dict()))

    base, flash = fields("base"), fields("base,flash")
    assert {k for k in base if base[k] != flash[k]} == {"model.attention_dropout"}
    small, faithful = fields("small"), fields("small,faithful")
    assert {k: faithful[k] for k in small if small[k] != faithful[k]} == {
        "masking.with_replacement": "True",
        "optimizer.bias_correction": "False",
        "schedule.product": "True",
    }
    with pytest.raises(UserError, match="did you mean 'faithful'"):
        pretrain_config.get_config("small,faithfull")
