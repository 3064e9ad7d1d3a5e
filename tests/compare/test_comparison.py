"""Runs of a comparison: the same compute for each, what is there is not made again, and what the table says of them."""

import contextlib
import json
import subprocess
import sys
import xml.etree.ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

from configs.finetune import get_config as finetuning
from configs.pretrain import get_config
from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.compare import command, figure, table
from electra_jax.compare import runs as comparison
from electra_jax.compare.entries import parse_all
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.infer.pairs import Pair
from electra_jax.pretrain import open_work
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
    with pytest.raises(UserError, match="^electra: a step takes .* FLOPs, and the budget is 1e.06: raise --flops"):
        comparison.plan(ENTRIES, recipe_of, budgets_flops=[1e6], num_seeds=1, scratch=tmp_path)
    for text, message in {
        "electra objective.lm_weight=3": "lm_weight",
        "electra model.sharing=all": "needs a generator as large",
        "electra model.hidden_sise=8": "did you mean 'hidden_size'",
        "electra model.hidden_size=wide": "model.hidden_size is 'wide'",
        "electra no_such_variant": "no_such_variant",
        "electra init_from=/nowhere": "/nowhere: no such file or folder",
        "first: electra init_from=/nowhere/{seed}": "/nowhere/0: no such file or folder",
        "electra objective.mixture=x": "objective.mixture",
    }.items():
        with pytest.raises(UserError) as error:
            comparison.plan(parse_all([text]), recipe_of, budgets_flops=[2e9], num_seeds=1, scratch=tmp_path)
        assert message in str(error.value)


@pytest.mark.parametrize(
    "common, message",
    [
        ({"train.steps": 5}, "--config.train.steps is decided by --flops"),
        ({"schedule.decay_steps": 5}, "--config.schedule.decay_steps is decided by --flops"),
        ({"objective.name": "mlm"}, "the config of all entries has the objective mlm: leave it out there"),
    ],
)
def test_a_flag_for_all_says_nothing_that_entries_and_budget_say(common, message, recipe_of, tmp_path):
    def of(entry, fields):
        return recipe_of(entry, {**common, **fields})

    with pytest.raises(UserError, match=message):
        comparison.plan(ENTRIES, of, budgets_flops=[2e9], num_seeds=1, scratch=tmp_path)


def tasks_of(tmp_path, **fields) -> comparison.Tasks:
    """RTE in a folder, as configs/transfer.py would have it."""
    for split in ("train", "dev"):
        (tmp_path / "RTE").mkdir(exist_ok=True)
        (tmp_path / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tc\tnot_entailment\n")
    given = {"task.path": str(tmp_path), "finetune.length": 32, "seeds": 1, "train.steps": 2, **fields}
    return comparison.Tasks(("rte",), (1e-3,), lambda task, fields: FinetuneRecipe.of(finetuning(task), {**given, **fields}))


def test_what_cannot_be_fine_tuned_is_said_before_anything_is_trained(recipe_of, tmp_path):
    def planned(text, **fields):
        tasks = tasks_of(tmp_path, **fields)
        return comparison.plan(parse_all([text]), recipe_of, budgets_flops=[2e9], num_seeds=1, scratch=tmp_path, tasks=tasks)

    assert planned("electra")
    with pytest.raises(UserError, match="^published: finetune.length is 128 and the model has 32 positions"):
        planned("published: electra model.positions=learned", **{"finetune.length": 128})
    with pytest.raises(UserError, match="optimizer.learning_rate is chosen from --rates"):
        planned("electra", **{"optimizer.learning_rate": 1e-3})
    with pytest.raises(UserError, match=r"RTE: .* not in .*--data"):
        planned("electra", **{"task.path": str(tmp_path / "nowhere")})


def test_all_are_measured_under_the_same_masks(recipe_of, tmp_path):
    """Whatever they train with, and whatever their seeds."""
    chosen = []
    for plan in comparison.plan(
        parse_all(["mlm", "half: mlm masking.rate=0.5"]), recipe_of, budgets_flops=[2e9], num_seeds=2, scratch=tmp_path
    ):
        assert plan.recipe.eval.mask_rate == 0.15
        work = open_work(plan.recipe, tmp_path)
        batch, _ = work.heldout[0]
        step_rng = rng.StepRng(rng.root_key(0), jnp.int32(0))
        slots = work.evaluated.plan(batch, step_rng, False)[0].slots
        assert bool(jnp.all(slots.masked == (slots.weights > 0)))  # every chosen token is shown as [MASK]
        chosen.append(slots.positions)
        trained = work.parts.objective.plan(batch, step_rng, True)[0].slots
        assert trained.positions.shape[1] == (16 if plan.entry.name == "half" else slots.positions.shape[1])
    for positions in chosen[1:]:
        np.testing.assert_array_equal(positions, chosen[0])


@pytest.fixture
def made(monkeypatch):
    """Stands in for training and scoring: the parts that were done, in order. The second score of `mlm` dies once."""
    calls, deaths = [], ["mlm"]
    auc = "AUC of RTD on its own generator's replacements"

    def pretrained(each, folder):
        calls.append((each.title, "pretraining"))
        metrics = {"eval/mlm_loss": 4.0 + each.seed + (each.entry.name == "mlm"), "eval/unigram_entropy": 6.0, "eval/rtd_auc": 0.6}
        titles = {"eval/mlm_loss": "MLM loss of the generator", "eval/rtd_auc": auc}
        compared = {"eval/mlm_loss": "MLM loss"} if each.entry.name == "mlm" else titles
        curve = {"step": [5, 10]} | {name: [1.0, metrics[name]] for name in compared}
        return {
            **{"entry": each.entry.name, "budget_flops": each.budget_flops, "seed": each.seed, "settings": each.settings},
            **{"steps": 10, "flops_per_step": each.flops_per_step, "heldout": metrics, "curve": curve, "compared": compared},
            **{"warnings": [], "diverged": "", "scores": {}, "tasks": {}},
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


class Tasks(comparison.Tasks):
    def settings_of(self, name):
        return {"rates": self.rates}

    def measure(self, name, model, folder):
        assert folder == model.parent / f"{model.name}-fine-tuning" / name
        return {"title": name.upper(), "metric": "mcc", "median": 0.1 + 0.1 * int(model.name[-1]), "settings": self.settings_of(name)}


COLA = Tasks(["cola"], [1e-3], None)


def test_what_is_there_is_not_made_again(plans, made, tmp_path, capsys):
    def rows(chosen=plans[:2], **more):
        return list(comparison.make(chosen, tmp_path, minimal_pairs=PAIRS, **more))[-1]

    with pytest.raises(KeyboardInterrupt):
        rows()
    assert [part for _, part in made] == ["pretraining", "scores", "pretraining", "scores"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "compare: 0 of 4 parts done in 0s; now electra, 2e+09 FLOPs, seed 0: pretraining"
    assert said[3].startswith("compare: 3 of 4 parts done in 0s, about 0s left; now mlm")
    made.clear()
    first = rows()
    assert [part for _, part in made] == ["scores"]  # that died
    made.clear()
    assert rows() == first and not made
    again = rows(tasks=COLA)  # one more thing is asked of each
    assert not made and [row["tasks"]["cola"]["median"] for row in again] == [0.1, 0.1] and rows() == again
    assert rows(chosen=plans[1:2]) == again  # the other's row is kept
    with pytest.raises(UserError, match=r"seed 0 with cola: rates=\[0.001\], and this is \[0.1\]"):
        rows(tasks=COLA._replace(rates=[0.1]))
    other = [plans[0]._replace(settings={**plans[0].settings, "model.hidden_size": 16})]
    with pytest.raises(UserError, match="electra, 2e.09 FLOPs, seed 0 with model.hidden_size=32, and this is 16: give the entry"):
        rows(other)


def test_the_table_has_means_and_deviations_over_seeds(plans, made, tmp_path):
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            *_, made_rows = comparison.make(plans, tmp_path, minimal_pairs=PAIRS, tasks=COLA)
    assert len(made_rows) == 12
    lines = table.table(made_rows).splitlines()
    titles = "held-out MLM loss of the generator | held-out AUC of RTD on its own generator's replacements | held-out MLM loss"
    assert lines[0] == f"| 2e+09 FLOPs | seeds | steps | {titles} | minimal pairs (pll) | COLA (mcc) |"
    assert lines[2] == "| electra | 2 | 10 | 4.500 ± 0.707 | 0.600 ± 0.000 |  | 62.5 ± 0.0 | 15.0 ± 7.1 |"
    assert lines[3] == "| mlm | 2 | 10 |  |  | 5.500 ± 0.707 | 62.5 ± 0.0 | 15.0 ± 7.1 |"
    assert lines[6].startswith("| 4e+09 FLOPs |")
    for some in (made_rows, made_rows[:6], made_rows[:2]):
        xml.etree.ElementTree.fromstring(figure.draw(some))
    assert figure.draw(made_rows) == figure.draw(made_rows)
    stuck = [{**row, "warnings": ["word_frequencies"] * (row["entry"] == "large")} for row in made_rows[:3]]
    assert "| large † | 1 |" in table.table(stuck) and "† Void: a run of large learned no more than word" in table.table(stuck)
    assert "†" not in table.table(made_rows) and "large †" in figure.draw(stuck) and "†" not in figure.draw(made_rows)
    begun = {**made_rows[0], "settings": {**made_rows[0]["settings"], "init_from": "runs/first"}, "warnings": ["lost_directions"]}
    said = table.table([begun, {**made_rows[3], "tasks": {}}])
    assert "| electra ‡§ | 2 |" in said and "10.0 (of 1) |" in said
    assert "electra began with trained weights. The budget does not count" in said and "so few directions" in said


def test_a_run_that_diverges_is_marked_and_the_others_go_on(recipe_of, tmp_path):
    """Really trained: at such a rate nothing stays finite."""
    fields = {"optimizer.name": "adamw", "train.max_non_finite_steps": 2}

    def of(entry, more):
        return recipe_of(entry, {**fields, **more})

    entries = parse_all(["wild: mlm optimizer.learning_rate=1e30", "mlm"])
    plans = comparison.plan(entries, of, budgets_flops=[3e8], num_seeds=1, scratch=tmp_path)
    *_, made_rows = comparison.make(plans, tmp_path / "out", tasks=Tasks(["cola"], [1e-3], None))
    assert "was not finite at 2 steps in a row" in made_rows[0]["diverged"] and not made_rows[0]["tasks"] and not made_rows[1]["diverged"]
    said = table.table(made_rows)
    assert "| wild ¶ | 1 | " in said and "A run of wild diverged" in said and "| 10.0 |" in said
    assert list(comparison.make(plans, tmp_path / "out", tasks=Tasks(["cola"], [1e-3], None))) == [made_rows]  # it is not tried again
    xml.etree.ElementTree.fromstring(figure.draw(made_rows))


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
    assert [row["entry"] for row in found] == ["electra", "electra", "mlm", "mlm"]  # a line after each part
    found = list(comparison.read(tmp_path / "out").values())
    assert [[*row["scores"]] for row in found] == [["pll of the generator", "rtd"], ["pll"]]
    for row in found:
        assert row["curve"]["step"][-1] == row["steps"] and row["curve"]["eval/mlm_loss"][-1] == row["heldout"]["eval/mlm_loss"]
        assert np.isclose(row["steps"] * row["flops_per_step"], 5e8, rtol=0.2) and row["warnings"]  # word frequencies at most, by then
    assert done.stdout == (tmp_path / "out" / "table.md").read_text() and "† Void" in done.stdout and "minimal pairs (rtd)" in done.stdout
    assert (tmp_path / "out" / "figure.svg").stat().st_size > 1000
