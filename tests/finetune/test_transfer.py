"""The table over models: the rate is chosen without the dev set, what is done is not done again, what was otherwise is refused."""

import json
import pathlib
import subprocess
import sys

import pytest

from configs.finetune import get_config
from electra_jax.cli import Diverged, UserError
from electra_jax.finetune import completed, transfer
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.watch.telemetry import format_line
from tests.launch import runs

RATES = (1e-4, 1e-3, 3e-3)
LINES = ((1, "clock/secs_wall", 30.0), (2, "clock/secs_wall", 60.0), (2, "eval/accuracy", 0.5))


MADE_OF = {"model": "m", "examples": "e", "predicted": "p"}


def recipe_of(task, fields, **more):
    return FinetuneRecipe.of(get_config(task), {"init_from": "runs/tiny", "seeds": 3, "task.path": "GLUE", **more, **fields})


@pytest.fixture
def ran(monkeypatch):
    """Stands in for the training, whose score is best at 1e-3: (task, rate, seeds, share held out) of each run."""
    calls = []

    def finetune(recipe, folder):
        rate, seeds = recipe.optimizer.learning_rate, recipe.seeds
        of = {"steps": recipe.train.steps, "given": sorted(recipe.given), "made_of": MADE_OF}
        calls.append((recipe.task.name, rate, seeds, recipe.task.dev_from_train))
        (folder / "checkpoints").mkdir(parents=True)
        scores = {str(seed): {"accuracy": 0.9 - abs(rate - 1e-3) * 100 + 0.01 * seed} for seed in range(seeds)}
        summary = {"dev": {"accuracy": completed.results.summary([each["accuracy"] for each in scores.values()])}}
        (folder / "config.json").write_text(json.dumps(recipe.stored()))
        lines = [
            format_line(1, {"clock/secs_wall": 30.0}),
            format_line(2, {"clock/secs_wall": 60.0}),
            format_line(2, {"eval/accuracy": 0.5}),
        ]
        (folder / "metrics.jsonl").write_bytes(b"".join([*lines, b'{"step": 3, "clock/secs_wall": 9']))  # the last one was cut off
        (folder / "results.json").write_text(
            json.dumps({"task": recipe.task.name.upper(), "headline": "accuracy", "scores": {"dev": scores}, "summary": summary, **of})
        )
        (folder / "report.html").write_text("")

    monkeypatch.setattr(completed, "finetune", finetune)
    monkeypatch.setattr(completed, "made_of_now", lambda *what: MADE_OF)
    return calls


def rows_of(folder: pathlib.Path, model="tiny", tasks=("rte",), rates=RATES, **more):
    def recipe(task, fields):
        return recipe_of(task, fields, **more)

    return list(transfer.run(recipe, folder, folder / "rows.jsonl", model=model, tasks=tasks, rates=rates))


def test_the_rate_is_chosen_on_training_rows(ran, tmp_path):
    (row,) = rows_of(tmp_path)
    assert ran == [*(("rte", rate, 1, 0.1) for rate in RATES), ("rte", 1e-3, 3, 0.0)]
    assert row["rate"] == 1e-3 and row["scores"] == [0.9, 0.91, 0.92] and row["median"] == 0.91
    assert row["secs"] == 4 * 60
    assert not list((tmp_path / "tiny" / "rte").glob("rate-*")) and not (tmp_path / "tiny" / "rte" / "seeds" / "checkpoints").exists()
    assert transfer.table([row]).splitlines()[::2] == [
        "| begins as | RTE (accuracy) |",
        "| tiny | 91.0 ± 1.0 |",
        "| rate; minutes | RTE (accuracy) |",
        "| tiny | 0.001; 4 |",
    ]


def test_a_death_before_the_row_is_written_costs_no_run(ran, tmp_path):
    transfer.measure(recipe_of, tmp_path / "tiny" / "rte", "rte", RATES)
    ran.clear()
    assert rows_of(tmp_path)[0]["rate"] == 1e-3 and ran == []


def test_a_rate_at_which_training_diverges_is_not_chosen(ran, tmp_path, monkeypatch):
    trained = completed.finetune

    def finetune(recipe, folder):
        if recipe.optimizer.learning_rate in diverging:
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_bytes(format_line(1, {"clock/secs_wall": 7.0}))
            raise Diverged("the loss was not finite")
        trained(recipe, folder)

    monkeypatch.setattr(completed, "finetune", finetune)
    diverging = {1e-3}
    (row,) = rows_of(tmp_path)
    assert row["by_rate"]["0.001"] is None and row["rate"] == 1e-4 and row["secs"] == 3 * 60 + 7
    diverging = set(RATES)
    with pytest.raises(Diverged):
        rows_of(tmp_path, model="wild")


def test_one_rate_is_not_chosen(ran, tmp_path):
    rows_of(tmp_path, rates=(1e-4,))
    assert ran == [("rte", 1e-4, 3, 0.0)]


def test_it_goes_on_and_refuses_another_run(ran, tmp_path):
    first = rows_of(tmp_path)
    ran.clear()
    again = rows_of(tmp_path, tasks=("rte", "sst2"))
    assert again[:1] == first and {call[0] for call in ran} == {"sst2"}
    rows_of(tmp_path, model="other")
    table = transfer.table(transfer.read(tmp_path / "rows.jsonl")).splitlines()
    assert table[3] == "| other | 91.0 ± 1.0 |  |"
    with pytest.raises(UserError, match=r"has tiny on rte with train.steps=None, and this is 7: choose another --name"):
        rows_of(tmp_path, **{"train.steps": 7})
    with pytest.raises(UserError, match="with rates="):
        rows_of(tmp_path, rates=(1e-4,))


def test_a_line_that_was_cut_off_is_done_again(ran, tmp_path):
    rows_of(tmp_path, tasks=("rte", "sst2"))
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-30])
    ran.clear()
    assert len(rows_of(tmp_path, tasks=("rte", "sst2"))) == 2 and {call[0] for call in ran} == {"sst2"}
    path.write_text('{"model": "tiny"}\n' + path.read_text())
    with pytest.raises(UserError, match=r"rows.jsonl:1 is no row of this table"):
        rows_of(tmp_path)


@pytest.mark.parametrize("words", [[], ["x"], ["0"], ["1e-4", "nan"], ["2"]])
def test_rates_that_are_none(words):
    with pytest.raises(UserError, match="--rates="):
        transfer.rates_of(words)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("optimizer.learning_rate", 1e-2, "optimizer.learning_rate is chosen from --rates here"),
        ("task.name", "cola", "task.name is given by --tasks here"),
    ],
)
def test_rate_and_task_are_not_given_twice(field, value, says, ran, tmp_path):
    with pytest.raises(UserError, match=says):
        rows_of(tmp_path, **{field: value})
    assert not ran


def test_a_variant_is_refused(tmp_path):
    command = [sys.executable, str(runs.ROOT / "launch" / "transfer.py"), f"--config={runs.ROOT}/configs/finetune.py:own,faithful"]
    command += ["--name=tiny", "--checkpoint=runs/tiny", f"--data={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(command, env=runs.environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and "finetune.py:own,faithful: the tasks are those of configs/transfer.py" in ended.stderr
