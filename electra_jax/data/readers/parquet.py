"""Parquet (.parquet): a row is a document, with the text in one of the columns."""

from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.data.readers.decoding import ReadOptions, decode

TEXT = False  # the index of a Parquet file stands at its end


def texts(stream: BinaryIO, path: str, options: ReadOptions) -> Iterator[tuple[str, int]]:
    import pyarrow
    import pyarrow.parquet

    name = options.text_field
    try:
        # Pages are read as they are needed: a row group may be larger than memory.
        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        names = table.schema_arrow.names
        if name not in names:
            raise UserError(
                f"{path} has no column {name!r}, but {', '.join(map(repr, names))}: name the one that holds the text (text_field)"
            )
        for batch in table.iter_batches(batch_size=64, columns=[name]):
            column = batch.column(0)
            if pyarrow.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # Read as bytes: a string in Parquet should be UTF-8, but writers do not check that it is.
            for value in column.cast(pyarrow.large_binary()):
                data = value.as_py() or b""
                options.check_size(len(data), path)
                yield decode(data)
    except pyarrow.ArrowNotImplementedError:
        raise UserError(f"{path}: the column {name!r} holds no text: name the one that does (text_field)") from None
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is damaged or cut short ({error}): make or download it again") from None
