"""TSV as GLUE publishes it (nyu-mll/GLUE-baselines `download_glue_data.py`): a tab always parts columns, and quotes are only text.

MRPC's sentences quote freely, one quote without its other; a reader that heeds quotes joins rows there without a word.
"""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import lines
from electra_jax.finetune.readers.rows import delimited


def examples(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    return delimited(split_lines(stream, path, "\t"), path, layout, counts)


def split_lines(stream: BinaryIO, path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number, columns) of each line; of an empty one, no columns."""
    for number, line in lines(stream, path):
        line = line.rstrip("\r\n")
        yield number, line.split(delimiter) if line else []
