"""How to read a file that is to be predicted: its format follows from its ending, its columns from how the training file was read."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from electra_jax.cli import UserError
from electra_jax.data.readers.compressions import COMPRESSIONS
from electra_jax.finetune import described
from electra_jax.finetune.config import TaskConfig
from electra_jax.finetune.readers import BINARY, ENDINGS, ONE_KIND, format_of
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.tasks import TASKS, Task

STANDARD_INPUT = "-"
OPTIONS = ("format", "text_columns", "id_column", "header", "delimiter", "quotes", "bad_rows")  # of TaskConfig: how to read a file
_TABLES = ("csv", "tsv", "jsonl", "parquet", "glue", "tfds")


def layout_of(task: Task, path: str, given: Mapping[str, Any]) -> Layout:
    """How to read `path` ("-": standard input) for the model of this task. Labels are never read.

    given: those of OPTIONS that a person set. If there are none but bad_rows, and the file is called as one of the task's own files, it is
    read as that file. Otherwise a file of the training file's format is read as the training file was; for another table, only the names of
    its columns are used. UserError if the file's ending tells no format, or if this format does not hold what the model needs.
    """
    known = TASKS.get(task.name)
    given = {name: value for name, value in given.items() if (name, value) != ("format", "auto")}  # which is the default of the config
    official = _split(known, path) if known and not given.keys() - {"bad_rows"} else None
    if official:
        layout = known.layout_of(official)
        drop = given["bad_rows"] == "drop" if given.get("bad_rows") else layout.drop
        return dataclasses.replace(layout, label="", labelled=False, start="", drop=drop)
    format = given.get("format") or _format(path, task.kind)
    if path == STANDARD_INPUT and format in BINARY:
        raise UserError(f"{format} cannot be read from a pipe: write it to a file first (--input=FILE)")
    needs = ONE_KIND.get(format, task.kind)
    if needs != task.kind:
        has = {"tags": "words with tags", "answer": "questions with contexts"}[needs]
        raise UserError(f"{path}: a file of the format {format} has {has}, and this model predicts {_predicts(task.kind)}: give a table")
    options = {**_as_trained(task, format), **given, "kind": task.kind, "format": format}
    layout = described.own_layout(TaskConfig(**options), format)
    check_texts(task, layout.texts, f"{path} is read with task.text_columns={','.join(layout.texts)}")
    return dataclasses.replace(layout, label="", labelled=False, start="")


def check_texts(task: Task, texts: Sequence[str], what: str) -> None:
    """UserError if a row has one text and the model was trained on pairs, or the reverse. What is not known of a model is not checked:
    a folder of transformers does not say which of them it is for."""
    trained = task.layout
    if trained.format and trained.kind in ("class", "classes", "number") and len(texts) != len(trained.texts):
        counts = {1: "single texts", 2: "pairs of texts"}
        raise UserError(f"{what}, and the model was trained on {counts[len(trained.texts)]}, not on {counts[len(texts)]}")


def _predicts(kind: str) -> str:
    return {"class": "a class", "classes": "classes", "number": "a number", "tags": "tags of words", "answer": "answers in a context"}[kind]


def _split(task: Task, path: str) -> str | None:
    """The split whose file, among the task's own, has this name; None if none has."""
    name = os.path.basename(path)
    stem, ending = os.path.splitext(name)
    name = stem if ending in COMPRESSIONS else name
    return next((split for split, names in task.files.items() if name in names), None)


def _format(path: str, kind: str) -> str:
    if path == STANDARD_INPUT:
        return "lines"
    stem, ending = os.path.splitext(path.lower())
    if kind != "tags" and ".txt" in (ending, os.path.splitext(stem)[1]) and format_of(path):
        return "lines"
    found = format_of(path)
    if found is None:
        raise UserError(
            f"{path}: its ending tells no format ({', '.join(ENDINGS)}, also {', '.join(COMPRESSIONS)}): say --task.format=csv, lines ..."
        )
    return found


def _as_trained(task: Task, format: str) -> dict[str, Any]:
    """{field of TaskConfig: value}: what the training file's layout says about a file of this format."""
    trained = task.layout
    if format == "lines":
        return {"text_columns": ("first text", "second text")} if len(trained.texts) == 2 and task.kind != "answer" else {}
    if format == trained.format or (trained.format, format) == ("glue", "tsv"):
        found: dict[str, Any] = {} if format == "squad" else {"text_columns": trained.texts}
        if format in ("csv", "tsv"):
            found |= {"header": trained.header, "delimiter": trained.delimiter, "quotes": trained.quotes}
        return found
    return {"text_columns": trained.texts} if trained.format in _TABLES and format in _TABLES and trained.header else {}
