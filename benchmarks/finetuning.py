"""Fine-tuning beside transformers: the step on batches of several lengths, five seeds in one program, and the cost of making rows and
batches."""

import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import step
from benchmarks.labelled import BATCH_ROWS, Labelled, real_flops, recipe
from benchmarks.processes import Side, Turns, measure, spread
from benchmarks.tables import Table, number, share, times
from electra_jax.finetune.recipe import FinetuneRecipe

Run = Callable[[], dict[str, float]]
OURS, SEEDS, THEIRS, ROWS = "electra_jax", "electra_jax, five seeds at once", "transformers", "rows"
NUM_SEEDS, EPOCHS = 5, 3  # as published, of SST-2


# --- Sides


def tuning(stored: Mapping[str, Any], given: tuple[str, ...], steps: int) -> Run:
    """A turn takes `steps` of the steps that `finetune` takes, and makes the batch of each. given: the fields that count as set by
    flags."""
    import jax
    import numpy as np

    from electra_jax.finetune import training
    from electra_jax.parallel import executors

    executors.run_in_the_call()
    work = training.open_work(FinetuneRecipe.parse(stored, given), pathlib.Path(tempfile.mkdtemp()))
    parts, programs = work.parts, work.parts.programs()
    batches, state = work.batches(0, np.arange(parts.batch_rows)), parts.init(parts.root)
    compile_secs = {}

    def run() -> dict[str, float]:
        nonlocal state
        flops, num_rows = 0.0, 0
        for _ in range(steps):
            batch = next(batches)
            program = programs.of(batch)
            compile_secs[batch.tokens.shape[1]] = program.compile_secs
            state, metrics = program.run(state, program.place(batch))
            lengths = (batch.segments > 0).sum(1)
            flops, num_rows = flops + real_flops(work.recipe.model, lengths, 3.0), num_rows + int((lengths > 0).sum())
        jax.block_until_ready(state)
        loss = float(metrics["loss"])
        return {"loss": loss, "steps": steps, "flops": flops, "rows": num_rows, "compile_secs": sum(compile_secs.values())}

    return run


def making_rows(stored: Mapping[str, Any], given: tuple[str, ...], steps: int) -> Run:
    """A turn reads and tokenizes the task's files, and makes the batches of an epoch, which has `steps` of them."""
    import numpy as np

    from electra_jax.data import tokenizers
    from electra_jax.finetune import training

    work = training.open_work(FinetuneRecipe.parse(stored, given), pathlib.Path(tempfile.mkdtemp()))
    batches = work.batches(0, np.arange(work.parts.batch_rows))

    def run() -> dict[str, float]:
        tokenizer = tokenizers.load(pathlib.Path(work.recipe.init_from) / "tokenizer")  # a new one, whose cache of words is empty
        start = time.perf_counter()
        made = training.read(work.recipe.task, work.recipe.finetune, work.recipe.model, tokenizer)
        read = time.perf_counter()
        for _ in range(steps):
            next(batches)
        train = len(made.rows["train"].tokens) / sum(len(each.tokens) for each in made.rows.values())  # the training rows' share
        return {"tokenizing": (read - start) * train / steps, "batching": (time.perf_counter() - read) / steps}

    return run


# --- The table


def table(
    published: FinetuneRecipe, preset: str, given: Labelled, num_rows: int, steps: int, rounds: int, environment: Mapping[str, Any]
) -> Table:
    """num_rows: how many rows the task has. steps: how many steps a turn takes."""
    sides = _sides(published, given, num_rows, steps)
    peak, dtype = step.peak_side(environment["platform"])
    turns = measure([*sides, peak], rounds, optional=[THEIRS])
    row_flops = sum(turn["flops"] for turn in turns.samples[OURS]) / sum(turn["rows"] for turn in turns.samples[OURS])
    lines = [_line(name, turns, row_flops) for name in turns.samples if name not in (ROWS, step.PEAK)]
    lines += [[name, reason] for name, reason in turns.failed.items()]
    tera = turns.rate(step.PEAK, "flops").median / 1e12
    making = [
        (made["tokenizing"] / EPOCHS + made["batching"]) / (taken["wall"] / taken["steps"])
        for made, taken in zip(turns.samples[ROWS], turns.samples[OURS], strict=True)
    ]
    return Table(
        "finetune",
        f"`{preset}`, two labels, {BATCH_ROWS} rows a step of SST-2's lengths (mean 13.3 tokens), {dtype}; {rounds} rounds of {steps} "
        f"steps, in which a matrix product reached {number(tera)} TFLOP/s. Reading and tokenizing all rows once for {EPOCHS} epochs, and "
        f"making each step's batch, take {share(spread(making))} of a step.",
        ("side", "examples/s", "s a step of one seed", "peak MiB", "s to compile", "ours in x of it", "share of the matrix product"),
        lines,
        {"turns": turns.samples},
    )


def _sides(published: FinetuneRecipe, given: Labelled, num_rows: int, steps: int) -> list[Side]:
    """Ours with one seed and with five, the making of rows, and the peer."""

    def ours(name: str, function: str = "tuning", steps: int = steps, **changes) -> Side:
        arguments = {"stored": recipe(published, given, **changes).stored(), "steps": steps, "given": ["model.scan_layers"]}
        return Side(name, f"benchmarks.finetuning:{function}", arguments)

    theirs = {"model": given.theirs, "task": given.task, "batch_rows": BATCH_ROWS, "steps": steps}
    return [
        ours(OURS),
        ours(SEEDS, seeds=NUM_SEEDS),  # as many steps: the row lengths of its batches are then those of the one seed
        ours(ROWS, "making_rows", steps=num_rows // BATCH_ROWS),
        Side(THEIRS, "benchmarks.peers:finetune", theirs, needs=("torch", "transformers")),
    ]


def _line(side: str, turns: Turns, row_flops: float) -> list[str]:
    """The batches of a turn may be longer or shorter than those of other turns. So the work per second is compared, and rows per second are
    this rate divided by the mean work of a row."""
    pairs = zip(turns.samples[side], turns.samples[step.PEAK], strict=True)
    of_peak = [s["flops"] / s["wall"] / (p["flops"] / p["wall"]) for s, p in pairs]
    rows_per_sec, compiling = turns.rate(side, "flops").median / row_flops, turns.samples[side][0].get("compile_secs")
    return [
        side,
        number(rows_per_sec),
        number(BATCH_ROWS / rows_per_sec),
        number(turns.peak(side)),
        number(compiling) if compiling else "",
        "1" if side == OURS else times(turns.rates(OURS, side, "flops")),
        share(spread(of_peak)),
    ]
