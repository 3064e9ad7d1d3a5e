"""launch/convert.py and --config.init_from, as their users meet them."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from electra_jax.interop import formats, names
from tests.launch import runs

FIELDS = {"train.steps": 14, "eval.every_steps": 7, "checkpoint.every_steps": 7, "optimizer.name": "adamw"}
STILL = {"optimizer.learning_rate": 0.0, "optimizer.muon_learning_rate": 0.0, "train.steps": 8, "schedule.warmup_steps": 2}


def convert(*flags):
    command = [sys.executable, str(runs.ROOT / "launch" / "convert.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(rows, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    done = runs.run(workdir, rows, cache, **FIELDS)
    assert done.returncode == 0, done.stderr
    return workdir


def params(path):
    return names.flat(formats.read(path).params)


def test_a_run_goes_out_and_a_new_one_begins_with_it(trained, rows, cache, tmp_path):
    done = convert(f"--from={trained}", f"--to={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout and "discriminator, generator" in done.stdout
    card = (tmp_path / "out" / "discriminator" / "README.md").read_text()
    assert "| steps | 14 |" in card and "eval/rtd_auc" in card and '"documents"' in card
    begun = runs.run(tmp_path / "run", rows, cache, **STILL, init_from=tmp_path / "out")
    assert begun.returncode == 0, begun.stderr
    assert "embeddings, discriminator, generator taken over" in begun.stderr
    before, after = params(trained), params(tmp_path / "run")  # a rate of 0: what it began with
    for path, x in before.items():
        np.testing.assert_array_equal(x, after[path], err_msg=path)
    # A resume does not look at it again, and refuses another.
    again = runs.run(tmp_path / "run", rows, cache, **STILL, init_from=tmp_path / "out")
    assert again.returncode == 0, again.stderr
    other = runs.run(tmp_path / "run", rows, cache, **STILL, init_from=tmp_path / "elsewhere")
    assert other.returncode == 2 and "init_from" in other.stderr


def test_with_the_optimizers_memory_it_goes_on_as_if_it_had_not_stopped(trained, rows, cache, tmp_path):
    """The same rates, by a constant schedule: the only difference is where the data begins."""
    fields = {**FIELDS, "train.steps": 8, "schedule.warmup_steps": 2, "init_from": trained, "init_slots": True}
    begun = runs.run(tmp_path / "run", rows, cache, **fields)
    assert begun.returncode == 0, begun.stderr
    assert "with the optimizer's memory of 14 updates" in begun.stderr
    first = next(line["train/loss"] for line in runs.learned(tmp_path / "run") if "train/loss" in line)
    fresh = next(line["train/loss"] for line in runs.learned(trained) if "train/loss" in line)
    last = [line["train/loss"] for line in runs.learned(trained) if "train/loss" in line][-1]
    assert abs(first - last) < abs(first - fresh) / 4


@pytest.mark.parametrize("network", ["discriminator", pytest.param("generator", marks=pytest.mark.slow)])
def test_one_network_only(network, trained, rows, cache, tmp_path):
    begun = runs.run(tmp_path / "run", rows, cache, **STILL, seed=1, init_from=trained, init_network=network)
    assert begun.returncode == 0, begun.stderr
    before, after = params(trained), params(tmp_path / "run")
    other = "generator" if network == "discriminator" else "discriminator"
    kernel = "layers/attention/query/kernel"
    np.testing.assert_array_equal(before[f"{network}/{kernel}"], after[f"{network}/{kernel}"])
    assert np.abs(before[f"{other}/{kernel}"] - after[f"{other}/{kernel}"]).max() > 1e-3


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"init_from": "nowhere"}, "nowhere: no such file or folder"),
        ({"init_slots": True}, "init_slots is True and there is no init_from"),
        ({"init_network": "generator"}, "init_network is generator and there is no init_from"),
        ({"init_from": "TRAINED", "model.hidden_size": 64}, "--config.model.hidden_size=32"),
        ({"init_from": "TRAINED", "init_network": "both"}, "init_network is 'both'"),
        ({"init_from": "TRAINED", "init_slots": True, "optimizer.name": "muon", "init_network": "generator"}, "init_slots"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_compiled(fields, words, trained, rows, cache, tmp_path):
    fields = {name: str(trained) if value == "TRAINED" else value for name, value in fields.items()}
    done = runs.run(tmp_path / "run", rows, cache, **fields)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "compiling" not in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_stop_signal_leaves_nothing(trained, tmp_path):
    command = [sys.executable, str(runs.ROOT / "launch" / "convert.py"), f"--from={trained}", f"--to={tmp_path}/new/out"]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("new/.out.*.tmp")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        if process.returncode == 0:  # the signal came too late
            shutil.rmtree(tmp_path / "new")
        else:
            assert "Traceback" not in stderr and process.returncode == 42, stderr
        assert not list(tmp_path.rglob("*"))


def test_mistakes_are_one_line(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    for flags, words in (
        (["--from=nowhere", f"--to={tmp_path}/out"], "nowhere: no such file or folder"),
        (["--from=google/electra-none", f"--to={tmp_path}/out"], "hf download google/electra-none --local-dir"),
        ([f"--from={trained}", f"--to={tmp_path}/full"], "is there already"),
        ([f"--from={trained}", f"--to={tmp_path}/file"], "is there already"),
        ([f"--from={trained}", f"--to={tmp_path}/file/below"], "is a file: name a new folder"),
        ([f"--from={trained}", f"--to={tmp_path}/out", "--format=onnx"], "format"),
        ([f"--from={trained}"], "--to"),
        ([f"--from={trained}/checkpoints/3", f"--to={tmp_path}/out"], "no such file"),
        ([f"--from={trained}", f"--to={tmp_path}/out", "--network=encoder"], "network"),
        ([f"--from={trained}", "--to=gs://bucket/out"], "write to a folder here"),
    ):
        done = convert(*flags)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, (flags, done.stderr)
        assert len([line for line in done.stderr.splitlines() if line.startswith("convert.py:")]) == 1
        assert not (tmp_path / "out").exists()
    help_text = convert("--help")
    assert help_text.returncode == 0 and "--from" in help_text.stdout


def test_a_step_of_a_run_and_ours_without_the_memory(trained, rows, cache, tmp_path):
    assert convert(f"--from={trained}/checkpoints/7", f"--to={tmp_path}/7", "--format=electra_jax", "--noslots").returncode == 0
    held_out = {line["step"]: line["eval/mlm_loss"] for line in runs.learned(trained) if "eval/mlm_loss" in line}
    for path, step in ((f"{trained}/checkpoints/7", 7), (trained, 14)):
        assert formats.read(path).about["metrics"]["eval/mlm_loss"] == held_out[step]
    assert held_out[7] != held_out[14]
    model = formats.read(tmp_path / "7")
    assert model.about["step"] == 7 and model.slots is None and model.tokenizer is not None
    earlier, newest = (names.flat(formats.read(path).params) for path in (f"{trained}/checkpoints/7", trained))
    for path, x in names.flat(model.params).items():
        np.testing.assert_array_equal(x, earlier[path])
    assert any((earlier[path] != newest[path]).any() for path in newest)
    there = runs.run(tmp_path / "7", rows, cache, **STILL)
    assert there.returncode == 2 and f"holds a model and no run: begin with it, --config.init_from={tmp_path}/7" in there.stderr
    assert json.loads((tmp_path / "7" / "config.json").read_text())["model"]["hidden_size"] == 32


@pytest.mark.parametrize("page", ["README.md", "docs/models.md"])
def test_the_lines_that_are_documented(page, trained):
    blocks = re.findall(r"```python\n(.*?)```", (runs.ROOT / page).read_text(), re.DOTALL)
    lines = "\n".join(block for block in blocks if "runs/demo/run" in block)
    assert "discriminator_apply" in lines
    code = lines.replace("runs/demo/run", str(trained)) + "\nassert scores.shape == batch.tokens.shape"
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # make interop
def test_a_run_in_a_bucket(trained, rows, cache, gcs, tmp_path):
    gcs.buckets["ours"] = {}
    gcs.add(trained, "ours", "runs/there")
    before = dict(gcs.buckets["ours"])
    url = "gs://ours/runs/there"
    begun = runs.run(tmp_path / "run", rows, cache, **STILL, init_from=url)
    assert begun.returncode == 0 and "embeddings, discriminator, generator taken over" in begun.stderr, begun.stderr
    done = convert(f"--from={url}/checkpoints/7", f"--to={tmp_path}/7", "--format=electra_jax")
    assert done.returncode == 0, done.stderr
    assert formats.read(tmp_path / "7").tokenizer.sha256 == formats.read(trained).tokenizer.sha256
    for there, here in ((tmp_path / "run", trained), (tmp_path / "7", f"{trained}/checkpoints/7")):
        for path, x in params(here).items():
            np.testing.assert_array_equal(x, params(there)[path], err_msg=path)
    assert gcs.buckets["ours"] == before
    gcs.buckets["ours"]["hub/config.json"] = b"{}"
    for source, words in (
        (f"{url}/checkpoints/3", "no checkpoint in it of step 3"),
        ("gs://ours/hub", "copy a model of another"),
        ("gs://none/x", "there is no checkpoint in it"),
    ):
        done = convert(f"--from={source}", f"--to={tmp_path}/out")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
