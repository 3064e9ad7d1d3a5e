"""How a person reads a task's metrics: the line that an evaluation prints, the report's curves, and some held-out rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax.finetune.tasks import Task
from electra_jax.views import Curve, Examples, Panel, Run, Span, View

NUM_EXAMPLES = 8
LOWER = "lower optimizer.learning_rate or raise schedule.warmup_steps, in another --workdir"
COLOURS = ("blue", "orange", "green", "purple", "red", "teal", "grey")
LINES = [(colour, dashed) for dashed in (False, True) for colour in COLOURS]  # one for each seed's curve


def make(task: Task, seeds: Sequence[int] = (0,)) -> View:
    """The view of the task's metrics. If several seeds train together, a figure is the median over them, and the report has a curve for
    each."""
    shown = tuple(f"eval/{name}" for name in task.metrics)

    def headline(metrics: Mapping[str, float]) -> str:
        figures = ", ".join(f"{name} {metrics[f'eval/{name}']:.3f}" for name in task.metrics)
        spread = _spread(metrics, shown[0])
        return f"{task.title}: {figures}{spread}"

    def verdict(metrics: Mapping[str, float]) -> str:
        naive = metrics.get("eval/naive")
        beside = f" Always giving the commonest answer reaches {naive:.3f}." if naive is not None else ""
        return f"On {task.title}'s dev set it reaches a {task.headline} of {metrics[shown[0]]:.3f}{_spread(metrics, shown[0])}.{beside}"

    def warnings(metrics: Mapping[str, float], step: int, run: Run) -> list[tuple[str, str]]:
        losses = of_seeds(metrics, "eval/task_loss") or {seeds[0]: metrics["eval/task_loss"]}
        if not (lost := [str(seed) for seed, loss in losses.items() if not math.isfinite(loss)]):
            return []
        return [("diverged", f"the held-out loss of seed {', '.join(lost)} is no number: it has diverged; {LOWER}")]

    def examples(batch: Any, outputs: Mapping[str, np.ndarray], pieces: Any) -> Examples:
        sentences = []
        for ids, segments in list(zip(batch.tokens, batch.segments, strict=True))[:NUM_EXAMPLES]:
            sentences.append([Span(piece, " ") for piece in pieces(ids[segments > 0])])
        return Examples("Held-out rows", "As the model reads them.", sentences)

    naive = (Curve("eval/naive", "commonest answer", "grey", dashed=True),)
    panels = (
        Panel(
            "Loss", "Training and held out.", (Curve("train/task_loss", "training", "blue"), Curve("eval/task_loss", "held out", "orange"))
        ),
        Panel(task.headline, "Held out; of several seeds the median.", (Curve(shown[0], task.headline, "orange"), *naive), "share"),
        *([_panel_of_seeds(task.headline, shown[0], seeds)] if len(seeds) > 1 else []),
    )
    return View(headline, verdict, (*shown, "eval/task_loss", "eval/naive"), warnings, panels, examples)


def _panel_of_seeds(headline: str, metric: str, seeds: Sequence[int]) -> Panel:
    """A curve for each seed. The panel is left out of a report on a single evaluation, because the table of seeds says the same."""
    curves = tuple(Curve(f"{metric}.seed{seed}", f"seed {seed}", *line) for seed, line in zip(seeds, LINES, strict=False))
    reading = "Held out." if len(seeds) <= len(LINES) else f"Held out; the first {len(LINES)} of {len(seeds)} seeds."
    return Panel(f"{headline} of each seed", reading, curves, "share", fewest_points=2)


def of_seeds(metrics: Mapping[str, float], name: str) -> dict[int, float]:
    """{seed: the metric} if several seeds train together, else {}."""
    start = f"{name}.seed"
    return {int(key.removeprefix(start)): value for key, value in metrics.items() if key.startswith(start)}


def _spread(metrics: Mapping[str, float], name: str) -> str:
    values: Sequence[float] = list(of_seeds(metrics, name).values())
    if len(values) < 2:
        return ""
    return f" (median of {len(values)} seeds; mean {np.mean(values):.3f}, deviation {np.std(values, ddof=1):.3f}, best {max(values):.3f})"
