"""The TPU's compiler without a TPU. Real compiles; skipped where libtpu is not installed (make aot installs it)."""

import base64
import importlib.util
import json
import re
import subprocess
import sys

import pytest

from configs.pretrain import get_config
from electra_jax.cli import UserError
from electra_jax.offline import topology
from electra_jax.offline.compile import Case, compile_for, lower
from electra_jax.recipe import Recipe
from tests.launch import runs

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: make aot")

# GiB, XLA's low effort: what landed, and a tenth. A change that needs more should be a decision.
CEILINGS = {("small,flash", "v5e:2x2"): 0.80, ("base,flash", "v5e:4x4"): 4.22}


def case(preset: str, name: str, **fields) -> Case:
    return Case(Recipe.parse(get_config(preset)), name, "low").override({path.replace("__", "."): value for path, value in fields.items()})


def test_an_override_copies_and_is_checked():
    given = case("large", "v5e:4x4")
    assert given.override({"model.remat": "full", "parallel.fsdp": 4}).recipe.parallel.fsdp == 4
    assert given.recipe.model.remat == "none" and given.recipe.parallel.fsdp == 1
    with pytest.raises(UserError, match="model.remat is 'half'"):
        given.override({"model.remat": "half"})


@pytest.mark.aot
@needs_libtpu
@pytest.mark.parametrize("preset, name", CEILINGS)
def test_presets_stay_under_their_ceiling(preset, name):
    result = compile_for(case(preset, name))
    assert result["fits"] and result["peak_gib"] < CEILINGS[preset, name], result["peak_gib"]
    reduces = result["collectives"].pop("all-reduce")
    assert not result["collectives"] and reduces["dtypes"] == ["f32"] and reduces["in_loops"] == 0


@pytest.mark.aot
@needs_libtpu
def test_traffic_of_data_parallel_does_not_grow_with_the_chips():
    sizes = {}
    for name, chips in (("v5e:4x4", 16), ("v5e:16x16", 256)):
        result = compile_for(case("tiny", name, train__batch_rows=32 * chips))
        sizes[chips] = sum(found["bytes"] for found in result["collectives"].values())
    assert sizes[16] > 1e6 and sizes[256] < 1.05 * sizes[16], sizes


@pytest.mark.aot
@needs_libtpu
def test_fsdp_on_a_tpu_gathers_and_scatters_and_cuts_the_state():
    whole = compile_for(case("base,flash", "v5e:4x4", model__num_layers=1))
    cut = compile_for(case("base,flash", "v5e:4x4", model__num_layers=1, parallel__fsdp=4))
    assert cut["mesh"] == {"data": 4, "fsdp": 4} and cut["executor"] == "jit"
    assert cut["state_gib"] < 1.02 * whole["state_gib"] / 4
    words = 30_522 * 768  # the largest parameter, of a shape that a TPU does not like
    found = cut["collectives"]
    assert found["all-gather"]["count"] > 0 and found["reduce-scatter"]["largest_elements"] >= words
    assert found["all-reduce"]["largest_elements"] <= words // 4


@pytest.mark.aot
@needs_libtpu
def test_two_slices_and_one_chips_share():
    two = compile_for(case("tiny", "2*v5e:2x2", train__batch_rows=512))
    assert two["mesh"] == {"slices": 2, "data": 4} and two["chips"] == 8
    share = compile_for(case("tiny", "v5e:4x4/chip", train__batch_rows=512))
    assert share["chips"] == 1 and share["batch_rows"] == 32 and not share["collectives"]


@pytest.mark.aot
@needs_libtpu
def test_the_time_of_a_step_has_two_estimates():
    """Of one narrow layer with our attention kernel, which the simulator prices."""
    fields = {"model__num_layers": 1, "model__hidden_size": 256, "model__embedding_size": 128, "model__vocab_size": 1024}
    result = compile_for(case("base,flash", "v5e:2x2/chip", train__batch_rows=16, **fields)._replace(effort="full"))
    assert result["attention"] == "rows" and result["cycles_kernels"] > 0
    assert 0 < result["secs_composite"] < result["secs_c"] and 0 < result["utilisation_c"] < result["utilisation_composite"] < 1


@needs_libtpu
def test_a_lowered_program_does_not_know_its_source():
    """Kernels stand in it as bytes: with the files and lines that they were traced from, no program would outlive an edit."""
    text = lower(case("base,flash", "v5e:2x2", model__num_layers=1)).lowered.step.as_text()
    bodies = re.findall(r"body\\22: \\22([\w+/=]+)", text)
    assert len(bodies) == 4 and not any(b".py" in base64.b64decode(body) for body in bodies)
    assert "loc(" not in text and ".py" not in text


@pytest.mark.aot
@needs_libtpu
def test_the_command_line_says_what_to_change_and_finds_it(tmp_path):
    def run(*more):
        command = [sys.executable, str(runs.ROOT / "launch" / "compile.py"), f"--config={runs.ROOT}/configs/pretrain.py:tiny", *more]
        return subprocess.run(command, env=runs.environment(tmp_path), capture_output=True, text=True, timeout=400)

    good = run("--topology=v5e:2x2", "--effort=low", f"--json={tmp_path}/out.jsonl")
    assert good.returncode == 0 and "fits, peak" in good.stdout and "all-reduce" in good.stdout, good.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["fits"]

    fields = "--config.model.num_layers=1", "--config.optimizer.name=adamw", "--config.train.batch_rows=131072"
    large = run(*fields, "--topology=v5e:2x2", "--effort=low", "--suggest")
    assert large.returncode == 2 and "DOES NOT FIT" in large.stdout and "Traceback" not in large.stderr
    assert "fits with --config.train.accumulation_steps=" in large.stderr.splitlines()[-1], large.stderr

    names = ("v5e:3x5", "unknown"), ("", "empty"), ("v5e:4x4", "cannot be dealt out")
    for name, words in names:
        wrong = run(f"--topology={name}", "--config.train.batch_rows=24", "--effort=low")
        assert wrong.returncode == 2 and words in wrong.stderr.splitlines()[-1] and "Traceback" not in wrong.stderr, wrong.stderr


@needs_libtpu
@pytest.mark.parametrize("name, near", [("v5e:4x7", "v5e:4x4"), ("v7x:2x2", "v6e:2x2"), ("0*v5e:2x2", "v5e:2x2")])
def test_an_unknown_topology_names_some(name, near):
    with pytest.raises(UserError, match=f"{re.escape(name)}' is unknown.*{near}"):
        topology.devices(name)
