"""Minimal pairs: how often a model scores the right sentence of two above the wrong one, as BLiMP asks (arXiv 1912.00582).

A tie counts one half: an argmax that takes the first of equal scores calls a model that knows nothing right.
"""

import json
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import numpy as np

from electra_jax.cli import UserError

ENDING = ".jsonl"
FIELDS = ("sentence_good", "sentence_bad", "UID")


class Pair(NamedTuple):
    paradigm: str
    field: str
    good: str
    bad: str


class Paradigm(NamedTuple):
    name: str
    field: str
    accuracy: float
    num_pairs: int


def read(path: str) -> list[Pair]:
    """The pairs of a folder, a .zip or .tar of .jsonl files, or of one such file, in the order of the files' names. UserError, which names
    file and line, for whatever is wrong there."""
    pairs = [pair for name, stream in _files(pathlib.Path(path)) for pair in _of_file(name, stream)]
    if not pairs:
        raise UserError(f"{path}: there is no {ENDING} file with pairs in it: name BLiMP's zip, or a folder with its files")
    return pairs


def _files(path: pathlib.Path) -> Iterator[tuple[str, IO[bytes]]]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: name BLiMP's zip, or a folder with its files")
    if path.is_dir():
        for each in sorted(path.rglob(f"*{ENDING}")):
            with each.open("rb") as stream:
                yield str(each), stream
    elif path.suffix == ENDING:
        with path.open("rb") as stream:
            yield str(path), stream
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if _is_data(name)):
                with archive.open(name) as stream:
                    yield f"{path}/{name}", stream
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in sorted(
                (each for each in archive.getmembers() if each.isfile() and _is_data(each.name)), key=lambda each: each.name
            ):
                yield f"{path}/{member.name}", archive.extractfile(member)
    else:
        raise UserError(f"{path}: neither a folder nor a .zip, .tar or {ENDING} file")


def _is_data(name: str) -> bool:
    """What an archive that was packed on a Mac adds beside its files is none."""
    return name.endswith(ENDING) and not pathlib.PurePosixPath(name).name.startswith("._")


def _of_file(name: str, stream: IO[bytes]) -> Iterator[Pair]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            good, bad, paradigm = (fields[each] for each in FIELDS)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{name}:{number}: not an object with {', '.join(FIELDS)}") from None
        if not all(isinstance(each, str) and each.strip() for each in (good, bad, paradigm)):
            raise UserError(f"{name}:{number}: {', '.join(FIELDS)} must be texts that are not empty")
        field = str(fields.get("field", "")).replace("/", "_")  # BLiMP writes syntax_semantics both ways
        yield Pair(paradigm, field, good, bad)


def accuracies(pairs: Sequence[Pair], good: Iterable[float], bad: Iterable[float]) -> list[Paradigm]:
    """Of each paradigm, in the pairs' order. UserError where a score is no number."""
    by_paradigm: dict[tuple[str, str], list[float]] = {}
    for pair, a, b in zip(pairs, good, bad, strict=True):
        if np.isnan(a) or np.isnan(b):
            raise UserError(f"{pair.paradigm}: {pair.good!r} or {pair.bad!r} has no score (NaN)")
        by_paradigm.setdefault((pair.paradigm, pair.field), []).append(1.0 if a > b else 0.5 if a == b else 0.0)
    return [Paradigm(name, field, float(np.mean(right)), len(right)) for (name, field), right in by_paradigm.items()]


def summary(paradigms: Sequence[Paradigm]) -> Mapping[str, float]:
    """{field: the mean over its paradigms, "all": over all}: each paradigm counts alike, as BLiMP's own table does."""
    fields = dict.fromkeys(each.field for each in paradigms)
    found = {field: float(np.mean([each.accuracy for each in paradigms if each.field == field])) for field in fields if field}
    return {**found, "all": float(np.mean([each.accuracy for each in paradigms]))}


def table(paradigms: Sequence[Paradigm]) -> str:
    """Lines for a terminal: paradigms by field, the fields, and the mean over all paradigms."""
    width = max(len(each.name) for each in paradigms)
    lines = [
        f"{each.name:{width}}  {each.accuracy:6.1%}  {each.num_pairs:5,} pairs  {each.field}"
        for each in sorted(paradigms, key=lambda x: (x.field, x.name))
    ]
    return "\n".join([*lines, "", *(f"{name:{width}}  {value:6.1%}" for name, value in summary(paradigms).items())]) + "\n"
