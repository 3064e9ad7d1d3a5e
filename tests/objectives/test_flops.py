"""The operations that each objective says a step takes, against the products of the program that jax traces."""

import math

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from electra_jax import rng
from electra_jax.objectives.config import MaskingConfig
from tests import tiny
from tests.objectives import equations


def products(jaxpr) -> float:
    """Floating-point operations of all matrix products. Of the forms for several platforms the one with the fewest counts: TPUs look up by
    products with ones and zeros."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        inner = [jaxpr_of(x) for value in equation.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        counts = [products(each) for each in inner if each is not None]
        if equation.primitive.name == "cond":
            total += min(counts)
        else:
            total += sum(counts) * equation.params.get("length", 1)
    return total


def jaxpr_of(x):
    return x.jaxpr if isinstance(x, jax.extend.core.ClosedJaxpr) else x if isinstance(x, jax.extend.core.Jaxpr) else None


CASES = {
    **{name: (name.split(",")[0], *settings) for name, settings in equations.SETTINGS.items()},
    **{name: (name, MaskingConfig(), {}) for name in equations.EQUATIONS if name not in equations.SETTINGS},
    "electra, frozen generator": ("electra", MaskingConfig(), dict(train_generator=False)),
    "electra, unigram generator": ("electra", MaskingConfig(), dict(generator="unigram")),
    "electra, samples without dropout": ("electra", MaskingConfig(), dict(sample_dropout=False)),
    "electra, samples without dropout, which the model has not": ("electra", MaskingConfig(), dict(sample_dropout=False)),
}


ALWAYS = ("electra", "mlm", "electric")


@pytest.mark.parametrize("case", [case if case in ALWAYS else pytest.param(case, marks=pytest.mark.objectives) for case in CASES])
def test_flops_are_those_of_the_traced_program(case):
    name, masking_config, fields = CASES[case]
    shape = dict(embedding_size=128, hidden_size=128, head_size=32, num_layers=2, max_length=64, vocab_size=2000)
    rates = dict(dropout=0.0, attention_dropout=0.0) if "has not" in case else {}
    model = tiny.model(**shape, **rates, sharing="none" if "frozen" in case else "shared")
    goal = equations.make(name, model, masking_config, vocabulary=tiny.vocabulary(2000), **fields)
    rows, length = 4, 64

    def step(params, batch):
        plan, _ = goal.plan(batch, rng.StepRng(tiny.ROOT, jnp.int32(0)), True)
        return jax.value_and_grad(lambda params: sum(goal.terms(params, batch, plan).losses.values()))(params)

    params = jax.eval_shape(goal.init, tiny.ROOT)
    traced = jax.make_jaxpr(step)(params, tiny.batch(rows, length))
    assert goal.flops(rows, length) == pytest.approx(products(traced.jaxpr), rel=0.01)
