"""CoNLL-U (universaldependencies.org/format.html): ten columns separated by tabs, comments before a sentence, an empty line after it.

Two kinds of lines are left out, because they are no tagged words: a multiword token (ID 1-2, "don't"), whose words follow in lines of
their own, and an empty node (ID 1.1), which is not in the text.
"""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import lines
from electra_jax.options import one_of

COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def examples(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    for name in filter(None, (*layout.texts, layout.label)):
        one_of("a column of CoNLL-U (task.text_columns, task.label_column)", name, COLUMNS)
    form, tag = COLUMNS.index(layout.texts[0]), COLUMNS.index(layout.label) if layout.label else None
    words, tags, first, id_, number = [], [], 0, None, 0

    def sentence() -> Iterator[Example]:
        nonlocal number, id_
        if words:
            label = None if all(each == "_" for each in tags) else tuple(tags)
            if layout.labelled and "_" in tags:
                raise UserError(
                    f"{path}:{first}: word {tags.index('_') + 1} of the sentence has no {layout.label}: tag it, or leave it out"
                )
            counts["without a label"] += label is None
            yield Example(str(number) if id_ is None else id_, tuple(words), label, f"{path}:{first}")
            number += 1
        words.clear()
        tags.clear()
        id_ = None

    for line, content in lines(stream, path):
        content, where = content.rstrip("\r\n"), f"{path}:{line}"
        if not content.strip():
            yield from sentence()
            continue
        if content.startswith("#"):
            if words:
                raise UserError(f"{where}: a comment stands within a sentence: put an empty line before it")
            name, _, value = content[1:].partition("=")
            if name.strip() == "sent_id":
                id_ = value.strip()
            continue
        fields = content.split("\t")
        if len(fields) != len(COLUMNS):
            raise UserError(f"{where} has {len(fields)} columns, and CoNLL-U {len(COLUMNS)}, parted by tabs: mend the line")
        if "-" in fields[0] or "." in fields[0]:
            counts["multiword tokens left out" if "-" in fields[0] else "empty nodes left out"] += 1
            continue
        if fields[0] != str(len(words) + 1):
            raise UserError(f"{where}: the word's id is {fields[0]!r} where {len(words) + 1} is due: is a line missing, or an empty one?")
        if not fields[form].strip():
            raise UserError(f"{where}: its {layout.texts[0]} is empty: mend the line")
        if not words:
            first = line
        words.append(fields[form])
        tags.append("_" if tag is None else fields[tag])
    yield from sentence()
