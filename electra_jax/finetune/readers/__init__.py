"""Readers of files with labelled examples: one module for each format.

To add a format, write a module with a function `examples`, as in glue.py, and give it a line in FORMATS:

    examples(stream, path, layout: Layout, counts: Counter) -> Iterator[Example], one for each row, in the order of the file.
      stream: the decompressed bytes, after any byte-order mark; for a format in BINARY the file itself, which can seek.
      path: the name that messages give the stream. counts: the reader counts here what it drops or changes, for the user to be told.

A reader gives tags as the file has them; `read` converts them to IOB2.
"""

import contextlib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from electra_jax.cli import UserError
from electra_jax.data.readers.compressions import COMPRESSIONS
from electra_jax.data.readers.decoding import text_stream
from electra_jax.data.readers.files import is_special, reading
from electra_jax.finetune import tags
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.options import load

FORMATS = {
    "glue": "electra_jax.finetune.readers.glue",
    "squad": "electra_jax.finetune.readers.squad",
    "columns": "electra_jax.finetune.readers.columns",
    "conllu": "electra_jax.finetune.readers.conllu",
    "csv": "electra_jax.finetune.readers.table",
    "tsv": "electra_jax.finetune.readers.table",
    "jsonl": "electra_jax.finetune.readers.table",
    "parquet": "electra_jax.finetune.readers.table",
    "lines": "electra_jax.finetune.readers.plain",
}
BINARY = ("parquet",)
ONE_KIND = {"columns": "tags", "conllu": "tags", "squad": "answer"}  # of the formats that hold one kind of task alone
# The ending of a user's file -> its format.
ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".json": "squad",
    ".conllu": "conllu",
    ".conll": "columns",
    ".iob": "columns",
    ".bio": "columns",
    ".txt": "columns",
}
# Inputs other than local files, by their prefix. Their modules have `examples(item, layout, counts)`.
SCHEMES = {"tfds:": "electra_jax.finetune.readers.tfds"}


class Reading(NamedTuple):
    examples: list[Example]
    counts: dict[str, int]  # "rows": how many were read; and for each reason, how many were dropped, or kept in spite of it


def format_of(path: str) -> str | None:
    """The format by the ending of a file's name, compressed or not; None if the ending tells none."""
    stem, ending = os.path.splitext(path.lower())
    return ENDINGS.get(os.path.splitext(stem)[1] if ending in COMPRESSIONS else ending)


def read(path: str, layout: Layout) -> Reading:
    """All examples of a file, or of `tfds:NAME:SPLIT`, in its order, and what the user is to be told of them.

    If the layout does not allow something in the file, UserError names the file, the line, and how to mend it.
    """
    counts = Counter()
    examples = list(each(path, layout, counts))
    if not examples:
        raise nothing_in(path, counts)
    if layout.kind == "answer":
        _refuse_double(examples)
    if layout.kind in ("class", "classes", "tags"):
        _refuse_alike(examples, layout.kind)
    if layout.kind in ("class", "classes") and layout.labelled and not layout.labels and not layout.header:
        _refuse_header(examples, layout.kind)
    if layout.kind == "tags":
        examples = _normalized(examples, layout, counts)
        if layout.scheme == "auto":
            _refuse_header(examples, layout.kind)
    rows = len(examples) + sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    return Reading(examples, {"rows": rows} | {reason: count for reason, count in counts.items() if count})


def each(path: str, layout: Layout, counts: Counter, file: BinaryIO | None = None) -> Iterator[Example]:
    """Yields the same examples, but with tags as the file has them. From lines and tables, only a part of the file is in memory at a time.

    counts: filled as `Reading.counts`, without "rows". file: an open stream to read instead, such as standard input; `path` is then only
    the name that messages give it.
    """
    if scheme := next((scheme for scheme in SCHEMES if path.startswith(scheme)), None):
        yield from load(SCHEMES, scheme).examples(path, layout, counts)
        return
    if file is None and is_special(path):
        raise UserError(f"{path} is no ordinary file: give one (from a pipe, write it to a file first)")
    with reading(path), open(path, "rb") if file is None else contextlib.nullcontext(file) as opened:
        compression = os.path.splitext(path.lower())[1]
        binary = layout.format in BINARY
        if binary and compression in COMPRESSIONS:
            raise UserError(f"{path}: a .{layout.format} file is compressed within, and is read as it is: decompress it")
        stream = opened if binary else text_stream(opened, compression if compression in COMPRESSIONS else "", path)
        yield from load(FORMATS, layout.format).examples(stream, path, layout, counts)


def nothing_in(path: str, counts: Counter) -> UserError:
    told = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    return UserError(f"{path} holds no example{f' ({told})' if told else ''}: name a file with rows")


def _refuse_double(examples: list[Example]) -> None:
    """Raises UserError for an ID that occurs twice: the IDs of questions are all that tells SQuAD's predictions, and so its scores,
    apart."""
    seen = {}
    for example in examples:
        if (first := seen.setdefault(example.id, example)) is not example:
            raise UserError(f"{example.where}: the id {example.id!r} stands at {first.where} already: give each row its own")


def _labels(example: Example, kind: str) -> tuple[str, ...]:
    return (example.label,) if kind == "class" and example.label is not None else example.label or ()


def _refuse_alike(examples: list[Example], kind: str) -> None:
    """Raises UserError for two labels that Unicode counts as the same text: an accent is a character of its own, or a part of one."""
    seen = {}
    for example in examples:
        for label in _labels(example, kind):
            one, where = seen.setdefault(label if label.isascii() else unicodedata.normalize("NFC", label), (label, example.where))
            if one != label:
                raise UserError(
                    f"{example.where}: the label {ascii(label)} looks like {ascii(one)} of {where}, and has other characters (Unicode's "
                    "forms of one text): write both alike"
                )


def _refuse_header(examples: list[Example], kind: str) -> None:
    """Raises UserError if the first line of a file without a header may be one: nothing else has its label, while others share theirs."""
    counts = Counter(label for example in examples for label in _labels(example, kind))
    first = _labels(examples[0], kind) if examples[0].where.endswith(":1") else ()
    if kind == "tags":  # one for each line; where they are of spans, the scheme tells a header
        first = tuple(tag for tag in first[:1] if not tags.is_of_span(tag))
    if first and max(counts[label] for label in first) == 1 < max(counts.values()):
        header, otherwise = "say task.header=True and give columns by their names", "list the labels (task.labels)"
        if kind == "tags":
            header, otherwise = "delete it", "say that each tag is of its word alone (task.tag_scheme=tokens)"
        raise UserError(
            f"{examples[0].where}: no other {'word' if kind == 'tags' else 'row'} has its label {first[0]!r}: if the line is a header, "
            f"{header}; otherwise {otherwise}"
        )


def _normalized(examples: list[Example], layout: Layout, counts: Counter) -> list[Example]:
    """The examples with tags in IOB2 if they are of spans."""

    def where(number: int, word: int) -> str:
        place = labelled[number].where
        if layout.format != "columns":
            return f"{place}, word {word + 1}"
        path, line = place.rsplit(":", 1)  # a sentence's words stand on lines that follow one another
        return f"{path}:{int(line) + word}"

    labelled = [example for example in examples if example.label is not None]
    found, broken = tags.normalized([example.label for example in labelled], layout.scheme, layout.lenient, where)
    if broken:
        counts["with tags that break their scheme, read as conlleval reads them"] += broken
    given = itertools.chain(found)
    return [example if example.label is None else example._replace(label=next(given)) for example in examples]
