"""TensorFlow Datasets, as `tfds:NAME[:SPLIT[:FEATURE]]`, from files that were built before. TensorFlow is not imported."""

import os
import re
from collections.abc import Iterator

from electra_jax.cli import UserError
from electra_jax.data.readers.decoding import ReadOptions, decode

_ITEM = re.compile(r"tfds:(?P<name>[\w/.\-]+(:\d+\.\d+\.\d+)?)(:(?P<split>([^:\[\]]|\[[^\]]*\])+))?(:(?P<feature>\w+))?")


def num_bytes(item: str, options: ReadOptions) -> int:
    """Of the named part of the data set, in proportion to its rows. Raises UserError for a wrong name."""
    return _open(item, options)[2]


def texts(item: str, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """(text, number of bytes that were not UTF-8) of each row."""
    rows, feature, _ = _open(item, options)
    for number in range(len(rows)):
        try:
            value = rows[number][feature]
        except Exception as error:  # ArrayRecord's RuntimeError, or whatever a feature's decoder raises
            raise UserError(f"{item}: row {number} cannot be read ({_reason(error)}): build the dataset again") from None
        if not isinstance(value, bytes | str):
            raise UserError(f"{item}: the feature {feature!r} is of type {type(value).__name__}, not text")
        yield decode(value) if isinstance(value, bytes) else (value, 0)


def _open(item: str, options: ReadOptions):
    """(data source, feature, bytes) of an item whose data set lies in TFDS's data folder."""
    parts = _ITEM.fullmatch(item)
    if not parts:
        raise UserError(f"{item}: write tfds:NAME[:SPLIT[:FEATURE]], such as tfds:wikipedia/20230601.en:train:text")
    name, split, feature = parts["name"], parts["split"] or "train", parts["feature"] or options.text_field
    import tensorflow_datasets as tfds

    built = False
    try:
        try:
            builder = tfds.builder(name)
        except tfds.core.DatasetNotFoundError:
            import tensorflow_datasets.text  # noqa: F401  (where TensorFlow is not installed, glue or c4 are registered by this import)

            builder = tfds.builder(name)
        built = os.path.isdir(builder.data_dir)
        features = builder.info.features
        if feature not in features:
            raise UserError(f"{item}: no feature {feature!r}, but {', '.join(features)}: name the one that holds the text")
        rows = tfds.data_source(name, split=split, download=False)
        total = sum(part.num_examples for part in builder.info.splits.values())
        return rows, feature, int(builder.info.dataset_size) * len(rows) // max(1, total)
    except UserError:
        raise
    except Exception as error:  # TFDS raises KeyError, AssertionError, ValueError, NotImplementedError ... for a wrong name
        how = f'tfds.builder({name!r}, file_format="array_record").download_and_prepare()'
        raise UserError(f"{item}: {_reason(error)}" + ("" if built else f" (a dataset must have been built before: {how})")) from None


def _reason(error: Exception) -> str:
    return str(error).strip().strip("\"'").split("\n")[0] or type(error).__name__
