"""The table over GLUE's tasks: what is run, what is missing, what goes on, what is uploaded."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from configs.finetune import get_config
from electra_jax.cli import UserError
from electra_jax.finetune import completed, glue, training
from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from electra_jax.watch.config import LogConfig
from tests import tiny
from tests.launch import runs

MADE_OF = {"model": "m", "examples": "e", "predicted": "p"}


def recipe_of(path, given=(), **fields):
    given = frozenset(("init_from", "seeds", *given))
    return lambda name: FinetuneRecipe(init_from="runs/small", seeds=3, task=TaskConfig(name=name, path=str(path)), given=given, **fields)


@pytest.fixture
def ran(monkeypatch):
    """Stands in for the training: three seeds of known scores, and the names of the tasks that were run."""
    names = []

    def finetune(recipe, folder):
        names.append(recipe.task.name)
        folder.mkdir(parents=True, exist_ok=True)
        scores = {"matthews": 0.5, "accuracy": 0.7} if recipe.task.name == "cola" else {"accuracy": 0.6}
        by_seed = {str(seed): {name: value + 0.01 * seed for name, value in scores.items()} for seed in range(3)}
        summary = {name: glue.results.summary([each[name] for each in by_seed.values()]) for name in scores}
        whole = {"headline": next(iter(scores)), "scores": {"dev": by_seed}, "summary": {"dev": summary}}
        whole |= {"steps": recipe.train.steps, "given": sorted(recipe.given), "made_of": MADE_OF}
        (folder / "config.json").write_text(json.dumps(recipe.stored()))
        (folder / "predictions").mkdir(exist_ok=True)
        upload = {"cola": "CoLA.tsv", "rte": "RTE.tsv"}[recipe.task.name]
        (folder / "predictions" / upload).write_text("index\tprediction\n")
        (folder / "results.json").write_text(json.dumps(whole))
        (folder / "report.html").write_text("")

    monkeypatch.setattr(completed, "finetune", finetune)
    monkeypatch.setattr(completed, "made_of_now", lambda *what: MADE_OF)
    return names


def files(folder: pathlib.Path) -> pathlib.Path:
    for task in ("CoLA", "RTE"):
        (folder / task).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (folder / task / f"{split}.tsv").write_text("")
    return folder


def test_the_table_and_what_is_missing(ran, tmp_path):
    path = files(tmp_path / "GLUE")
    rows = list(glue.run(recipe_of(path), tmp_path / "run", ("cola", "mrpc", "rte")))
    assert ran == ["cola", "rte"]
    lines = glue.table(rows).splitlines()
    assert lines[0] == "| model | CoLA (matthews) | RTE (accuracy) | mean |"
    assert lines[2] == "| this one, 3 seed(s) | 51.0 ± 1.0 | 61.0 ± 1.0 | 56.0 |"
    assert lines[3] == "| ELECTRA-small (published) | 57.0 | 66.7 | 61.9 |"
    assert lines[-1].startswith("MRPC was not run. MRPC: train.tsv") and "name another place (--path), or" in lines[-1]
    said = glue.finish(tmp_path / "run", rows)
    assert "it lacks SST-2.tsv, MRPC.tsv" in said[1] and (tmp_path / "run" / "table.md").read_text().splitlines() == lines
    with zipfile.ZipFile(tmp_path / "run" / "uploads.zip") as archive:
        assert sorted(archive.namelist()) == ["CoLA.tsv", "RTE.tsv"]
    whole = (tmp_path / "run" / "uploads.zip").read_bytes()
    for path in (tmp_path / "run").glob("*/predictions/*.tsv"):
        os.utime(path, (10**9, 10**9))  # as if made anew at another time
    glue.finish(tmp_path / "run", rows)
    assert (tmp_path / "run" / "uploads.zip").read_bytes() == whole


def test_an_earlier_table_stays_where_no_task_has_its_files(ran, tmp_path):
    glue.finish(tmp_path, list(glue.run(recipe_of(files(tmp_path / "GLUE")), tmp_path, ("cola",))))
    before = (tmp_path / "table.md").read_text()
    none = list(glue.run(recipe_of(tmp_path / "elsewhere"), tmp_path, ("cola", "rte")))
    with pytest.raises(UserError, match="none of these tasks has its files"):
        glue.finish(tmp_path, none)
    assert (tmp_path / "table.md").read_text() == before


def test_a_run_is_of_the_task_that_it_is_called_by(ran, tmp_path):
    of_rte = recipe_of(files(tmp_path / "GLUE"))("rte")
    with pytest.raises(UserError, match="task.name is rte, and this is cola's run: leave it out"):
        list(glue.run(lambda name: of_rte, tmp_path / "run", ("cola",)))
    assert not ran


def test_it_goes_on_and_refuses_another_run(ran, tmp_path):
    path = files(tmp_path / "GLUE")
    (first,) = glue.run(recipe_of(path), tmp_path / "run", ("cola",))
    again = list(glue.run(recipe_of(path), tmp_path / "run", ("cola", "rte")))
    assert again[0] == first and ran == ["cola", "rte"]
    (tmp_path / "run" / "rte" / "report.html").unlink()  # as after a death within its last moments
    assert list(glue.run(recipe_of(path), tmp_path / "run", ("cola", "rte"))) == again and ran == ["cola", "rte", "rte"]
    with pytest.raises(UserError, match="has the results of seed=0, and this is 7: choose another --workdir"):
        list(glue.run(recipe_of(path, seed=7), tmp_path / "run", ("cola",)))
    for fields, says in (  # flags that the first run had not, and that a later one has not
        ({"optimizer": OptimizerConfig(learning_rate=1e-2)}, "optimizer.learning_rate="),
        ({"finetune": FinetuneConfig(sum_over_batch=True)}, "finetune.sum_over_batch=False, and this is True"),
    ):
        with pytest.raises(UserError, match=f"has the results of {says}"):
            list(glue.run(recipe_of(path, **fields), tmp_path / "run", ("cola",)))
    assert list(glue.run(recipe_of(path, log=LogConfig(every_steps=7)), tmp_path / "run", ("cola",))) == [first]
    done = tmp_path / "run" / "rte" / "results.json"
    whole = json.loads(done.read_text())
    done.write_text(json.dumps({**whole, "steps": 7}))  # more steps were begun, and the run was stopped
    assert list(glue.run(recipe_of(path), tmp_path / "run", ("rte",))) == again[1:] and ran == ["cola", "rte", "rte", "rte"]
    for what, says in (("model", "the model in runs/small has changed since"), ("examples", "the examples in .*GLUE have changed since")):
        done.write_text(json.dumps({**whole, "made_of": {**whole["made_of"], what: "another"}}))
        with pytest.raises(UserError, match=says):
            list(glue.run(recipe_of(path), tmp_path / "run", ("rte",)))
    done.write_text(json.dumps({**whole, "made_of": {**MADE_OF, "predicted": "fewer"}}))  # a test set has arrived since
    assert list(glue.run(recipe_of(path), tmp_path / "run", ("rte",))) == again[1:] and ran == ["cola", "rte", "rte", "rte", "rte"]
    done.write_text(json.dumps({name: value for name, value in whole.items() if name not in ("given", "made_of")}))  # an earlier version's
    assert list(glue.run(recipe_of(path), tmp_path / "run", ("rte",))) == again[1:] and len(ran) == 6
    with pytest.raises(UserError, match="'squad1' is no task of GLUE"):
        list(glue.run(recipe_of(path), tmp_path / "run", ("squad1",)))


def test_a_smoke_test_gives_no_results_of_the_whole_run(ran, tmp_path):
    path = files(tmp_path / "GLUE")
    list(glue.run(recipe_of(path, ["train.steps"], train=TrainConfig(steps=10), schedule=ScheduleConfig(0)), tmp_path / "run", ("cola",)))
    with pytest.raises(UserError, match="has the results of train.steps=10, which is not given now: give it again, or choose another"):
        list(glue.run(recipe_of(path), tmp_path / "run", ("cola",)))


@pytest.mark.parametrize("field, flag", [("seeds=5", "--seeds"), ("task.path=GLUE", "--path")])
def test_what_has_a_flag_of_its_own(field, flag, tmp_path):
    command = [sys.executable, str(runs.ROOT / "launch" / "glue.py"), f"--config.{field}", "--checkpoint=runs/small"]
    command += [f"--path={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(command, env=runs.environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and f"--config.{field.split('=')[0]} is {flag} here" in ended.stderr


def test_a_task_in_the_place_of_own_is_refused(tmp_path):
    command = [sys.executable, str(runs.ROOT / "launch" / "glue.py"), f"--config={runs.ROOT}/configs/finetune.py:cola"]
    command += ["--checkpoint=runs/small", f"--path={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(command, env=runs.environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and "finetune.py:cola: --tasks=cola says what is run" in ended.stderr


@pytest.mark.parametrize(
    "variants, says",
    [
        ("", "| this one, 1 seed(s) | 50.0 ± 0.0 |"),
        (",faithful", "cola has the results of finetune.answerable_by_question=False, and this is True"),
    ],
)
def test_a_variant_holds_for_every_task(variants, says, tmp_path):
    """By the script itself, whose run of CoLA without a variant is complete."""
    path, done, source = files(tmp_path / "GLUE"), tmp_path / "run" / "cola", tmp_path / "model"
    done.mkdir(parents=True)
    tiny.save_words(source)
    for split in ("train", "dev"):
        (path / "CoLA" / f"{split}.tsv").write_text("gj04\t1\t\tw1 w2 w3\ngj04\t0\t*\tw3 w1\n")
    (path / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tw1 w2\n")
    recipe = FinetuneRecipe.of(get_config("cola"), {"init_from": str(source), "seeds": 1, "task.path": str(path)})
    (done / "config.json").write_text(json.dumps(recipe.stored()))
    dev = {"dev": {"0": {"matthews": 0.5}}}
    summary = {"dev": {"matthews": glue.results.summary([0.5])}}
    whole = {"headline": "matthews", "scores": dev, "summary": summary}
    whole |= {"steps": recipe.train.steps, "given": sorted(recipe.given)}
    whole |= {"made_of": training.made_of_now(str(source), "", recipe.task)}
    (done / "results.json").write_text(json.dumps(whole))
    (done / "report.html").write_text("")
    command = [sys.executable, str(runs.ROOT / "launch" / "glue.py"), f"--config={runs.ROOT}/configs/finetune.py:own{variants}"]
    command += [f"--checkpoint={source}", f"--path={path}", f"--workdir={tmp_path / 'run'}", "--tasks=cola"]
    ended = subprocess.run(command, env=runs.environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ended.returncode == (2 if variants else 0), ended.stderr
    assert says in ended.stdout + ended.stderr


@pytest.mark.parametrize("script", ["glue", "transfer"])
def test_a_stop_where_no_run_hears_it(script, tmp_path):
    """While the script starts, or between two runs: 42, by which launch/supervise.py knows that it is to be started again."""
    code = f"import os, signal, sys; sys.argv = ['{script}.py', '--help']; sys.path.insert(0, '{runs.ROOT}/launch'); "
    code += f"import {script}; os.kill(os.getpid(), signal.SIGTERM)"
    ended = subprocess.run([sys.executable, "-c", code], env=runs.environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 42 and ended.stderr.endswith("interrupted: run the same command again\n"), ended.stderr
