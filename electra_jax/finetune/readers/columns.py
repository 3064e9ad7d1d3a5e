"""Columns as in the CoNLL shared tasks: one word per line, its tag in the last column, an empty line after each sentence.

CoNLL-2000 and 2003 separate columns by spaces, WNUT-17 by tabs; the "empty" lines of WNUT-17 hold a tab. CoNLL-2003 begins each document
with a line -DOCSTART-, which is no word (google-research/electra `finetune/tagging/tagging_tasks.py` leaves it out as well).
"""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import lines


def examples(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    word_column, tag_column = layout.texts[0], layout.label
    words, tags, first, width, number = [], [], 0, None, 0

    def sentence() -> Iterator[Example]:
        nonlocal number
        if words:
            label = tuple(tags) if tags else None
            counts["without a label"] += label is None
            yield Example(str(number), tuple(words), label, f"{path}:{first}")
            number += 1
            words.clear()
            tags.clear()

    for line, content in lines(stream, path):
        content = content.rstrip("\r\n")
        if not content.strip(" \t"):
            yield from sentence()
            continue
        # Only spaces and tabs separate columns: a word may contain other white space of Unicode and, in a line with tabs, spaces.
        fields = content.split("\t") if "\t" in content else [field for field in content.split(" ") if field]
        if fields[0] == "-DOCSTART-":
            yield from sentence()
            counts["documents"] += 1
            continue
        where = f"{path}:{line}"
        if width is None:
            width = len(fields)
            word_at = _place(word_column, width, where, layout)
            tag_at = _place(tag_column, width, where, layout) if tag_column else None
            if tag_at == word_at or tag_at is None:
                tag_at = None
                if layout.labelled:
                    raise UserError(f"{where} has no column of tags: give each line a word and its tag, parted by a space or a tab")
        if len(fields) != width:
            raise UserError(f"{where} has {len(fields)} columns, and the first word {width}: mend the line")
        if not words:
            first = line
        if not fields[word_at].strip() or tag_at is not None and not fields[tag_at].strip():
            raise UserError(f"{where}: its {'tag' if fields[word_at].strip() else 'word'} is empty: mend the line")
        words.append(fields[word_at])
        if tag_at is not None:
            tags.append(fields[tag_at])
    yield from sentence()


def _place(column: str, width: int, where: str, layout: Layout) -> int | None:
    if not column.removeprefix("-").isdecimal():
        raise UserError(f"{where}: columns have numbers here, 0 to {width - 1}, not {column!r} (task.text_columns, task.label_column)")
    if -width <= int(column) < width:
        return int(column) % width
    if column == layout.label and not layout.labelled:
        return None
    raise UserError(f"{where} has no column {column}, but 0 to {width - 1}: name the right one (task.text_columns, task.label_column)")
