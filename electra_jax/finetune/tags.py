"""Tags of spans: conversion between IOB1, IOB2 and BIOES, and which of these schemes a file has.

A span is (first word, word behind the last, type). `spans` reads any sequence of tags as conlleval does. If the sequence is well-formed,
this reading is exact in each of the three schemes, so that every conversion is `write(spans(tags), len(tags), scheme)`.
"""

import functools
import re
from collections.abc import Iterable, Sequence

from electra_jax.cli import UserError
from electra_jax.finetune.tag_metrics import chunks

Span = tuple[int, int, str]
SCHEMES = ("iob1", "iob2", "bioes", "tokens")  # tokens: each tag is of its word alone, such as a part of speech
_SPAN_TAG = re.compile(r"O|[BIESLU]-.+")
_ALIASES = {"L": "E", "U": "S"}  # BILOU is BIOES with other letters


@functools.cache  # called millions of times, with a few dozen tags
def split(tag: str) -> tuple[str, str]:
    """(prefix, type): ("B", "NP") of B-NP, ("O", "") of O. A type may have hyphens."""
    prefix, _, kind = tag.partition("-")
    return _ALIASES.get(prefix, prefix), kind


def spans(tags: Iterable[str]) -> list[Span]:
    """The spans of any sequence of tags, as conlleval reads it (tag_metrics.chunks); L is read as E, and U as S."""
    read = ("-".join(filter(None, split(tag))) for tag in tags)
    return [(chunk.first, chunk.last + 1, chunk.type) for chunk in chunks(read)]


def write(spans: Iterable[Span], length: int, scheme: str) -> tuple[str, ...]:
    """The tags of these spans in "iob1", "iob2" or "bioes". The spans must be in order and must not overlap."""
    tags, end_before, kind_before = ["O"] * length, -1, ""
    for start, end, kind in spans:
        tags[start:end] = [f"I-{kind}"] * (end - start)
        if scheme == "bioes":
            tags[end - 1] = f"E-{kind}"
            tags[start] = f"B-{kind}" if end - start > 1 else f"S-{kind}"
        elif scheme == "iob2" or (start, kind) == (end_before, kind_before):
            tags[start] = f"B-{kind}"
        end_before, kind_before = end, kind
    return tuple(tags)


def convert(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """The tags of the same spans in "iob1", "iob2" or "bioes". If the tags break their scheme (`first_break`), conlleval's reading
    counts."""
    return write(spans(tags), len(tags), scheme)


@functools.cache
def is_of_span(tag: str) -> bool:
    return _SPAN_TAG.fullmatch(tag) is not None


def _follows(tags: Sequence[str], position: int) -> str:
    return f"{tags[position]} follows {tags[position - 1] if position else 'the beginning'}"


def first_break(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """(number of the tag, what is wrong and how to mend it) for the first tag that the scheme does not allow; None if there is none."""
    before, kind_before = "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, kind = split(tag)
        inside = before in ("B", "I")
        if position < len(tags) and not is_of_span(tag):
            return position, f"{tag!r} is neither O nor such as B-TYPE and I-TYPE: mend it, or say task.tag_scheme=tokens"
        if scheme == "iob1" and prefix == "B" and not (inside and kind == kind_before):
            return position, f"{_follows(tags, position)}, and in IOB1 a B- only parts two neighbours of one type: write I-{kind}"
        if scheme == "iob2" and prefix == "I" and not (inside and kind == kind_before):
            return position, f"{_follows(tags, position)}, and in IOB2 a span begins with B-: write B-{kind}"
        if scheme in ("iob1", "iob2") and prefix in ("E", "S"):
            return position, f"{tag!r} is no tag of {scheme.upper()}: mend it, or say task.tag_scheme=bioes"
        if scheme == "bioes" and inside and (prefix not in ("I", "E") or kind != kind_before):
            was = tags[position - 1]
            mend = f"S-{kind_before}" if before == "B" else f"E-{kind_before}"
            return position - 1, f"{was} is the last of its span, and in BIOES that is an S- or E-: write {mend}"
        if scheme == "bioes" and prefix in ("I", "E") and not inside:
            return (
                position,
                f"{_follows(tags, position)}, and in BIOES a span begins with B- or S-: write {'B' if prefix == 'I' else 'S'}-{kind}",
            )
        before, kind_before = prefix, kind
    return None


def scheme_of(sequences: Iterable[Sequence[str]]) -> str:
    """The scheme of a file's sequences: "tokens" and "bioes" are told by their tags, and of IOB1 and IOB2 it is the one that fewer tags
    break.

    The last two cannot be confused unless there is no span at all, because a tag that begins a span in one of them breaks the other.
    """
    breaks, tags = {"iob1": 0, "iob2": 0}, set()
    for sequence in sequences:
        before = ("O", "")
        for tag in sequence:
            prefix, kind = split(tag)
            inside = before[0] in ("B", "I") and before[1] == kind
            breaks["iob1"] += prefix == "B" and not inside
            breaks["iob2"] += prefix == "I" and not inside
            before = prefix, kind
        tags.update(sequence)
    if not any(tag == "O" or tag.startswith(("B-", "I-")) for tag in tags) and not all(map(is_of_span, tags)):
        return "tokens"
    if any(is_of_span(tag) and split(tag)[0] in ("E", "S") for tag in tags):
        return "bioes"
    return "iob2" if breaks["iob2"] <= breaks["iob1"] else "iob1"


def normalized(sequences: Sequence[Sequence[str]], scheme: str, lenient: bool, where) -> tuple[list[tuple[str, ...]], int]:
    """(the sequences in IOB2, how many of them broke their scheme).

    Args:
      scheme: one of SCHEMES, or "auto": see `scheme_of`. With "tokens", the tags stay as they are.
      lenient: a sequence that breaks its scheme is read as conlleval reads it, and counted. Otherwise it raises UserError.
      where(number of the sequence, number of the tag) -> the place as messages name it.
    """
    scheme = scheme_of(sequences) if scheme == "auto" else scheme
    if scheme == "tokens":
        return [tuple(tags) for tags in sequences], 0
    result, broken = [], 0
    for number, tags in enumerate(sequences):
        found = first_break(tags, scheme)
        if found and not (lenient and all(map(is_of_span, tags))):
            also = "" if lenient or not is_of_span(tags[found[0]]) else ", or read such tags as conlleval does (task.lenient_tags=True)"
            raise UserError(f"{where(number, found[0])}: {found[1]}{also}")
        broken += found is not None
        result.append(convert(tags, "iob2"))
    return result, broken
