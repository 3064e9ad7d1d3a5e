"""What to change where a step does not fit."""

from configs.pretrain import get_config
from electra_jax.offline import suggest
from electra_jax.offline.compile import Case
from electra_jax.recipe import Recipe

CASE = Case(Recipe.parse(get_config("large")), "v5e:4x4")
UNFIT = {"fits": False, "chips": 16, "peak_gib": None}


def test_knobs_go_from_cheap_to_dear():
    changes = list(suggest.knobs(CASE, 16))
    assert changes[0] == {"model.attention_dropout": 0.0}
    names = [tuple(change) for change in changes]
    first = [next(i for i, n in enumerate(names) if name in n) for name in ("train.accumulation_steps", "model.remat", "parallel.fsdp")]
    assert first == sorted(first)
    assert all(change.get("parallel.fsdp", 1) <= 16 for change in changes)

    given = {"model.attention_dropout": 0.0, "model.remat": "full", "parallel.fsdp": 8, "parallel.data": 2}
    later = list(suggest.knobs(CASE.override(given), 16))
    assert not any("model.remat" in change for change in later)  # what was asked for is never undone
    assert [c["parallel.fsdp"] for c in later if list(c) == ["parallel.fsdp", "parallel.data"]] == [16]
    assert list(suggest.knobs(CASE.override({**given, "parallel.fsdp": 16}), 4096)) != []  # fewer rows than chips: an end all the same


def test_the_first_that_fits_is_suggested(monkeypatch):
    """Of 16 chips, each of which holds the step with a quarter of its rows at a time."""
    monkeypatch.setattr(suggest.topology, "devices", lambda name: (1, [None] * 16))
    monkeypatch.setattr(
        suggest,
        "compile_for",
        lambda case, estimated: {**UNFIT, "fits": case.recipe.train.accumulation_steps >= 4 and case.effort == "low"},
    )
    tried = []
    found = suggest.suggest(CASE, lambda change, result: tried.append(change))
    assert found == tried[-1] == {"model.attention_dropout": 0.0, "train.accumulation_steps": 4} and len(tried) == 3
    assert suggest.advice(CASE, UNFIT, found, True) == (
        "fits with --config.model.attention_dropout=0.0 --config.train.accumulation_steps=4"
    )


def test_advice_names_the_cheapest_knob():
    assert "--config.model.attention_dropout=0.0 is the cheapest knob, then model.remat" in suggest.advice(CASE, UNFIT, None, False)
    assert "more chips, or a smaller --config.train.batch_rows" in suggest.advice(CASE, UNFIT, None, True)
