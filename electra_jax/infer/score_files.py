"""Scores of a file's lines, and minimal pairs, into a file or onto standard output."""

import json
import os
import sys
import time
from collections.abc import Iterator

from electra_jax.cli import UserError
from electra_jax.infer import files, pairs
from electra_jax.infer.inputs import STANDARD_INPUT
from electra_jax.infer.scores import PORTION_TEXTS, Scorer, portions


def check_output(target: str, source: str) -> None:
    """Raises UserError if the output cannot be written, before a model is loaded."""
    if source == STANDARD_INPUT or os.path.isfile(source):
        files.check_paths(source, target)
    elif not os.path.exists(source):
        raise UserError(f"{source}: no such file or folder")


def score(scorer: Scorer, source: str, target: str, per_token: bool = False) -> str:
    """A line for each line of `source`: {"text", "score"} and, per_token, "tokens": [[piece, its part], ..]. Returns what was done.

    UserError, with the line's number, for an empty line and for one that is no UTF-8.
    """
    start, count = time.monotonic(), 0
    with files.writing(target) as out, files.meter() as meter:
        for portion in portions(_lines(source), PORTION_TEXTS):
            found = list(scorer.score(portion))
            lines = [_record(text, each.total, each.tokens if per_token else None) for text, each in zip(portion, found, strict=True)]
            files.write(out, "".join(lines).encode())
            meter(len(portion))
            count += len(portion)
        if not count:
            raise UserError(f"{source}: there is no text in it")
    return f"done: {count:,} texts, {scorer.kind}, in {time.monotonic() - start:.1f} s"


def judge(scorer: Scorer, source: str, target: str) -> str:
    """Prints the table of accuracies, and writes a line per paradigm to `target` where that is a file. Returns what was done."""
    start, given = time.monotonic(), pairs.read(source)
    with files.meter() as meter:
        found = []
        for each in scorer.score(text for pair in given for text in (pair.good, pair.bad)):
            found.append(each.total)
            meter(1)
    paradigms = pairs.accuracies(given, found[0::2], found[1::2])
    print(pairs.table(paradigms), end="")
    if target != files.STANDARD_OUTPUT:
        with files.writing(target) as out:
            files.write(out, "".join(json.dumps(each._asdict()) + "\n" for each in paradigms).encode())
    return f"done: {len(given):,} pairs, {scorer.kind}, in {time.monotonic() - start:.1f} s"


def _lines(source: str) -> Iterator[str]:
    stream = sys.stdin.buffer if source == STANDARD_INPUT else open(source, "rb")
    name = "standard input" if source == STANDARD_INPUT else source
    with stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode().strip()
            except UnicodeDecodeError:
                raise UserError(f"{name}:{number} is no UTF-8 text") from None
            if not text:
                raise UserError(f"{name}:{number} is an empty line: a text per line")
            yield text


def _record(text: str, total: float, tokens: list[tuple[str, float]] | None) -> str:
    more = {} if tokens is None else {"tokens": [[piece, round(part, 6)] for piece, part in tokens]}
    return json.dumps({"text": text, "score": round(total, 6), **more}, ensure_ascii=False) + "\n"
