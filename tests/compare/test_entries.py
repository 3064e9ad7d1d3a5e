"""What an entry of a comparison may say, and what it must not."""

import pytest

from electra_jax.cli import UserError
from electra_jax.compare.entries import Entry, fields_of, parse, parse_all


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("electra", Entry("electra", (), {})),
        ("mlm", Entry("mlm", ("mlm",), {})),
        ("mlm faithful masking.rate=0.4", Entry("mlm faithful masking.rate=0.4", ("mlm", "faithful"), {"masking.rate": 0.4})),
        (
            "published: electra optimizer.name=adamw model.positions=learned",
            Entry("published", (), {"optimizer.name": "adamw", "model.positions": "learned"}),
        ),
        (
            "rates: optimizer.rates=\"(('layers/', 0.5),)\" train.batch_rows=8",
            Entry("rates", (), {"optimizer.rates": (("layers/", 0.5),), "train.batch_rows": 8}),
        ),
        (
            "both: init_from=runs/a init_network=discriminator:generator",
            Entry("both", (), {"init_from": "runs/a", "init_network": "discriminator:generator"}),
        ),
    ],
)
def test_an_entry_is_variants_and_fields(text, wanted):
    assert parse(text) == wanted


def test_a_seed_may_begin_with_weights_of_its_own():
    entry = parse("warm: electra init_from=runs/first-{seed} masking.rate=0.2")
    assert entry.begins_by_seed and entry.fields_of(7) == {"init_from": "runs/first-7", "masking.rate": 0.2}
    assert not parse("warm: electra init_from=runs/first").begins_by_seed


def test_folders_are_names_of_one_folder():
    assert parse("../a b: mlm").folder == ".._a_b" and parse("mlm masking.rate=0.4").folder == "mlm_masking.rate=0.4"


@pytest.mark.parametrize(
    "texts, message",
    [
        ([], "there is nothing to compare: --entry=electra --entry=mlm"),
        ([""], "it must have a variant"),
        (["name: "], "it must have a variant"),
        (["mlm seed=3"], "seed is decided by --seeds: leave it out"),
        (["mlm train.steps=3"], "train.steps is decided by --flops"),
        (["mlm data.path=x"], "data.path is decided by the flag --config.data.path, for all entries: leave it out"),
        (["mlm eval.max_rows=5"], "eval.max_rows is decided by the flag --config.eval.max_rows, for all entries"),
        (["mlm schedule.decay_steps=5"], "schedule.decay_steps is decided by --flops"),
        (["mlm", "mlm"], "two entries are called 'mlm', or nearly so"),
        (["a/b: mlm", "a b: mlm"], "two entries are called 'a b', or nearly so"),
        (["a: optimizer.rates='(("], "No closing quotation"),
    ],
)
def test_mistakes_are_named(texts, message):
    with pytest.raises(UserError) as error:
        parse_all(texts)
    assert message in str(error.value)


def test_fields_of_all_tasks():
    assert fields_of("seeds=3 finetune.layer_decay=0.9", "--finetune") == {"seeds": 3, "finetune.layer_decay": 0.9}
    assert fields_of("", "--finetune") == {}
    with pytest.raises(UserError, match="--finetune='seeds 3': 'seeds' has no value"):
        fields_of("seeds 3", "--finetune")
