"""Models of other objectives, and of other ways to share embeddings: read, written, taken as another network, trained on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from electra_jax import options
from electra_jax.cli import UserError
from electra_jax.interop import formats, names, start
from electra_jax.interop.model import mapping, renamed
from electra_jax.models import electra
from electra_jax.objectives import OBJECTIVES
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.train import step
from tests import tiny
from tests.interop.models import CONFIG, assert_equal, model
from tests.interop.test_formats import vocabulary

SAME = dataclasses.replace(CONFIG, generator_hidden_fraction=1.0)
BATCH = tiny.batch(length=12).replace(tokens=tiny.batch(length=12).tokens % 60)
SLOTS = jnp.tile(jnp.array([[1, 2]]), (8, 1))


def made(name: str, config=CONFIG, seed=0):
    """A model of this objective, as a run leaves it."""
    networks = options.load(OBJECTIVES, name).networks(ObjectiveConfig(name=name))
    return model(config, vocabulary(), networks=networks, seed=seed)


def first_values(source, name: str, config, **more):
    """(the first state's values, lines for a person) of a run of this objective that begins with the source."""
    module = options.load(OBJECTIVES, name)
    goal = module.make(config, MaskingConfig(), ObjectiveConfig(name=name), tiny.vocabulary(60))
    state = jax.eval_shape(lambda root: step.init_state(root, goal, optax.sgd(0.1)), tiny.ROOT)
    source = dataclasses.replace(source, about={"source": "there"})
    return start.values(state, config, source, vocabulary(), with_slots=False, seed=0, **more)


ALWAYS = ("mlm", "coco_clm")
OTHERS = [name for name in OBJECTIVES if name not in ("electric", "mixture", *ALWAYS)]


@pytest.mark.parametrize("name", [*ALWAYS, *(pytest.param(name, marks=pytest.mark.objectives) for name in OTHERS)])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_what_a_run_leaves_goes_out_and_comes_back(name, format, tmp_path):
    there = made(name)
    formats.write(tmp_path / "out", there, format)
    if format == "electra_jax":
        assert_equal(formats.read(tmp_path / "out").params, there.params)
        return
    back = formats.read(tmp_path / "out" / "discriminator")
    of_words = there.params["discriminator"].get("lm_head", {})
    has = electra.heads_of(there.params)["discriminator"]
    if has == {"lm_head": "mlm"}:  # what fills masked tokens is a generator there
        assert_equal(back.params["generator"]["head"], of_words)
        found = electra.generator_apply(back.params, back.config, BATCH, SLOTS)
        x = electra.hidden_states(there.params, there.config, BATCH)
        np.testing.assert_allclose(found, electra.mlm_logits(there.params, there.config, x, SLOTS, "discriminator", "lm_head"), atol=1e-5)
    else:
        assert_equal(back.params["discriminator"]["head"], there.params["discriminator"]["head"])


def test_a_head_that_stays_behind_is_said(tmp_path):
    formats.write(tmp_path / "ours", made("all_tokens_mlm"), "electra_jax")
    notes = formats.convert(str(tmp_path / "ours"), str(tmp_path / "out")).notes
    assert "head over the vocabulary (lm_head): it is left out" in notes[-1]


@pytest.mark.parametrize("sharing", ["none", "all", "gdes"])
def test_every_kind_of_sharing_goes_out_as_it_computes(sharing, tmp_path):
    config = dataclasses.replace(SAME, sharing=sharing)
    there = made("electra", config)
    formats.write(tmp_path / "ours", there, "electra_jax")
    back = formats.read(tmp_path / "ours")
    assert_equal(back.params, there.params)
    assert back.config.sharing == sharing
    formats.convert(str(tmp_path / "ours"), str(tmp_path / "out"))
    scores = electra.discriminator_apply(there.params, config, BATCH)
    logits = electra.generator_apply(there.params, config, BATCH, SLOTS)
    for name, apply, wanted in (
        ("discriminator", electra.discriminator_apply, scores),
        ("generator", lambda p, c, b: electra.generator_apply(p, c, b, SLOTS), logits),
    ):
        for one in (formats.read(tmp_path / "out" / name), formats.read(tmp_path / "ours", network=name)):
            assert one.config.sharing == "shared" and one.networks == (name,)
            np.testing.assert_allclose(apply(one.params, one.config, BATCH), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "there, here", [(a, b) for a in ("shared", "none", "all", "gdes") for b in ("shared", "none", "all", "gdes") if a != b]
)
def test_a_run_begins_from_another_kind_of_sharing_where_it_can_hold_it(there, here):
    source = made("electra", dataclasses.replace(SAME, sharing=there))
    config = dataclasses.replace(SAME, sharing=here)
    if here == "all" or (here == "shared" and there != "all"):
        with pytest.raises(UserError, match=f"does not fit model.sharing={here}: --config.model.sharing=none"):
            first_values(source, "electra", config)
        return
    found, _ = first_values(source, "electra", config)
    params = names.nested({path.removeprefix("params/"): x for path, x in found.items()})
    for apply in (electra.discriminator_apply, lambda p, c, b: electra.generator_apply(p, c, b, SLOTS)):
        np.testing.assert_allclose(apply(params, config, BATCH), apply(source.params, source.config, BATCH), atol=1e-4)


def test_what_the_objective_has_not_is_left_out_and_said():
    found, notes = first_values(made("all_tokens_mlm"), "electra", CONFIG)
    assert not any("lm_head" in path for path in found) and any("discriminator/lm_head left out" in note for note in notes)
    found, notes = first_values(made("electra"), "mlm", CONFIG)
    assert {path.split("/")[1] for path in found} == {"embeddings", "discriminator"}
    assert any("generator, discriminator/head left out" in note for note in notes) and any(
        "anew: discriminator/lm_head" in note for note in notes
    )
    with pytest.raises(UserError, match="there has a generator, and the objective here a discriminator: .*=generator:discriminator takes"):
        first_values(renamed(made("electra"), [("generator", "generator")], "there"), "mlm", CONFIG)


def test_a_network_is_taken_as_another():
    """The paper's two stages (3.3): a model that fills masked tokens becomes the generator, and the discriminator's first weights."""
    source = made("mlm")
    both = renamed(source, mapping("discriminator:generator,discriminator:discriminator"), "there")
    found, notes = first_values(both, "electra", dataclasses.replace(SAME, sharing="none"))
    for path, x in found.items():
        if "/layers/" in path:
            np.testing.assert_array_equal(x, found[path.replace("generator/", "discriminator/")])
    assert any("anew: discriminator/head" in note for note in notes)
    x = electra.hidden_states(source.params, source.config, BATCH)
    wanted = electra.mlm_logits(source.params, source.config, x, SLOTS, "discriminator", "lm_head")
    np.testing.assert_array_equal(electra.generator_apply(both.params, both.config, BATCH, SLOTS), wanted)
    # A narrower generator becomes a narrower discriminator.
    smaller = renamed(made("electra"), mapping("generator:discriminator"), "there")
    assert smaller.config.hidden_size == 8 and smaller.networks == ("discriminator",)
    first_values(smaller, "mlm", smaller.config)


def test_electrics_towers_are_left_out_when_it_is_read(tmp_path):
    config = CONFIG
    goal = options.load(OBJECTIVES, "electric").make(config, MaskingConfig(), ObjectiveConfig(name="electric"), tiny.vocabulary(60))
    there = dataclasses.replace(made("mlm"), params=jax.tree.map(np.asarray, dict(jax.jit(goal.init)(tiny.ROOT))))
    formats.write(tmp_path / "ours", there, "electra_jax")
    back = formats.read(tmp_path / "ours")
    assert (
        set(back.params) == {"embeddings", "discriminator"}
        and "generator_ltr, generator_rtl of its objective are left out" in back.notes[0]
    )
