"""The one record that readers give and features take, whatever file an example came from."""

from typing import Any, NamedTuple


class Answers(NamedTuple):
    """The answers to a question that several people gave; both empty where the context has none (SQuAD 2.0)."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]  # characters (Unicode code points) into the context; context[start:][: len(text)] == text


class Example(NamedTuple):
    """`label` is None where the file has none, as in a test set. By the task's kind it is

    "class": str   "classes": tuple[str, ...]   "number": float   "answer": Answers
    "tags": tuple[str, ...], a tag for each word: IOB2 where the tags are of spans, whatever the file has; as they are otherwise
    """

    id: str  # the official one (question id, index), or the row's number from 0 as text
    texts: tuple[str, ...]  # one text, or a pair; of tags: the words; of an answer: (question, context)
    label: Any
    where: str  # "FILE:LINE" (JSON: "FILE: question ID"; Parquet, TFDS: "FILE: row NUMBER"): messages name it
