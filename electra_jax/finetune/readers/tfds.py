"""A split of a TensorFlow dataset, `tfds:NAME:SPLIT`, from files that were built before. TensorFlow is not imported.

TFDS stores a class as its number. Here it becomes the class's name; or the number as text, if the task's own files have numbers ("0", "1").
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from electra_jax.cli import UserError
from electra_jax.data.readers import tfds
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.rows import columns_of, example


def examples(item: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    name, split, _ = tfds.parse(item)
    builder = tfds.open_builder(item, name)
    rows = tfds.open_split(item, builder, name, split)
    features = builder.info.features
    columns = columns_of(list(features), layout, item)
    names = {name: _names(features[name], layout) for name in columns if name == layout.label}
    for number in range(len(rows)):
        where = f"{item}: row {number + 1}"
        row = tfds.row(item, rows, number)
        row = {name: _named(row[name], names.get(name), where) for name in columns}
        if (
            layout.range and layout.range[0] > -1 and row.get(layout.label) == -1
        ):  # how STS-B's test set marks a score that is not published
            row[layout.label] = None
        if layout.kind == "tags" and layout.scheme == "tokens":
            row = _without_untagged(row, layout, counts)
        found = example(row, layout, where, number, counts)
        if found is not None:
            yield found


def _names(feature: Any, layout: Layout) -> tuple[str, ...] | None:
    """The names of the classes that a feature's numbers stand for; None if it has no classes."""
    names = getattr(getattr(feature, "feature", feature), "names", None)  # of a sequence's elements, or of the feature itself
    if names and layout.labels and not set(names) & set(layout.labels) and len(names) == len(layout.labels):
        return tuple(map(str, range(len(names))))
    return tuple(names) if names else None


def _named(value: Any, names: tuple[str, ...] | None, where: str) -> Any:
    if names is None:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_named(each, names, where) for each in value]
    if value == -1:  # TFDS marks the secret labels of a test set so
        return None
    if not 0 <= value < len(names):
        raise UserError(f"{where}: the class {value} is none of {len(names)}: build the dataset again")
    return names[value]


def _without_untagged(row: dict, layout: Layout, counts: Counter) -> dict:
    """The row without CoNLL-U's multiword tokens, which TFDS lists among the words with the tag "_"."""
    words, tags = row[layout.texts[0]], row.get(layout.label)
    if tags is None:
        return row
    words, tags = ([each.decode() if isinstance(each, bytes) else each for each in part] for part in (words, tags))
    kept = [(word, tag) for word, tag in zip(words, tags, strict=False) if tag != "_"]
    if len(words) != len(tags):
        return row
    counts["multiword tokens left out"] += len(words) - len(kept)
    return {**row, layout.texts[0]: [word for word, _ in kept], layout.label: [tag for _, tag in kept]}
