"""Which files of labelled examples can be read: each format has a module of its own here.

To add a format, write one module with `examples`, as glue.py has it, and give it a line in FORMATS:

    examples(stream, path, layout: Layout, counts: Counter) -> Iterator[Example], a row each, in the order of the file.
      stream: the text, decompressed and begun behind a byte-order mark (of a format in BINARY: the file as it lies, which can seek).
      path is what messages call the stream. counts: what was dropped or kept for a reason, which a person is told.

Tags leave a reader as the file has them; `read` brings them to IOB2.
"""

import contextlib
import itertools
import os
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
# A user's file by the end of its name.
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
# Inputs that are no files of this machine, by their beginning. Such a module has `examples(item, layout, counts)`.
SCHEMES = {"tfds:": "electra_jax.finetune.readers.tfds"}


class Reading(NamedTuple):
    examples: list[Example]
    counts: dict[str, int]  # "rows" that were read, and by their reason those that were dropped or kept although


def format_of(path: str) -> str | None:
    """The format that a file's name tells, whether it is compressed or not; None where it tells none."""
    stem, ending = os.path.splitext(path.lower())
    return ENDINGS.get(os.path.splitext(stem)[1] if ending in COMPRESSIONS else ending)


def read(path: str, layout: Layout) -> Reading:
    """All examples of a file, or of `tfds:NAME:SPLIT`, in its order, and what is to be told of them.

    UserError, a line that names the file, the line in it and the mend, for anything that the layout does not allow.
    """
    counts = Counter()
    examples = list(each(path, layout, counts))
    if not examples:
        raise nothing_in(path, counts)
    if layout.kind == "answer":
        _refuse_double(examples)
    if layout.kind == "tags":
        examples = _normalized(examples, layout, counts)
    rows = len(examples) + sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    return Reading(examples, {"rows": rows} | {reason: count for reason, count in counts.items() if count})


def each(path: str, layout: Layout, counts: Counter, file: BinaryIO | None = None) -> Iterator[Example]:
    """The same examples, one after the other, with tags as the file has them: of lines and tables a part of the file is in memory.

    counts: what `Reading.counts` has, but "rows". file: what is read, where `path` is but the name that messages give it: standard input.
    """
    if scheme := next((scheme for scheme in SCHEMES if path.startswith(scheme)), None):
        yield from load(SCHEMES, scheme).examples(path, layout, counts)
        return
    if file is None and is_special(path):
        raise UserError(f"{path} is no ordinary file: give one (from a pipe, write it to a file first)")
    with reading(path), open(path, "rb") if file is None else contextlib.nullcontext(file) as opened:
        compression = os.path.splitext(path.lower())[1]
        binary = layout.format in BINARY
        stream = opened if binary else text_stream(opened, compression if compression in COMPRESSIONS else "", path)
        yield from load(FORMATS, layout.format).examples(stream, path, layout, counts)


def nothing_in(path: str, counts: Counter) -> UserError:
    told = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    return UserError(f"{path} holds no example{f' ({told})' if told else ''}: name a file with rows")


def _refuse_double(examples: list[Example]) -> None:
    """SQuAD's predictions, and so its scores, are told apart by the questions' ids alone."""
    seen = {}
    for example in examples:
        if (first := seen.setdefault(example.id, example)) is not example:
            raise UserError(f"{example.where}: the id {example.id!r} stands at {first.where} already: give each row its own")


def _normalized(examples: list[Example], layout: Layout, counts: Counter) -> list[Example]:
    """With tags in IOB2 where they are of spans."""

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
