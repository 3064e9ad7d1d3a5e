"""The recipe: what it refuses and how it says so, what is left to the platform, and what a resume may change."""

import dataclasses
import json
import pathlib
import re

import pytest

from configs.pretrain import get_config
from electra_jax import recipe, resume
from electra_jax.cli import UserError
from electra_jax.parallel.mesh import Platform
from electra_jax.recipe import Recipe
from electra_jax.resume import LATER, refuse_changes

CPU = Platform("cpu", "cpu", "float32", 1)
TPU = Platform("tpu", "TPU v5 lite", "bfloat16", 8)


def changed(arg="tiny", **fields):
    """The preset's config with some fields set, as a user's own file may set them."""
    config = get_config(arg).to_dict()
    for name, value in fields.items():
        *section, field = name.split("__")
        (config[section[0]] if section else config)[field] = value
    return config


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(train__step=5), r"--config.train.step: no such field; did you mean 'steps'\? train has steps \(int, 1000000\), batch_rows"),
        (dict(model__hiden_size=5), r"--config.model.hiden_size: .*'hidden_size'\? model has .*vocab_size \(int, 30522\)"),
        (dict(trian={}), r"the config has a section 'trian', and this command reads .*train.*is --config the config of another command"),
        (dict(train=3), "train is 3: it is a section of the config, such as train.steps"),
        (dict(train__steps=1.5), "train.steps is 1.5: it must be a whole number"),
        (dict(train__steps=True), "train.steps is True: it must be a whole number"),
        (dict(log__tensorboard=1), "log.tensorboard is 1: it must be True or False"),
        (dict(model__positions=3), "model.positions is 3: it must be text"),
        (dict(optimizer__learning_rate="fast"), "optimizer.learning_rate is 'fast': it must be a number"),
        (dict(optimizer__learning_rate=float("nan")), "optimizer.learning_rate is nan"),
        (dict(data__weights=("a",)), "data.weights is"),
        (dict(train__steps=0), "train.steps is 0: it must be at least 1"),
        (dict(schedule__warmup_steps=-1), "schedule.warmup_steps is -1"),
        (dict(seed=2**40), r"seed is 1099511627776: it must be from 0 to 2\*\*32 - 1"),
        (dict(init_slots=True), "init_slots is True and there is no init_from"),
        (dict(init_from="x", init_network="encoder"), "init_network is 'encoder': it must be discriminator or generator, or THERE:HERE"),
        (dict(objective__name="elektra"), "objective.name is 'elektra': it must be one of .*; did you mean 'electra'"),
        (dict(model__backbone="transfomer"), "model.backbone is 'transfomer'.*did you mean 'transformer'"),
        (dict(parallel__executor="jitt"), "parallel.executor.*'jit'"),
        (dict(eval__batch_rows=0), "eval.batch_rows is 0: it must be at least 1"),
        (dict(train__hang_secs=-1), "train.hang_secs is -1.0: it must be at least 0"),
        (dict(log__profile_steps=(1, 2, 3)), r"log.profile_steps is \(1, 2, 3\)"),
        (dict(checkpoint__keep=0), "checkpoint.keep=0 would keep nothing"),
        (dict(objective__rtd_weight=-1.0), "objective.rtd_weight is -1.0: it must be a number from 0 up"),
        (dict(model__generator_hidden_fraction=float("nan")), "model.generator_hidden_fraction is nan"),
        (dict(model__init_std=float("inf")), "model.init_std is inf"),
        (dict(log__profile_steps=(-1, 2)), "log.profile_steps"),
        (dict(optimizer__rates=(("layers/", "0.5"),)), "optimizer.rates: .* is no number"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_field(fields, message):
    with pytest.raises(UserError, match=message):
        Recipe.parse(changed(**fields))


def test_a_recipe_comes_back_from_what_is_stored_of_it():
    for arg in ("tiny", "small,faithful", "large,flash"):
        recipe = Recipe.parse(
            changed(arg, data__weights=(0.7, 0.3), optimizer__rates=(("layers/", (1.0, 0.5)),), log__profile_steps=(3, 5))
        )
        assert Recipe.parse(json.loads(json.dumps(recipe.stored()))) == recipe
        assert recipe.optimizer.rates == (("layers/", (1.0, 0.5)),) and hash(recipe)


def test_what_is_left_to_the_platform_is_decided_once_and_stored():
    recipe = Recipe.parse(get_config("base,flash"))
    assert (recipe.model.dtype, recipe.model.attention) == ("auto", "auto")
    here, there = recipe.resolve(CPU), recipe.resolve(TPU)
    assert (here.model.dtype, here.model.attention) == ("float32", "xla")
    assert (there.model.dtype, there.model.attention) == ("bfloat16", "rows")
    assert there.stored()["model"]["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="model.attention=rows: it runs on a TPU"):
        there.resolve(CPU)
    wished = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dtype="bfloat16"))
    assert wished.resolve(CPU).model.dtype == "bfloat16"


def test_every_field_has_a_line_of_help():
    lines = "\n".join(Recipe.help_lines())
    for section, record in Recipe.sections().items():
        for field in dataclasses.fields(record):
            assert f"--config.{section}.{field.name} (" in lines
    assert "--config.model.hidden_size (int, 256): width of the network" in lines and "--config.seed (int, 0)" in lines


def test_a_flag_that_names_no_field_is_refused_before_absl_sees_it():
    Recipe.check_flags(
        ["x", "--config.train.steps=3", "--config=a.py:b", "--config.seed", "3", "--workdir=--config.no=1", "--config.model.dtype=x"]
    )
    for flag, message in (
        ("--config.train.step=3", "did you mean 'steps'"),
        ("-config.train.step=3", "did you mean 'steps'"),
        ("--config.trian.steps=3", r"no section 'trian'; did you mean 'train'\?"),
        ("--config.sed=3", "did you mean 'seed'"),
    ):
        with pytest.raises(UserError, match=message):
            Recipe.check_flags(["x", flag])


def test_what_a_resume_may_change():
    before = Recipe.parse(changed(schedule__decay_steps=1000)).resolve(CPU).stored()

    def now(**fields):
        return Recipe.parse(changed(**{"schedule__decay_steps": 1000, **fields})).resolve(CPU).stored()

    for fields in (
        dict(log__every_steps=3),
        dict(eval__max_rows=7),
        dict(parallel__fsdp=2),
        dict(model__remat="full"),
        dict(train__steps=900),
    ):
        refuse_changes(before, now(**fields), "here")
    for fields, words in (
        (dict(seed=1), "seed: 0 -> 1"),
        (dict(model__num_layers=3), "model.num_layers: 2 -> 3"),
        (dict(model__dtype="bfloat16"), "model.dtype: 'float32' -> 'bfloat16'"),
        (dict(optimizer__learning_rate=1e-3), "optimizer.learning_rate: 0.002 -> 0.001"),
    ):
        with pytest.raises(UserError, match=f"here holds another run .{words}.*another --workdir"):
            refuse_changes(before, now(**fields), "here")
    here = {**before, "identity": {"data": ["ab12"], "tokenizer": "cd34"}}
    refuse_changes(here, {**here, "data": {**before["data"], "path": "/moved/rows"}}, "here")
    other = {**here, "data": {**before["data"], "path": "/other"}, "identity": {"data": ["ef56"], "tokenizer": "ab78"}}
    words = "begun on the rows of data.path=.*, and /other holds others; another tokenizer"
    with pytest.raises(UserError, match=f"here holds another run .it was {words}") as error:
        refuse_changes(here, other, "here")
    assert not re.search("ab12|ef56|cd34|ab78", str(error.value))
    earlier = {**here, "optimizer": {name: value for name, value in before["optimizer"].items() if name != "muon_weight_decay"}}
    later = {**here, "optimizer": {**before["optimizer"], "muon_weight_decay": 0.0}}
    refuse_changes(earlier, later, "here")  # a field that was not there yet, and is not used
    with pytest.raises(UserError, match="optimizer.muon_weight_decay: None -> 0.1"):
        refuse_changes(earlier, here, "here")
    earlier = {
        **here,
        **{section: {k: v for k, v in here[section].items() if f"{section}.{k}" not in LATER} for section in ("model", "objective")},
    }
    refuse_changes(earlier, here, "here")  # fields whose default is what was done before there were any
    with pytest.raises(UserError, match="objective.temperature: 1.0 -> 2.0"):
        refuse_changes(earlier, {**here, "objective": {**here["objective"], "temperature": 2.0}}, "here")
    unset = Recipe.parse(changed()).resolve(CPU).stored()
    with pytest.raises(UserError, match="train.steps: 1000 -> 900"):
        refuse_changes(unset, Recipe.parse(changed(train__steps=900)).resolve(CPU).stored(), "here")


def test_a_warm_up_is_a_tenth_of_the_run_unless_given():
    for fields, warmup_steps in ((dict(train__steps=300), 30), (dict(schedule__decay_steps=50), 5), (dict(train__steps=5000), 100)):
        recipe = Recipe.parse(changed(**fields))
        assert recipe.schedule.warmup_steps == warmup_steps and len(recipe.notes) == (warmup_steps < 100)
    given = Recipe.flags_of(["pretrain.py", "--config.schedule.warmup_steps=100", "--config=x", "--workdir=y"])
    assert given == {"schedule.warmup_steps"}
    assert Recipe.parse(changed(train__steps=300), given).schedule.warmup_steps == 100
    for fields, words in (
        (dict(schedule__warmup_steps=1000), "schedule.warmup_steps is 1000: .* below train.steps=1000"),
        (dict(schedule__decay_steps=50), "schedule.warmup_steps is 100: .* below schedule.decay_steps=50"),
    ):
        with pytest.raises(UserError, match=words):
            Recipe.parse(changed(**fields), given)


def test_length_and_vocabulary_follow_the_rows():
    recipe = Recipe.parse(changed())
    assert recipe.of_rows(64, 4096) is recipe
    other = recipe.of_rows(32, 600)
    assert (other.data.length, other.model.vocab_size) == (32, 600) and "data.length=32 and model.vocab_size=600" in other.notes[-1]
    assert recipe.of_rows(96, 600).model.max_length == 96  # rotary positions have no table
    assert recipe.model.max_length == other.model.max_length == 64
    assert "given" not in other.stored() and "notes" not in other.stored()


def test_a_network_that_is_not_trained_refuses_nothing():
    recipe = Recipe.parse(changed(model__hidden_size=224))
    with pytest.raises(UserError, match="the generator is 112 wide, which 3 heads do not divide"):
        recipe.resolve(CPU)
    assert recipe.resolve(CPU, ["encoder"]).model.hidden_size == 224


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(train__steps=10**20), "no whole number of a config is so large"),
        (dict(train__steps=2**31), "train.steps is 2147483648"),
        (dict(schedule__decay_steps=2**31), "schedule.decay_steps is 2147483648"),
        (dict(train__batch_rows=10**20), "no whole number of a config is so large"),
        (dict(eval__batch_rows=10**12), "eval.batch_rows is 1" + "0" * 12),
    ],
)
def test_numbers_past_every_type(fields, words):
    with pytest.raises(UserError, match=words):
        Recipe.parse(changed(**fields))
    with pytest.raises(UserError, match="get_config must return"):
        Recipe.parse(3)


def test_other_held_out_rows_are_said():
    before, now = (Recipe.parse(changed(eval__max_rows=rows)).stored() for rows in (2_000, 500))
    (line,) = resume.warnings(before, now)
    assert "eval.max_rows was 2000 and is 500" in line and not resume.warnings(now, now)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--config=small"], "--config=configs/pretrain.py:small$"),
        (["--config=small,flash"], "--config=configs/pretrain.py:small,flash$"),
        (["--config", "configs/pretrian.py:base"], "--config=configs/pretrain.py:base$"),
        (["--config="], "--config=configs/pretrain.py:tiny$"),
    ],
)
def test_a_config_file_that_is_not_there(flags, words):
    with pytest.raises(UserError, match=f"no such file: .*{words}"):
        recipe._find_file(["pretrain.py", *flags, "--workdir=x"], "configs/pretrain.py:tiny")


@pytest.mark.parametrize("flags", [["--config=configs/pretrain.py:base"], ["--config", "configs/pretrain.py:base"]])
def test_a_config_beside_the_package_is_found_from_any_folder(flags, tmp_path, monkeypatch):
    here = ["x", *flags, "--workdir=x"]
    recipe._find_file(here, "configs/pretrain.py:tiny")
    monkeypatch.chdir(tmp_path)
    elsewhere = ["x", *flags, "--workdir=x"]
    recipe._find_file(elsewhere, "configs/pretrain.py:tiny")
    root = pathlib.Path(recipe.__file__).parents[1]
    assert here[1:-1] == flags and elsewhere[-2].split("=")[-1] == f"{root}/configs/pretrain.py:base" and len(elsewhere) == len(here)


def test_a_run_of_an_earlier_version_is_refused_in_one_line():
    old = {name: value for name, value in Recipe.parse(changed()).stored().items() if name != "format"}
    with pytest.raises(UserError, match="here holds a run of an earlier version: .*--config.init_from=here, in another --workdir"):
        refuse_changes(old, Recipe.parse(changed()).stored(), "here")
    with pytest.raises(UserError, match="here holds a model and no run"):
        refuse_changes({"preset": None, "model": {}}, old, "here")


@pytest.mark.parametrize("name, text, line", [("own.py", "\ndef get_config(:\n", 2), ("notes.md", "What I noted.\n", 1)])
def test_what_is_no_config_file_is_one_line(name, text, line, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}, line {line}: no Python .*: a config is a file such as"):
        recipe._find_file(["x", f"--config={tmp_path / name}"], "configs/pretrain.py:small")


def test_a_flag_deeper_than_a_section_is_no_field():
    with pytest.raises(UserError, match="--config.train.steps.x=1: no such field"):
        Recipe.check_flags(["x", "--config.train.steps.x=1"])
