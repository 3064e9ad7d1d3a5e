"""Which files of labelled examples can be read: each format has a module of its own here.

To add a format, write one module with `examples`, as glue.py has it, and give it a line in FORMATS:

    examples(stream, path, layout: Layout, counts: Counter) -> Iterator[Example], a row each, in the order of the file.
      stream: the text, decompressed and begun behind a byte-order mark (of a format in BINARY: the file as it lies, which can seek).
      path is what messages call the stream. counts: what was dropped or kept for a reason, which a person is told.

Tags leave a reader as the file has them; `read` brings them to IOB2.
"""

import itertools
import os
from collections import Counter
from typing import NamedTuple

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
    scheme = next((scheme for scheme in SCHEMES if path.startswith(scheme)), None)
    if scheme:
        examples = list(load(SCHEMES, scheme).examples(path, layout, counts))
    else:
        if is_special(path):
            raise UserError(f"{path} is no ordinary file: give one (from a pipe, write it to a file first)")
        with reading(path), open(path, "rb") as file:
            compression = os.path.splitext(path.lower())[1]
            binary = layout.format in BINARY
            stream = file if binary else text_stream(file, compression if compression in COMPRESSIONS else "", path)
            examples = list(load(FORMATS, layout.format).examples(stream, path, layout, counts))
    if not examples:
        told = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
        raise UserError(f"{path} holds no example{f' ({told})' if told else ''}: name a file with rows")
    if layout.kind == "answer":
        _refuse_double(examples)
    if layout.kind == "tags":
        examples = _normalized(examples, layout, counts)
    rows = len(examples) + sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    return Reading(examples, {"rows": rows} | {reason: count for reason, count in counts.items() if count})


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
