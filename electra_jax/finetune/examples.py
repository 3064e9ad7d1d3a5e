"""The record that all readers make and all features are made from, whatever the format of the file."""

from typing import Any, NamedTuple


class Answers(NamedTuple):
    """The answers that several people gave to a question; both fields are empty if the context has no answer (SQuAD 2.0)."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]  # offsets in characters (Unicode code points): context[start:][: len(text)] == text


class Example(NamedTuple):
    """A row of a file. `label` is None if the file has none, as in a test set. Otherwise its type follows from the task's kind:

    "class": str   "classes": tuple[str, ...]   "number": float   "answer": Answers
    "tags": tuple[str, ...], one tag for each word. Tags of spans are in IOB2, whatever the file has; others are as in the file.
    """

    id: str  # the official one (question ID, index), or the row's number as text, counted from 0
    texts: tuple[str, ...]  # one text, or a pair; for tags the words; for an answer (question, context)
    label: Any
    where: str  # for messages: "FILE:LINE" (JSON: "FILE: question ID"; Parquet, TFDS: "FILE: row NUMBER")
