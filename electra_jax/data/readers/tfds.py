"""TensorFlow Datasets, as `tfds:NAME[:SPLIT[:FEATURE]]`, from files that were built before. TensorFlow is not imported."""

import os
import re
from collections.abc import Iterator
from typing import Any

from electra_jax.cli import UserError
from electra_jax.data.readers.decoding import ReadOptions, decode

_ITEM = re.compile(r"tfds:(?P<name>[\w/.\-]+(:\d+\.\d+\.\d+)?)(:(?P<split>([^:\[\]]|\[[^\]]*\])+))?(:(?P<feature>\w+))?")


def num_bytes(item: str, options: ReadOptions) -> int:
    """Of the named part of the data set, in proportion to its rows. Raises UserError for a wrong name."""
    builder, rows, _ = _open(item, options)
    total = sum(part.num_examples for part in builder.info.splits.values())
    return int(builder.info.dataset_size) * len(rows) // max(1, total)


def texts(item: str, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """(text, number of bytes that were not UTF-8) of each row."""
    _, rows, feature = _open(item, options)
    for number in range(len(rows)):
        value = row(item, rows, number)[feature]
        if not isinstance(value, bytes | str):
            raise UserError(f"{item}: the feature {feature!r} is of type {type(value).__name__}, not text")
        yield decode(value) if isinstance(value, bytes) else (value, 0)


def parse(item: str) -> tuple[str, str, str | None]:
    """(name, split, feature or None) of an item."""
    parts = _ITEM.fullmatch(item)
    if not parts:
        raise UserError(f"{item}: write tfds:NAME[:SPLIT[:FEATURE]], such as tfds:wikipedia/20230601.en:train:text")
    return parts["name"], parts["split"] or "train", parts["feature"]


def open_builder(item: str, name: str) -> Any:
    """The builder of a data set by its name, whether its files lie in TFDS's data folder or not. A UserError begins with `item`."""
    import tensorflow_datasets as tfds

    try:
        try:
            return tfds.builder(name)
        except tfds.core.DatasetNotFoundError:
            import tensorflow_datasets.text  # noqa: F401  (where TensorFlow is not installed, glue or c4 are registered by this import)

            return tfds.builder(name)
    except Exception as error:  # TFDS raises KeyError, AssertionError, ValueError, NotImplementedError ... for a wrong name
        raise _unusable(item, name, error, built=False) from None


def open_split(item: str, builder: Any, name: str, split: str) -> Any:
    """The rows of a split, by their number. A UserError begins with `item`."""
    import tensorflow_datasets as tfds

    try:
        return tfds.data_source(name, split=split, download=False)
    except Exception as error:
        raise _unusable(item, name, error, built=os.path.isdir(builder.data_dir)) from None


def row(item: str, rows: Any, number: int) -> dict[str, Any]:
    try:
        return rows[number]
    except Exception as error:  # ArrayRecord's RuntimeError, or whatever a feature's decoder raises
        raise UserError(f"{item}: row {number} cannot be read ({_reason(error)}): build the dataset again") from None


def _open(item: str, options: ReadOptions) -> tuple[Any, Any, str]:
    """(builder, rows, feature) of an item whose data set lies in TFDS's data folder."""
    name, split, feature = parse(item)
    feature = feature or options.text_field
    builder = open_builder(item, name)
    if feature not in (features := builder.info.features):
        raise UserError(f"{item}: no feature {feature!r}, but {', '.join(features)}: name the one that holds the text")
    return builder, open_split(item, builder, name, split), feature


def _unusable(item: str, name: str, error: Exception, built: bool) -> UserError:
    how = f'tfds.builder({name!r}, file_format="array_record").download_and_prepare()'
    return UserError(f"{item}: {_reason(error)}" + ("" if built else f" (a dataset must have been built before: {how})"))


def _reason(error: Exception) -> str:
    return str(error).strip().strip("\"'").split("\n")[0] or type(error).__name__
