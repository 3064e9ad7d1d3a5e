"""TSV as GLUE publishes it (nyu-mll/GLUE-baselines `download_glue_data.py`): a tab always separates columns, and quotes are only text.

MRPC's sentences have quotes without a counterpart. A reader that gives quotes a meaning silently joins rows there.
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
    """Yields (number, columns) of each line; an empty line has no columns."""
    for number, line in lines(stream, path):
        line = line.rstrip("\r\n")
        yield number, line.split(delimiter) if line else []
