"""SQuAD 1.1 and 2.0 (rajpurkar/SQuAD-explorer): {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}.

In version 2.0, a question with `is_impossible` has no answers; its `plausible_answers` are not read. Offsets count Unicode characters.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from electra_jax.cli import UserError
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import decode
from electra_jax.finetune.readers.rows import check_answer, text


def examples(stream: BinaryIO, path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    whole = "\n".join(decode(line, f"{path}:{number + 1}") for number, line in enumerate(stream.read().split(b"\n")))
    try:
        data = json.loads(whole)
    except json.JSONDecodeError as error:
        cut = "the file is cut short: " if error.pos >= len(whole.rstrip()) or error.msg.startswith("Unterminated") else ""
        reason = error.msg.removesuffix(" at")
        raise UserError(f"{path}:{error.lineno} is not JSON ({reason} at column {error.colno}): {cut}download it again") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise UserError(f"{path} is not SQuAD's JSON ({error}): download it again") from None
    for number, article in enumerate(_list(data, "data", path)):
        article_name = f"{path}: article {number + 1}"
        for place, paragraph in enumerate(_list(article, "paragraphs", article_name)):
            where = f"{article_name}, paragraph {place + 1}"
            context = _text(paragraph, "context", where)
            for question in _list(paragraph, "qas", where):
                yield _example(question, context, path, where, layout, counts)


def _example(question: Any, context: str, path: str, above: str, layout: Layout, counts: Counter) -> Example:
    id_ = text(str(_value(question, "id", str | int, above)), "id", above)
    where = f"{path}: question {id_}"
    texts = (_text(question, "question", where), context)
    for name, each in zip(("question", "context"), texts, strict=True):
        if not each.strip():
            raise UserError(f"{where}: its {name} is empty: remove it")
    if not layout.labelled and not (layout.label and "answers" in question):
        counts["without a label"] += 1
        return Example(id_, texts, None, where)
    answers = _list(question, "answers", where)
    impossible = "is_impossible" in question and _value(question, "is_impossible", bool, where)
    if impossible and answers:
        raise UserError(f"{where} has answers and is_impossible=true: mend one of them")
    if not answers and not impossible and "is_impossible" in question:
        raise UserError(f"{where} has no answer, and is_impossible is false: mend one of them")
    found = [(_text(answer, "text", where), _value(answer, "answer_start", int, where)) for answer in answers]
    for answer, start in found:
        check_answer(context, answer, start, where)
    counts["unanswerable"] += not found
    return Example(id_, texts, Answers(tuple(answer for answer, _ in found), tuple(start for _, start in found)), where)


def _value(owner: Any, key: str, kind: Any, where: str) -> Any:
    value = owner.get(key) if isinstance(owner, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"{where}: {key!r} is missing or of another type: the file must be as SQuAD's")
    return value


def _list(owner: Any, key: str, where: str) -> list:
    return _value(owner, key, list, where)


def _text(owner: Any, key: str, where: str) -> str:
    return text(_value(owner, key, str, where), key, where)
