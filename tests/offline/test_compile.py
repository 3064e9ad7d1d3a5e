"""The TPU's compiler without a TPU. Real compiles; skipped where libtpu is not installed (make aot installs it)."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from configs.pretrain import get_config
from electra_jax.cli import UserError
from electra_jax.offline import compile as aot
from electra_jax.offline import topology
from tests.launch import runs

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: make aot")

# GiB, XLA's low effort: what landed, and a tenth. A change that needs more should be a decision.
CEILINGS = {("small,flash", "v5e:2x2"): 0.80, ("base,flash", "v5e:4x4"): 4.22}


def tiny(**fields) -> dict:
    config = get_config("tiny").to_dict()
    return aot.override(config, {"train.batch_rows": 512, **{name.replace("__", "."): value for name, value in fields.items()}})


@pytest.mark.aot
@needs_libtpu
@pytest.mark.parametrize("preset, name", CEILINGS)
def test_presets_stay_under_their_ceiling(preset, name):
    result = aot.compile_for(get_config(preset).to_dict(), name, "low")
    assert result["fits"] and result["peak_gib"] < CEILINGS[preset, name], result["peak_gib"]
    reduces = result["collectives"].pop("all-reduce")
    assert not result["collectives"] and reduces["dtypes"] == ["f32"] and reduces["in_loops"] == 0


@pytest.mark.aot
@needs_libtpu
def test_traffic_of_data_parallel_does_not_grow_with_the_chips():
    sizes = {}
    for name, chips in (("v5e:4x4", 16), ("v5e:16x16", 256)):
        result = aot.compile_for(tiny(train__batch_rows=32 * chips), name, "low")
        sizes[chips] = sum(found["bytes"] for found in result["collectives"].values())
    assert sizes[16] > 1e6 and sizes[256] < 1.05 * sizes[16], sizes


@pytest.mark.aot
@needs_libtpu
def test_fsdp_on_a_tpu_gathers_and_scatters_and_cuts_the_state():
    config = aot.override(get_config("base,flash").to_dict(), {"model.num_layers": 1})
    whole = aot.compile_for(config, "v5e:4x4", "low")
    cut = aot.compile_for(aot.override(config, {"parallel.fsdp": 4}), "v5e:4x4", "low")
    assert cut["mesh"] == {"data": 4, "fsdp": 4} and cut["executor"] == "jit"
    assert cut["state_gib"] < 1.02 * whole["state_gib"] / 4
    words = 30_522 * 768  # the largest parameter, of a shape that a TPU does not like
    found = cut["collectives"]
    assert found["all-gather"]["count"] > 0 and found["reduce-scatter"]["largest_elements"] >= words
    assert found["all-reduce"]["largest_elements"] <= words // 4


@pytest.mark.aot
@needs_libtpu
def test_two_slices_and_one_chips_share():
    two = aot.compile_for(tiny(), "2*v5e:2x2", "low")
    assert two["mesh"] == {"slices": 2, "data": 4} and two["chips"] == 8
    share = aot.compile_for(tiny(), "v5e:4x4/chip", "low")
    assert share["chips"] == 1 and share["batch_rows"] == 32 and not share["collectives"]


@pytest.mark.aot
@needs_libtpu
def test_the_command_line_says_what_to_change_and_finds_it(tmp_path):
    def run(*more):
        command = [sys.executable, str(runs.ROOT / "launch" / "compile.py"), f"--config={runs.ROOT}/configs/pretrain.py:tiny", *more]
        return subprocess.run(command, env=runs.environment(tmp_path), capture_output=True, text=True, timeout=400)

    good = run("--topology=v5e:2x2", "--effort=low", f"--json={tmp_path}/out.jsonl")
    assert good.returncode == 0 and "fits, peak" in good.stdout and "all-reduce" in good.stdout, good.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["fits"]

    wide = "--config.train.batch_rows=262144", "--config.data.length=64", "--topology=v5e:2x2", "--effort=low"
    large = run(*wide)
    assert large.returncode == 2 and "DOES NOT FIT" in large.stdout
    assert "--suggest tries them" in large.stderr.splitlines()[-1] and "Traceback" not in large.stderr
    found = run(*wide, "--suggest")
    assert found.returncode == 2 and "fits with --config." in found.stderr.splitlines()[-1], found.stderr

    names = ("v5e:3x5", "unknown"), ("v7x:2x2", "unknown"), ("0*v5e:2x2", "unknown"), ("", "empty"), ("v5e:4x4", "cannot be dealt out")
    for name, words in names:
        wrong = run(f"--topology={name}", "--config.train.batch_rows=24", "--effort=low")
        assert wrong.returncode == 2 and words in wrong.stderr.splitlines()[-1] and "Traceback" not in wrong.stderr, wrong.stderr


def test_knobs_go_from_cheap_to_dear():
    changes = list(aot.knobs(get_config("large").to_dict(), 16))
    assert changes[0] == {"model.attention_dropout": 0.0}
    names = [tuple(change) for change in changes]
    first = [next(i for i, n in enumerate(names) if name in n) for name in ("train.accumulation_steps", "model.remat", "parallel.fsdp")]
    assert first == sorted(first)
    assert all(change.get("parallel.fsdp", 1) <= 16 for change in changes)
    assert get_config("large").model.remat == "none"  # an override copies

    given = {"model.attention_dropout": 0.0, "model.remat": "full", "parallel.fsdp": 8, "parallel.data": 2}
    later = list(aot.knobs(aot.override(get_config("large").to_dict(), given), 16))
    assert not any("model.remat" in change for change in later)  # what was asked for is never undone
    assert [c["parallel.fsdp"] for c in later if list(c) == ["parallel.fsdp", "parallel.data"]] == [16]


@needs_libtpu
def test_an_unknown_topology_names_some():
    with pytest.raises(UserError, match="v5e:4x7' is unknown.*v5e:4x4"):
        topology.devices("v5e:4x7")


def test_the_table_and_the_key():
    config = get_config("base,flash").to_dict()
    other = get_config("base_pp,flash").to_dict()
    row = {
        "topology": "v5e:4x4",
        "batch_rows": 256,
        "length": 512,
        "attention": "splash",
        "peak_gib": 4.0,
        "fits": True,
        "hbm_gib": 16.0,
        "arguments_gib": 1.3,
        "state_gib": 1.3,
        "effort": "low",
        "collectives": {"all-reduce": {"count": 5, "bytes": 5 << 20, "dtypes": ["f32"]}},
    }
    large = row | {"fits": False, "peak_gib": None, "collectives": {}}
    text = aot.table([("base,flash", {"parallel.fsdp": 4}, row), ("large,flash", {}, large)])
    assert "| splash | more does not fit | 16 | 1.30 |  |" in text
    assert "| base,flash fsdp=4 | v5e:4x4 | 256 x 512 | splash | 4.00 |" in text and "5 all-reduce 5 MiB f32" in text
    if importlib.util.find_spec("libtpu"):
        assert aot.key(config, "v5e:4x4", "low") == aot.key(other, "v5e:4x4", "low")  # they differ in the number of steps alone
        assert aot.key(config, "v5e:4x4", "low") != aot.key(aot.override(config, {"model.remat": "full"}), "v5e:4x4", "low")


def test_a_result_knows_the_code_of_its_step_and_not_what_is_said_of_it(tmp_path):
    def hashed(name, edit, file="models/ops/dense.py"):
        root = tmp_path / name
        shutil.copytree(runs.ROOT / "electra_jax", root)
        (root / file).write_text(edit((root / file).read_text()))
        return aot.step_code(root)

    now = aot.step_code()
    assert now == hashed("docstring", lambda text: text.replace('"""x @ kernel, [N, F], in', '"""The product, in'))
    assert now == hashed("comment", lambda text: text.replace("  # the last for its type", ""))
    assert now == hashed("elsewhere", lambda text: text + "X = 1\n", file="cli.py")
    assert now == hashed("table", lambda text: text.replace('"more"', '"too much"'), file="aot.py")
    assert now != hashed("price", lambda text: text.replace("819e9", "820e9"), file="aot.py")
    assert now != hashed("code", lambda text: text.replace("times(grad_NxF.T, x_NxC)", "times(grad_NxF.T, x_NxC + 0)"))
