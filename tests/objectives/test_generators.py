"""What replaces the masked tokens: each of the generator's options, and the contradictions that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs.pretrain import get_config
from electra_jax import build, options, rng
from electra_jax.cli import UserError
from electra_jax.models import electra
from electra_jax.objectives import OBJECTIVES, generators, masking
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.recipe import Recipe
from electra_jax.train import optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from tests import tiny
from tests.objectives import equations

MIXED = ObjectiveConfig(name="mixture", mixture=",".join(f"{name}=1" for name in OBJECTIVES if name not in ("mixture", "coco_clm")))
VOCABULARY = tiny.vocabulary(tiny.VOCAB_SIZE)

LONG = pytest.mark.objectives  # is run by `make objectives` alone


def replaced(model, batch, at_step=0, train=True, masking_config=MaskingConfig(rate=0.3), **fields):
    """(the parameters, the generator's plan, what it made)"""
    generator = generators.make(model, masking_config, ObjectiveConfig(**fields), VOCABULARY, 1)
    params = jax.jit(lambda key: electra.init_params(key, model))(tiny.ROOT)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    plan = jax.jit(lambda batch: generator.plan(batch, rng.StepRng(tiny.ROOT, jnp.int32(at_step)), train)[0])(batch)
    return params, plan, jax.jit(generator.replace)(params, batch, plan)


def rows_of_one_word(rows: int, word: int = 20):
    tokens = np.full((rows, 16), word, np.int32)
    tokens[:, 0], tokens[:, -1] = tiny.CLS, tiny.SEP
    return tiny.batch(rows).replace(tokens=tokens, segments=np.ones_like(tokens))


@pytest.mark.parametrize(
    "kind, allow_correct",
    [("uniform", True), ("unigram", False), pytest.param("uniform", False, marks=LONG), pytest.param("unigram", True, marks=LONG)],
)
def test_tokens_are_drawn_by_a_fixed_distribution(kind, allow_correct):
    """The published uniform_generator draws special tokens too; frequencies have none."""
    wanted = np.ones(tiny.VOCAB_SIZE) if kind == "uniform" else VOCABULARY.counts.copy()
    _, plan, made = replaced(tiny.model(), rows_of_one_word(4_000), generator=kind, allow_correct=allow_correct)
    drawn = np.asarray(masking.gather(made.batch.tokens, plan.slots))[np.asarray(plan.slots.weights) > 0]
    if not allow_correct:
        wanted[20] = 0
    counts, possible = np.bincount(drawn, minlength=tiny.VOCAB_SIZE), wanted > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], wanted[possible] / wanted.sum() * len(drawn)).pvalue > 1e-4
    assert made.losses == {}


def test_drawn_tokens_come_from_all_blocks_of_a_large_vocabulary():
    mass = np.arange(1000.0)
    uniform = jax.random.uniform(jax.random.key(0), (500, 40, 2))
    drawn = np.asarray(jax.jit(lambda u: masking.sample_fixed(mass, u))(uniform)).ravel()
    assert (
        stats.chisquare(np.bincount(drawn // 50), [mass[i : i + 50].sum() / mass.sum() * len(drawn) for i in range(0, 1000, 50)]).pvalue
        > 1e-4
    )


def masses(monkeypatch, **options):
    """(the masses that tokens are drawn from, the generator's probabilities), both [S, V] and normalised."""
    seen = []
    sample = masking.sample
    monkeypatch.setattr(
        masking, "sample", lambda mass, uniform: jax.debug.callback(lambda x: seen.append(np.asarray(x)), mass) or sample(mass, uniform)
    )
    model, batch = tiny.model(dropout=0.0, attention_dropout=0.0), tiny.batch()
    params, plan, made = replaced(model, batch, **options)
    jax.effects_barrier()
    logits = electra.generator_apply(params, model, masking.mask(batch, plan.slots, VOCABULARY), plan.slots.positions)
    mass = seen[0] / seen[0].sum(-1, keepdims=True)
    return mass, np.asarray(logits), np.asarray(masking.gather(batch.tokens, plan.slots))


@pytest.mark.parametrize(
    "decay_steps, at_step, train, temperature",
    [
        pytest.param(0, 5, True, 2.0, marks=LONG),
        pytest.param(0, 5, False, 2.0, marks=LONG),
        pytest.param(10, 0, True, 2.0, marks=LONG),
        (10, 5, True, 1 + np.exp(-0.5)),
        (10, 5, False, 1.0),
    ],
)
def test_temperature_and_its_decay(monkeypatch, decay_steps, at_step, train, temperature):
    """Held out it is the last one, whatever the step."""
    mass, logits, _ = masses(monkeypatch, at_step=at_step, train=train, temperature=2.0, temperature_decay_steps=decay_steps)
    np.testing.assert_allclose(mass, jax.nn.softmax(logits / temperature), atol=2e-6)


def test_the_original_is_never_drawn(monkeypatch):
    mass, logits, targets = masses(monkeypatch, allow_correct=False)
    wanted = np.array(jax.nn.softmax(logits))
    np.put_along_axis(wanted, targets[..., None], 0, -1)
    np.testing.assert_allclose(mass, wanted / wanted.sum(-1, keepdims=True), atol=2e-6)


def test_replacements_without_dropout():
    model, batch = tiny.model(dropout=0.5), tiny.batch(64)
    _, plan, with_dropout = replaced(model, batch)
    _, _, without = replaced(model, batch, sample_dropout=False)
    _, _, never = replaced(tiny.model(dropout=0.0, attention_dropout=0.0), batch)
    np.testing.assert_array_equal(without.batch.tokens, never.batch.tokens)
    assert np.any(with_dropout.batch.tokens != never.batch.tokens)
    assert float(without.losses["mlm"]) == float(with_dropout.losses["mlm"]) != float(never.losses["mlm"])


@pytest.mark.parametrize(
    "name, sharing",
    [("muon", "gdes"), *(pytest.param(*case, marks=LONG) for case in (("adamw", "none"), ("adamw", "gdes"), ("muon", "none")))],
)
def test_a_frozen_generator_stays_what_it_is(name, sharing):
    """Not even weight decay moves it, and the optimizer keeps nothing of it."""
    goal = equations.make("electra", tiny.model(sharing=sharing), train_generator=False)
    rule = optimizer.make_optimizer(OptimizerConfig(name=name, weight_decay=0.1), ScheduleConfig(warmup_steps=0), 10, goal.frozen)
    state = jax.jit(lambda key: step.init_state(key, goal, rule))(tiny.ROOT)
    after, metrics = jax.jit(step.make_train_step(goal, rule))(state, tiny.batch())
    jax.tree.map(np.testing.assert_array_equal, after.params["generator"], state.params["generator"])
    assert np.abs(after.params["discriminator"]["head"]["out"]["kernel"] - state.params["discriminator"]["head"]["out"]["kernel"]).max() > 0
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert not [path for path in paths if "generator" in path] and [path for path in paths if "discriminator" in path]
    assert float(metrics["mlm_loss"]) > 0  # shown all the same
    assert float(metrics["loss"]) == pytest.approx(50 * float(metrics["rtd_loss"]), rel=1e-6)


@pytest.mark.parametrize(
    "fields, model, says",
    [
        (dict(train_generator=False), {}, "model.sharing=none"),
        (dict(generator="unigram", temperature=2.0), {}, "objective.temperature is of a generator that is a network"),
        (dict(generator="uniform"), dict(sharing="gdes"), "is of two networks"),
        (dict(temperature_decay_steps=100), {}, "needs an objective.temperature"),
    ],
)
def test_contradictions_are_refused(fields, model, says):
    with pytest.raises(UserError, match=says):
        equations.make("electra", tiny.model(**model), **fields)


@pytest.mark.parametrize(
    "name, fields, says",
    [
        ("mlm", {"model.sharing": "gdes"}, "model.sharing=gdes is of a generator that is a network, and mlm has none here"),
        ("mlm", {"model.generator_hidden_fraction": 0.5}, "model.generator_hidden_fraction is of a generator"),
        ("electra", {"objective.generator": "uniform", "model.sharing": "none"}, "and electra has none here"),
        ("electra", {"objective.train_generator": False, "model.sharing": "none"}, "the generator would stay random"),
        (
            "electra",
            {"objective.temperature": 2.0, "objective.temperature_decay_steps": 5000},
            "objective.temperature_decay_steps is 5,000 and train.steps is 1,000: the temperature would hardly change",
        ),
        ("electra", {"objective.mlm_weight": 0.0, "objective.rtd_weight": 0.0}, "all weights of the losses of electra are 0"),
    ],
)
def test_what_would_train_nothing_or_another_thing_is_refused(name, fields, says):
    with pytest.raises(UserError, match=says):
        recipe = Recipe.of(get_config("tiny"), {"objective.name": name, **fields})
        devices = build.Devices.of(recipe)
        build.pretraining_objective(recipe.resolve(devices.platform), tiny.VOCABULARY, devices)


def test_frequencies_are_needed():
    with pytest.raises(UserError, match="frequencies of the training rows"):
        equations.make("electra", tiny.model(), vocabulary=tiny.VOCABULARY, generator="unigram")


def test_what_an_objective_does_not_read_is_refused():
    platform = type("Platform", (), {"name": "cpu", "dtype": "float32"})
    with pytest.raises(UserError, match=r"objective.rtd_weight is 7.0, and mlm has no such thing"):
        Recipe(model=tiny.model(), objective=ObjectiveConfig(name="mlm", rtd_weight=7.0)).resolve(platform)
    fields = set(vars(ObjectiveConfig())) - {"name"}
    read = {
        name: set(options.load(OBJECTIVES, name).reads(MIXED if name == "mixture" else ObjectiveConfig(name=name))) for name in OBJECTIVES
    }
    assert all(of_one <= fields for of_one in read.values()) and set.union(*read.values()) == fields


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(name="electrra"), "did you mean 'electra'"),
        (dict(temperature=0.0), "above 0"),
        (dict(temperature_decay_steps=-1), "from 0 up"),
        (dict(causal_fraction=1.5), "from 0 to below 1"),
        (dict(lm_weight=-1.0), "from 0 up"),
        (dict(name="mixture"), "needs objective.mixture"),
        (dict(mixture="electra"), "write NAME=WEIGHT"),
        (dict(mixture="electra=1,mlm=1>x@3"), "write NAME=WEIGHT"),
        (dict(mixture="mlm=1,mlm=2"), "has mlm twice"),
        (dict(mixture="mixture=1"), "must be one of"),
    ],
)
def test_wrong_values_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        ObjectiveConfig(**fields)


def test_a_directed_objective_takes_the_path_that_can():
    platform = type("Platform", (), {"name": "tpu", "dtype": "bfloat16"})
    recipe = Recipe(
        model=tiny.model(attention_dropout=0.0, head_size=64, hidden_size=256, max_length=512), objective=ObjectiveConfig(name="mntp_clm")
    )
    recipe = recipe.of_rows(512, tiny.VOCAB_SIZE)
    assert recipe.resolve(platform).model.attention == "xla"
    asked = Recipe(model=tiny.model(attention="splash", attention_dropout=0.0), objective=ObjectiveConfig(name="electric"))
    with pytest.raises(UserError, match="hides from a token what comes after it"):
        asked.resolve(platform)
