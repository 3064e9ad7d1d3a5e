"""JSON lines (.jsonl): one object a line, with the text in one of its fields."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.data.readers.decoding import ReadOptions, decode

TEXT = True


def texts(stream: BinaryIO, path: str, options: ReadOptions) -> Iterator[tuple[str, int]]:
    number, name = 0, options.text_field
    while line := stream.readline(options.max_document_bytes + 1):
        number += 1
        where = f"{path}:{number}"
        options.check_size(len(line), where)
        text, invalid_bytes = decode(line)
        if text.isspace():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}): a .jsonl file has one object a line") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object: a .jsonl file has one object a line")
        if name not in record:
            raise UserError(
                f"{where} has no field {name!r}, but {', '.join(map(repr, record)) or 'none at all'}: "
                "name the one that holds the text (text_field)"
            )
        value = record[name]
        if not isinstance(value, str | None):
            raise UserError(f"{where}: the field {name!r} is of type {type(value).__name__}, not text")
        # JSON can name half of a surrogate pair, which is no character: its bytes are not UTF-8.
        text, more = decode((value or "").encode("utf-8", "surrogatepass"))
        yield text, invalid_bytes + more
