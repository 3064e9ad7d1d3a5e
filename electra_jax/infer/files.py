"""Rows of a file or of standard input -> predictions in a file or on standard output, some rows at a time and in order.

.jsonl   one object per row: "id" and, by the kind of task,
         class     label, probability, probabilities {label: p}        tags     words, tags, probabilities (of each word's tag)
         classes   labels, probabilities {label: p}                    answer   answer, probability, characters [begin, end] or null;
         number    value                                                        no_answer_score, if a question may have no answer
.tsv     one line per row: id, prediction, probability. Several labels are separated as in the task's files, tags by spaces; tabs and line
         ends within a prediction become spaces.
"""

import contextlib
import fcntl
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from electra_jax.cli import UserError
from electra_jax.files import remove_litter, whole_file
from electra_jax.finetune import readers
from electra_jax.finetune.examples import Example
from electra_jax.finetune.rows import Prediction
from electra_jax.finetune.tasks import Task
from electra_jax.infer import inputs
from electra_jax.infer.predict import PORTION_ROWS, TaskModel, portions

STANDARD_OUTPUT = "-"
FORMATS = ("jsonl", "tsv")
_DIGITS = 6  # decimal places of probabilities and numbers: about what float32 can tell apart


class Done(NamedTuple):
    rows: int
    secs: float  # from reading the first row to writing the last
    notes: list[str]  # one line each: what was cut, dropped, or read in spite of a fault


def format_of(output: str, format: str = "") -> str:
    """ "jsonl" or "tsv": as given, or else by the output's ending; for standard output jsonl. Imports and opens nothing."""
    found = format or ("jsonl" if output == STANDARD_OUTPUT else output.lower().rpartition(".")[2])
    if found not in FORMATS:
        raise UserError(f"--output={output}: its ending tells no format: name a file .jsonl or .tsv, or say --output_format")
    return found


def check_paths(source: str, target: str) -> None:
    """Raises UserError if the input cannot be read, if a standard stream that is wanted is closed, if the output is the input itself, or if
    the output's folder is missing. It is called before a model is loaded."""
    for path, standard, stream, flag in (
        (source, inputs.STANDARD_INPUT, sys.stdin, "input"),
        (target, STANDARD_OUTPUT, sys.stdout, "output"),
    ):
        if path == standard and stream is None:  # as under a service manager
            raise UserError(f"standard {flag} is closed: name a file (--{flag}=FILE)")
    if source != inputs.STANDARD_INPUT:
        if not os.path.exists(source):
            raise UserError(f"{source}: no such file")
        if os.path.isdir(source):
            raise UserError(f"{source} is a folder: name a file")
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise UserError(f"{source} is no ordinary file: read a pipe as standard input (--input=-)")
        if target != STANDARD_OUTPUT and os.path.exists(target) and os.path.samefile(source, target):
            raise UserError(f"--output={target} is the input itself: name another file")
    if target != STANDARD_OUTPUT and not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise UserError(f"--output={target}: there is no folder {os.path.dirname(os.path.abspath(target))}: make it first")


def predict_file(
    model: TaskModel,
    source: str,
    target: str,
    *,
    format: str = "",
    portion_rows: int = PORTION_ROWS,
    given: Mapping[str, Any] | None = None,
) -> Done:
    """Predicts every row of `source` and writes the predictions to `target`. "-" stands for standard input or output.

    The predictions of some rows are written and flushed before the next rows are read. The target file appears once it is complete: if
    the process dies before, the file that was there before stays.
    format: of the target. given: how to read the source, see inputs.layout_of.

    Raises UserError for what the readers refuse in a row; it names the file, the line and how to mend it.
    """
    form = format_of(target, format)
    check_paths(source, target)
    layout, counts, written, cut = inputs.layout_of(model.task, source, given or {}), Counter(), 0, 0
    start = time.monotonic()
    with reading(source) as (name, file), writing(target) as out, meter() as advance:
        out.write(_HEADERS[form].encode())
        for some in portions(readers.each(name, layout, counts, file), portion_rows):
            predictions, cut_here = model.of_examples(some)
            lines = [_LINES[form](model.task, *pair) for pair in zip(some, predictions, strict=True)]
            write(out, "".join(lines).encode())
            written, cut = written + len(some), cut + cut_here
            advance(len(some))
        if not written:
            raise readers.nothing_in(name, counts)
    secs = time.monotonic() - start
    notes = [f"{name}: {count:,} {reason}" for reason, count in counts.items() if reason != "without a label" and count]
    if cut:
        notes.append(f"{name}: {model.cut_note(cut, written)}")
    return Done(written, secs, notes)


@contextlib.contextmanager
def reading(source: str) -> Iterator[tuple[str, BinaryIO | None]]:
    """(the input's name in messages, the open stream; None for a file, which the reader opens itself)."""
    if source != inputs.STANDARD_INPUT:
        yield source, None
        return
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
        yield "standard input", raw


@contextlib.contextmanager
def writing(target: str) -> Iterator[BinaryIO]:
    if target == STANDARD_OUTPUT:
        sys.stdout.flush()
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            yield out
    elif os.path.exists(target) and not os.path.isfile(target):  # /dev/null or a named pipe must not be replaced by a file
        with open(target, "wb") as out:
            yield out
    else:
        target = os.path.realpath(target)
        remove_litter(target)  # of a killed run, as large as what it had written
        with whole_file(target) as temporary, open(temporary, "wb") as out:
            with contextlib.suppress(OSError):  # a file system without locks, where no litter is removed either
                fcntl.flock(out, fcntl.LOCK_EX)
            yield out


def write(out: BinaryIO, data: bytes) -> None:
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # what is still in the buffer is then discarded without a further error
        raise UserError("whoever read the output has closed it before the end: the rows after that are not predicted") from None


@contextlib.contextmanager
def meter() -> Iterator[Any]:
    """meter(number of rows) advances a counter with its rate on stderr, if that is a terminal."""
    import tqdm

    with tqdm.tqdm(unit=" rows", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


# --- A row


def _record(task: Task, example: Example, found: Prediction) -> dict[str, Any]:
    def short(p: float) -> float:
        return round(p, _DIGITS)

    def every(more: Mapping[str, float]) -> dict[str, float]:
        return {label: short(p) for label, p in more.items()}

    if task.kind == "class":
        fields = {"label": found.value, "probability": short(found.probability), "probabilities": every(found.more)}
    elif task.kind == "classes":
        fields = {"labels": list(found.value), "probabilities": every(found.more)}
    elif task.kind == "number":
        fields = {"value": short(found.value)}
    elif task.kind == "tags":
        fields = {"words": list(example.texts), "tags": list(found.value), "probabilities": list(map(short, found.probability))}
    else:
        best = next((entry for entry in found.more.nbest if entry.text == found.value), None)
        span = list(best.span) if best and best.span else None
        fields = {"answer": found.value, "probability": short(found.probability), "characters": span}
        if task.unanswerable:
            fields["no_answer_score"] = short(found.more.null_score)
    return {"id": example.id, **fields}


def _json_line(task: Task, example: Example, found: Prediction) -> str:
    return json.dumps(_record(task, example, found), ensure_ascii=False) + "\n"


def _tsv_line(task: Task, example: Example, found: Prediction) -> str:
    record = _record(task, example, found)
    value = record.get("label", record.get("value", record.get("answer")))
    shown = [record.get("probability", "")]
    if task.kind == "classes":
        value, shown = task.layout.separator.join(found.value), [record["probabilities"][label] for label in found.value]
    elif task.kind == "tags":
        value, shown = " ".join(found.value), record["probabilities"]
    columns = [example.id, str(value), (" " if task.kind == "tags" else ",").join(map(str, shown))]
    return "\t".join(" ".join(column.replace("\t", "\n").splitlines()) for column in columns) + "\n"


_LINES = {"jsonl": _json_line, "tsv": _tsv_line}
_HEADERS = {"jsonl": "", "tsv": "id\tprediction\tprobability\n"}
