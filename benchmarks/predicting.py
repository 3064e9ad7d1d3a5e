"""Prediction with a fine-tuned model beside transformers' pipeline: rows per second, and seconds until the first prediction."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import labelled, step
from benchmarks.labelled import Labelled
from benchmarks.processes import Side, Spread, Turns, first_turn_secs, measure, spread
from benchmarks.tables import Table, number, share, times
from electra_jax.cli import UserError

Run = Callable[[], dict[str, float]]
OURS, THEIRS, SORTED = "electra_jax", "transformers' pipeline", "transformers' pipeline, texts sorted by length"
STARTS = 2  # how many processes of each side are started, to time the first prediction


def predicting(model: str, task: str, num_rows: int | None = None, batch_tokens: int = 0) -> Run:
    """A turn predicts the task's sentences: the first `num_rows`, or all of them."""
    from electra_jax.finetune import features
    from electra_jax.finetune.examples import Example
    from electra_jax.infer import predict
    from electra_jax.interop import formats

    texts, opened = [text for text, _ in labelled.examples(task)[:num_rows]], predict.load_task(model, batch_tokens)
    examples = [Example(str(number), (text,), None, "") for number, text in enumerate(texts)]
    lengths = [len(tokens) for tokens in features.encode_texts(examples, opened.tokenizer, length=opened.config.length).tokens]
    flops = labelled.real_flops(formats.read(model, with_slots=False).config, lengths, 1.0)

    def run() -> dict[str, float]:
        predictions = list(opened.predict(texts))
        return {"rows": len(predictions), "flops": flops, "probability": predictions[0].probability}

    return run


def table(preset: str, given: Labelled, num_rows: int, rounds: int, environment: Mapping[str, Any]) -> Table:
    sides = _sides(given, num_rows)
    peak, dtype = step.peak_side(environment["platform"])
    turns = measure([*sides, peak], rounds, optional=[THEIRS, SORTED])
    first, every = ({side.name: _first_secs(side, number, rounds) for side in sides} for number in (1, num_rows))
    lines = [_line(side.name, turns, first, every) for side in sides if side.name in turns.samples]
    lines += [[name, reason] for name, reason in turns.failed.items()]
    tera = turns.rate(step.PEAK, "flops").median / 1e12
    return Table(
        "predict",
        f"`{preset}`, two labels, {num_rows} texts of SST-2's lengths, {dtype}; {rounds} rounds, in which a matrix product reached "
        f"{number(tera)} TFLOP/s; {min(rounds, STARTS)} starts, nothing compiled before.",
        ("side", "rows/s", "peak MiB", "ours in x of it", "share of the matrix product", "s to the first prediction", "s to all, at first"),
        lines,
        {"turns": turns.samples, "first": first, "every": every},
    )


def _sides(given: Labelled, num_rows: int) -> list[Side]:
    ours = Side(OURS, "benchmarks.predicting:predicting", {"model": given.ours, "task": given.task, "num_rows": num_rows})
    theirs = {"model": given.theirs, "task": given.task, "num_rows": num_rows}
    return [
        ours,
        *(
            Side(name, "benchmarks.peers:predict", {**theirs, "is_sorted": name == SORTED}, needs=("torch", "transformers"))
            for name in (THEIRS, SORTED)
        ),
    ]


def _first_secs(side: Side, num_rows: int, rounds: int) -> Spread | None:
    """Seconds from the start of the process to the end of its first turn; None if the side cannot run."""
    try:
        fixed = {"batch_rows": 32} if side.name != OURS else {}
        side = side._replace(arguments={**side.arguments, "num_rows": num_rows, **fixed})
        return spread([first_turn_secs(side) for _ in range(min(rounds, STARTS))])
    except UserError:
        return None


def _line(side: str, turns: Turns, first: Mapping[str, Spread | None], every: Mapping[str, Spread | None]) -> list[str]:
    triples = zip(turns.samples[OURS], turns.samples[side], turns.samples[step.PEAK], strict=True)
    of_peak = [o["flops"] / s["wall"] / (p["flops"] / p["wall"]) for o, s, p in triples]
    best = turns.samples[side][-1]
    how = f", {best['batch_rows']} at a time" if "batch_rows" in best else ""
    return [
        f"{side}{how}",
        number(turns.rate(side, "rows").median),
        number(turns.peak(side)),
        "1" if side == OURS else times(turns.rates(OURS, side, "rows")),
        share(spread(of_peak)),
        *(number(secs[side].median) if secs[side] else "" for secs in (first, every)),
    ]
