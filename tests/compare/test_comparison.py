"""Runs of a comparison: the same compute for each, what is there is not made again, and what the table says of them."""

import json
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from configs.pretrain import get_config
from electra_jax.cli import UserError
from electra_jax.compare import command, figure, table
from electra_jax.compare import runs as comparison
from electra_jax.compare.entries import parse_all
from electra_jax.infer.pairs import Pair
from electra_jax.recipe import Recipe
from tests.launch import runs

ENTRIES = parse_all(["electra", "mlm", "large: electra model.generator_hidden_fraction=1.0"])
PAIRS = [Pair("agreement", "morphology", "the names are", "the names is"), Pair("npi", "semantics", "no name ever", "a name ever")]


@pytest.fixture
def recipe_of(rows):
    def of(entry, fields):
        given = {**runs.FIELDS, "data.path": str(rows)}
        del given["train.steps"], given["eval.every_steps"], given["checkpoint.every_steps"], given["schedule.warmup_steps"]
        return Recipe.of(get_config(",".join(["tiny", *entry.variants])), {**given, **entry.fields, **fields})

    return of


@pytest.fixture
def plans(recipe_of, tmp_path):
    return comparison.plan(ENTRIES, recipe_of, budgets_flops=[2e9, 4e9], num_seeds=2, scratch=tmp_path)


def test_every_entry_has_the_same_flops_and_a_cheaper_step_takes_more_steps(plans):
    assert [plan.title for plan in plans[:4]] == [
        *(f"{name}, 2e+09 FLOPs, seed 0" for name in ("electra", "mlm", "large")),
        "electra, 2e+09 FLOPs, seed 1",
    ]
    assert len(plans) == 3 * 2 * 2 and len({plan.folder for plan in plans}) == 12
    for plan in plans:
        assert abs(plan.recipe.train.steps * plan.flops_per_step - plan.budget_flops) <= plan.flops_per_step / 2
        assert plan.recipe.seed == plan.seed and plan.recipe.eval.every_steps == max(1, round(plan.recipe.train.steps / 20))
        assert plan.recipe.schedule.warmup_steps == min(100, plan.recipe.train.steps // 10)
    steps = {plan.entry.name: plan.recipe.train.steps for plan in plans[:3]}
    assert steps["large"] < steps["electra"] < steps["mlm"]
    assert plans[1].recipe.objective.name == "mlm" and plans[1].recipe.masking.random_fraction == 0.1  # as BERT's is published


def test_what_cannot_be_trained_is_said_before_anything_is(recipe_of, tmp_path):
    with pytest.raises(UserError, match="1e.06 FLOPs are less than a step of electra, which takes .*: raise --flops"):
        comparison.plan(ENTRIES, recipe_of, budgets_flops=[1e6], num_seeds=1, scratch=tmp_path)
    for text, message in {
        "electra objective.lm_weight=3": "lm_weight",
        "electra model.sharing=all": "needs a generator as large",
        "electra model.hidden_sise=8": "did you mean 'hidden_size'",
        "electra model.hidden_size=wide": "model.hidden_size is 'wide'",
        "electra no_such_variant": "no_such_variant",
    }.items():
        with pytest.raises(UserError) as error:
            comparison.plan(parse_all([text]), recipe_of, budgets_flops=[2e9], num_seeds=1, scratch=tmp_path)
        assert message in str(error.value)


@pytest.fixture
def made(monkeypatch):
    """Stands in for training and scoring: the parts that were done, in order. The second score of `mlm` dies once."""
    calls, deaths = [], ["mlm"]

    def pretrained(each, folder):
        calls.append((each.title, "pretraining"))
        metrics = {"eval/mlm_loss": 4.0 + each.seed + (each.entry.name == "mlm"), "eval/unigram_entropy": 6.0, "eval/rtd_auc": 0.6}
        compared = ["eval/mlm_loss"] if each.entry.name == "mlm" else ["eval/mlm_loss", "eval/rtd_auc"]
        curve = {"step": [5, 10]} | {name: [1.0, metrics[name]] for name in compared}
        return {
            **{"entry": each.entry.name, "budget_flops": each.budget_flops, "seed": each.seed, "settings": each.settings},
            **{"steps": 10, "flops_per_step": each.flops_per_step, "heldout": metrics, "curve": curve, "compared": compared},
            **{"warnings": [], "scores": {}, "tasks": {}},
        }

    def scored(folder, minimal_pairs):
        calls.append((str(folder), "scores"))
        if deaths and deaths[0] in str(folder):
            deaths.pop()
            raise KeyboardInterrupt
        return {"pll": {"morphology": 0.75, "all": 0.625}}

    monkeypatch.setattr(comparison, "_pretrained", pretrained)
    monkeypatch.setattr(comparison, "_scored", scored)
    return calls


def fine_tune(title, checkpoint, task):
    return {"title": task.upper(), "metric": "mcc", "median": 0.1 + 0.1 * int(title[-1])}


def test_what_is_there_is_not_made_again(plans, made, tmp_path, capsys):
    def rows(chosen=plans[:2], **more):
        return list(comparison.make(chosen, tmp_path, minimal_pairs=PAIRS, **more))

    with pytest.raises(KeyboardInterrupt):
        rows()
    assert [part for _, part in made] == ["pretraining", "scores", "pretraining", "scores"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "compare: 0 of 4 parts done in 0s; now electra, 2e+09 FLOPs, seed 0: pretraining"
    assert said[3].startswith("compare: 3 of 4 parts done in 0s, about 0s left; now mlm")
    made.clear()
    first = rows()
    assert [part for _, part in made] == ["pretraining", "scores"]  # of the one that died
    made.clear()
    assert rows() == first and not made
    again = rows(tasks=["cola"], fine_tune=fine_tune)  # one more thing is asked of each
    assert not made and [row["tasks"]["cola"]["median"] for row in again] == [0.1, 0.1] and rows() == again
    other = [plans[0]._replace(settings={**plans[0].settings, "model.hidden_size": 16})]
    with pytest.raises(UserError, match="electra, 2e.09 FLOPs, seed 0 with model.hidden_size=32, and this is 16: give the entry"):
        rows(other)


def test_the_table_has_means_and_deviations_over_seeds(plans, made, tmp_path):
    made_rows = []
    while len(made_rows) < 12:
        try:
            made_rows = list(comparison.make(plans, tmp_path, minimal_pairs=PAIRS, tasks=["cola"], fine_tune=fine_tune))
        except KeyboardInterrupt:
            pass
    lines = table.table(made_rows).splitlines()
    assert lines[0] == "| 2e+09 FLOPs | seeds | steps | held-out MLM loss | held-out RTD AUC | minimal pairs (pll) | COLA (mcc) |"
    assert lines[2] == "| electra | 2 | 10 | 4.500 ± 0.707 | 0.600 ± 0.000 | 62.5 ± 0.0 | 15.0 ± 7.1 |"
    assert lines[3] == "| mlm | 2 | 10 | 5.500 ± 0.707 |  | 62.5 ± 0.0 | 15.0 ± 7.1 |"
    assert lines[6].startswith("| 4e+09 FLOPs |")
    for some in (made_rows, made_rows[:6], made_rows[:2]):
        xml.etree.ElementTree.fromstring(figure.draw(some))
    assert figure.draw(made_rows) == figure.draw(made_rows)
    stuck = [{**row, "warnings": ["word_frequencies"] * (row["entry"] == "large")} for row in made_rows[:3]]
    assert "| large † | 1 |" in table.table(stuck) and "† Void: a run of large learned word frequencies alone." in table.table(stuck)
    assert "†" not in table.table(made_rows)


@pytest.mark.parametrize("words", [["many"], ["-1"], ["inf"], ["0"], []])
def test_a_budget_is_a_number(words):
    with pytest.raises(UserError, match="write numbers of floating-point operations, such as 1e14"):
        command.budgets(words)


def test_it_runs_from_the_command_line(rows, tmp_path):
    """Two objectives, really trained and scored by every score that they have."""
    (tmp_path / "pairs").mkdir()
    lines = [
        json.dumps({"sentence_good": pair.good, "sentence_bad": pair.bad, "UID": pair.paradigm, "field": pair.field}) for pair in PAIRS
    ]
    (tmp_path / "pairs" / "all.jsonl").write_text("\n".join(lines))
    fields = {**runs.FIELDS, "data.path": rows, "schedule.warmup_steps": 1}
    for name in ("train.steps", "eval.every_steps", "checkpoint.every_steps"):
        del fields[name]
    done = subprocess.run(
        [
            *(
                sys.executable,
                str(runs.ROOT / "launch" / "compare.py"),
                "--config=configs/pretrain.py:tiny",
                f"--workdir={tmp_path / 'out'}",
            ),
            *("--flops=5e8", "--entry=electra", "--entry=mlm", f"--pairs={tmp_path / 'pairs'}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        env=runs.environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = comparison.files.read_rows(tmp_path / "out" / "rows.jsonl", comparison.FIELDS)
    assert [row["entry"] for row in found] == ["electra", "mlm"]
    assert [[*row["scores"]] for row in found] == [["pll", "rtd"], ["pll"]]
    for row in found:
        assert row["curve"]["step"][-1] == row["steps"] and row["curve"]["eval/mlm_loss"][-1] == row["heldout"]["eval/mlm_loss"]
        assert np.isclose(row["steps"] * row["flops_per_step"], 5e8, rtol=0.2) and row["warnings"]  # word frequencies at most, by then
    assert done.stdout == (tmp_path / "out" / "table.md").read_text() and "† Void" in done.stdout and "minimal pairs (rtd)" in done.stdout
    assert (tmp_path / "out" / "figure.svg").stat().st_size > 1000
