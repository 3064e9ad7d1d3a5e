"""A user's own table: .csv and .tsv with a header or without, .jsonl with an object in each line, .parquet."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from electra_jax.cli import UserError
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.glue import split_lines
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import MAX_LINE_BYTES, lines
from electra_jax.finetune.readers.rows import columns_of, delimited, example

_DELIMITERS = {"csv": ",", "tsv": "\t"}


def examples(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    return {"jsonl": _jsonl, "parquet": _parquet}.get(layout.format, _delimited)(stream, path, layout, counts)


def _delimited(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    delimiter = layout.delimiter or _DELIMITERS[layout.format]
    quotes = layout.format == "csv" if layout.quotes is None else layout.quotes
    rows = _quoted(stream, path, delimiter) if quotes else split_lines(stream, path, delimiter)
    return delimited(rows, path, layout, counts)


def _quoted(stream: BinaryIO, path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the line in which the row begins, columns) by the rules of Python's `csv`: "..." may hold delimiters, line ends,
    and "" for a quote. It is `strict`, because a misplaced quote would otherwise join rows silently."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader((line for _, line in lines(stream, path)), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "new-line character" in str(error):
                raise UserError(
                    f"{path}:{first}: a carriage return (\\r) stands alone: end lines with \\n or \\r\\n (in Excel save as CSV UTF-8), "
                    "or put the column in double quotes"
                ) from None
            raise UserError(
                f"{path}:{first}: a quote is out of place ({error}): within quotes write a quote as two of them, or, where quotes are "
                "only text, say task.quotes=False"
            ) from None
        if fields is None:
            return
        yield first, fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n]))!r} stands twice in an object")
    return found


_OBJECT = json.JSONDecoder(object_pairs_hook=_once)  # Python's own takes the last of two fields of one name without a word


def _jsonl(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    rows = 0
    for number, line in lines(stream, path):
        where = f"{path}:{number}"
        if line.isspace():
            counts["blank lines"] += 1
            continue
        try:
            row = _OBJECT.decode(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}): a .jsonl file has one object in each line; is the file cut short?") from None
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object: a .jsonl file has one object in each line")
        columns_of(list(row), layout, where)
        found = example(row, layout, where, rows, counts)
        rows += 1
        if found is not None:
            yield found


def _parquet(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    import pyarrow
    import pyarrow.parquet

    rows = 0
    try:
        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
        columns = columns_of(table.schema_arrow.names, layout, path)
        for batch in table.iter_batches(batch_size=1024, columns=list(columns)):
            for row in batch.to_pylist():
                found = example(row, layout, f"{path}: row {rows + 1}", rows, counts)
                rows += 1
                if found is not None:
                    yield found
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is damaged or cut short ({error}): make or download it again") from None
    except pyarrow.ArrowNotImplementedError as error:
        raise UserError(f"{path} is damaged, or of a kind that pyarrow does not read ({error}): write the file anew") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {rows + 1} or one of the next 1,023 holds bytes that are no UTF-8: write the file anew") from None
