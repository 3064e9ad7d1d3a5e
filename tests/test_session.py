"""Any task through one session: an objective of one network, and labels in rows of two lengths, killed and resumed."""

import dataclasses
import json
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from electra_jax import objectives, session
from electra_jax.cli import UserError
from electra_jax.data.config import DataConfig
from electra_jax.interop import formats
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.pretrain import pretrain
from electra_jax.recipe import Recipe
from electra_jax.store.config import CheckpointConfig
from electra_jax.train.config import EvalConfig, ScheduleConfig, TrainConfig
from electra_jax.watch.config import LogConfig
from tests import tiny
from tests.launch import runs


def test_an_objective_of_one_network_is_one_file_and_one_line(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(objectives.OBJECTIVES, "masked_words", "tests.toys.masked_words")
    recipe = Recipe(
        model=tiny.model(vocab_size=600),
        masking=MaskingConfig(rate=0.3),
        objective=ObjectiveConfig(name="masked_words"),
        schedule=ScheduleConfig(warmup_steps=2),
        data=DataConfig(path=str(rows), length=32),
        train=TrainConfig(steps=6, batch_rows=8),
        log=LogConfig(every_steps=1, tensorboard=False),
        eval=EvalConfig(every_steps=3, max_rows=16, batch_rows=8),
        checkpoint=CheckpointConfig(every_steps=4),
    )
    result = pretrain(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert "step 3: words filled with loss" in said and "warning: this is a toy" in said and "(encoder " in said
    assert result.metrics["eval/worst"] > result.metrics["eval/words_loss"] > 0
    assert 1 < result.metrics["eval/rank/encoder/1"] < result.metrics["eval/random_rank/encoder/1"] * 1.5 < 24
    state = runs.state_bytes(tmp_path / "run")
    params = {name: np.frombuffer(data, np.float32) for name, data in state.items() if name.startswith("params/")}
    assert {name.split("/")[1] for name in params} == {"embeddings", "encoder"}
    assert result.metrics["eval/param_norm"] == pytest.approx(np.linalg.norm(np.concatenate(list(params.values()))), rel=1e-5)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Words</h2>" in report and "What was filled" in report and "Discriminator" not in report
    assert "<h2>Encoder: effective rank of tokens</h2>" in report
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["objective"]["name"] == "masked_words" and Recipe.parse({k: v for k, v in stored.items() if k != "identity"}).seed == 0
    with pytest.raises(
        UserError, match="its objective has networks of its own, encoder: what is read here is a discriminator and a generator"
    ):
        formats.read(str(tmp_path / "run"))
    again = pretrain(dataclasses.replace(recipe, log=LogConfig(tensorboard=False)), tmp_path / "run")  # complete: evaluated, and no more
    assert again.metrics == result.metrics


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compilation_cache")


def command(workdir) -> list[str]:
    return [sys.executable, "-m", "tests.toys.labelled", str(workdir)]


def run(workdir, cache, devices: int = 1) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(workdir), env=runs.environment(cache, devices), cwd=runs.ROOT, capture_output=True, text=True, timeout=300
    )


def test_labels_and_two_row_lengths_train_and_a_killed_run_goes_on_bit_for_bit(cache, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(whole, cache)
    assert done.returncode == 0, done.stderr
    assert "compiled the step for rows of 16 tokens, program 2" in done.stderr and done.stderr.count("compiled the step for") == 1
    lines = runs.learned(whole)
    last = next(line for line in reversed(lines) if "eval/f1" in line)
    assert last["eval/accuracy"] > 0.8 and last["eval/f1"] > 0.8 and last["eval/chance"] == 0.5
    first, second = (line for line in lines[:2])  # real tokens: padding is not counted
    assert first["train/tokens"] == sum(3 + n % 30 for n in range(8)) and second["train/tokens"] == sum(3 + n % 14 for n in range(8, 16))
    written = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["clock/programs"] for line in written if "clock/programs" in line][:3] == [1, 2, 2]
    assert max(line.get("clock/tokens", 0) for line in written) == sum(line.get("train/tokens", 0) for line in lines)

    process = subprocess.Popen(
        command(killed), env=runs.environment(cache), cwd=runs.ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while not (killed / "checkpoints" / "14").is_dir():  # between two saves, and between two lengths
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = run(killed, cache)
    assert again.returncode == 0 and "going on from step" in again.stderr, again.stderr
    assert runs.learned(killed) == runs.learned(whole) and runs.state_bytes(killed) == runs.state_bytes(whole)


def test_labels_are_dealt_out_over_devices(cache, tmp_path):
    done = run(tmp_path / "run", cache, devices=4)
    assert done.returncode == 0 and "data=4" in done.stderr, done.stderr
    assert next(line for line in reversed(runs.learned(tmp_path / "run")) if "eval/f1" in line)["eval/accuracy"] > 0.8


def test_a_run_that_hardly_anybody_means_is_warned_of():
    """One novel and the published small preset: 268 days were found out by waiting."""

    def warned(steps: int, num_rows: int) -> list[str]:
        recipe = types.SimpleNamespace(train=types.SimpleNamespace(steps=steps, batch_rows=128))
        parts = types.SimpleNamespace(objective=types.SimpleNamespace(flops=lambda rows, length: 1e12), batch_rows=128)
        batch = types.SimpleNamespace(tokens=np.zeros((128, 128)))
        work = types.SimpleNamespace(recipe=recipe, parts=parts, first_batch=batch, num_rows=num_rows)
        return session.too_much(work, 1e11)

    assert warned(1_000, 256) == [] and warned(100_000, 320_000) == []
    (line,) = warned(1_000_000, 12_800)
    assert "some 231 days here: train.steps=129599 would be 30" in line and "10,000 epochs" in line and "train.steps=4000 is enough" in line
