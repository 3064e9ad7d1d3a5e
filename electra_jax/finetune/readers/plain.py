"""Plain text for predicting, one row per line, without labels. A tab separates the two texts of a pair, white space separates words."""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import lines
from electra_jax.finetune.readers.rows import example


def examples(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    if layout.labelled:
        raise UserError(f"{path}: lines of plain text have no labels: give a table, or another task.format")
    for number, line in lines(stream, path):
        where, content = f"{path}:{number}", line.rstrip("\r\n")
        fields = content.split("\t") if len(layout.texts) > 1 else [content]
        if len(fields) != len(layout.texts):
            raise UserError(f"{where} has {len(fields)} texts, and a row {len(layout.texts)}, with a tab between: mend the line")
        found = example(dict(zip(layout.texts, fields, strict=True)), layout, where, number - 1, counts)
        if found is not None:
            yield found
