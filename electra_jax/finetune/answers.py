"""Questions about contexts -> rows of tokens: windows over the context, and where the answer begins and ends in them; numpy alone.

A row is `[CLS] question [SEP] window [SEP]` with the types 0 and 1. Every piece of a context knows the characters that it stands for
(Tokenizer.encode_with_spans), so that an answer goes from characters to pieces and back without a loss. Unless a docstring says
otherwise, the rules are those of google-research/electra, finetune/qa/qa_tasks.py. The way back from pieces to text is in nbest.py.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.features import type_pattern

_WORD = re.compile("[^ \t\r\n\u202f]+")  # white space is what is_whitespace in qa_tasks.py takes for it: a no-break space is part of a word


class Context(NamedTuple):
    """A text of P pieces, and of W words that white space parts."""

    text: str
    tokens: np.ndarray  # int32 [P]
    spans: np.ndarray  # int32 [P, 2]: the characters that each piece stands for
    words: np.ndarray  # int32 [W, 2]: the characters of each word
    word: np.ndarray  # int32 [P]: which word each piece is part of


class Window(NamedTuple):
    """A row of n tokens, of which c are pieces of the context."""

    tokens: np.ndarray  # int32 [n]
    types: np.ndarray  # int32 [n], read-only: 1 from the context's first piece on
    question: int  # the number of its example
    context: Context
    first: int  # where the context's first piece stands in the row
    begin: int  # which piece of the context that is, counted from 0
    max_context: np.ndarray  # bool [c]: of all windows that hold the piece, this one shows the most context around it
    start: int  # where the answer's first piece stands in the row; 0, which is [CLS], if this window does not hold the whole answer
    end: int  # the same for its last piece
    impossible: bool  # the answerability label; False where the file has no answers


class Windows(NamedTuple):
    rows: list[Window]  # the rows of a question follow one another; every question that was not dropped has at least one
    dropped: list[str]  # Example.where of the training examples whose answer could not be found
    cut: list[int]  # for each example, how many pieces of its question did not fit


def make_windows(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    length: int,
    training: bool,
    stride: int = 128,
    max_question: int = 64,
    match_lowered: bool = False,
    spans_by_words: bool = False,
    labels_by_question: bool = False,
) -> Windows:
    """The rows of all questions. A question is cut to `max_question` pieces. Windows are as long as `length` allows, and each begins
    `stride` pieces after the one before.

    The first answer of an example is the one to learn. A training example whose answer is not found is dropped and named in `dropped`.
    When not training, every question is kept, because it must be answered.

    Each of these three options keeps a published rule:
    match_lowered: the answer counts as found if the words around its offset contain it, lower-cased and with single spaces
      (_add_examples, lines 221-232). Otherwise the context must have exactly the answer's characters at its offset.
    spans_by_words: see `_pieces_by_words`. Otherwise the answer's pieces are those that share a character with it.
    labels_by_question: a window that misses the answer to an answerable question is labelled as answerable (lines 359-369 and 414; the
      comment there says that such windows are thrown out). Otherwise it is labelled impossible, because it does not hold the answer.

    UserError if the longest question would leave no room for a context.
    """
    if length < max_question + 4:
        raise UserError(
            f"rows of {length} tokens leave no room for a context behind a question of {max_question} pieces, [CLS] and two [SEP]: "
            f"finetune.length must be at least {max_question + 4}"
        )
    contexts = _contexts((example.texts[1] for example in examples), tokenizer)
    questions = tokenizer.encode_batch([example.texts[0] for example in examples])
    answers = tokenizer.encode_batch([example.label.texts[0] if _answerable(example) else "" for example in examples])
    pattern = type_pattern(length)
    cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    windows = Windows([], [], [max(len(question) - max_question, 0) for question in questions])
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        question, context, answer = question[:max_question], contexts[example.texts[1]], None
        if _answerable(example):
            if (_found_lowered if match_lowered else _found_exactly)(context.text, context.words, example.label):
                answer = _pieces_by_words(context, example.label, answers[number]) if spans_by_words else _pieces(context, example.label)
            if answer is None and training:
                windows.dropped.append(example.where)
                continue
        labelled = example.label is not None and (answer is not None or not example.label.texts)
        first, room = len(question) + 2, length - len(question) - 3
        begins, ends = _cut(len(context.tokens), room, min(room, stride))
        for begin, end, best in zip(begins, ends, _max_context(begins, ends), strict=True):
            inside = answer is not None and begin <= answer[0] and answer[1] < end
            windows.rows.append(
                Window(
                    np.concatenate((cls, question, sep, context.tokens[begin:end], sep)),
                    pattern[length - first : length + end - begin + 1],
                    number,
                    context,
                    first,
                    begin,
                    best,
                    answer[0] - begin + first if inside else 0,
                    answer[1] - begin + first if inside else 0,
                    labelled and not (answer is not None if labels_by_question else inside),
                )
            )
    return windows


def _answerable(example: Example) -> bool:
    return example.label is not None and len(example.label.texts) > 0


def _contexts(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, Context]:
    """{text: its Context}. Each text is tokenized once, however many questions are asked about it."""
    distinct, contexts = list(dict.fromkeys(texts)), {}
    for text, (tokens, spans) in zip(distinct, tokenizer.encode_with_spans(distinct), strict=True):
        words = np.array([word.span() for word in _WORD.finditer(text)], np.int32).reshape(-1, 2)
        word = np.searchsorted(words[:, 0], spans[:, 0], "right").astype(np.int32) - 1
        contexts[text] = Context(text, tokens, spans, words, word)
    return contexts


def _cut(pieces: int, room: int, step: int) -> tuple[list[int], list[int]]:
    """Where windows of `room` pieces begin and end: every `step` pieces, until one reaches the last piece. A context without pieces has
    one window."""
    begins = list(range(0, max(pieces - room, 0) + step, step))
    return begins, [min(begin + room, pieces) for begin in begins]


def _max_context(begins: Sequence[int], ends: Sequence[int]) -> list[np.ndarray]:
    """bool [end - begin] of each window: whether a piece has its maximum context there (_check_is_max_context). A window's score for a
    piece is the lesser of the numbers of pieces to its left and to its right, plus 0.01 for each piece of the window. The window with
    the highest score counts, and of equal ones the first."""
    if len(begins) == 1:
        return [np.ones(ends[0], bool)]
    b, e, place = np.array(begins)[:, None], np.array(ends)[:, None], np.arange(ends[-1])
    around = np.minimum(place - b, e - 1 - place)
    best = np.argmax(np.where(around < 0, -np.inf, around + 0.01 * (e - b)), axis=0)
    return [best[begin:end] == number for number, (begin, end) in enumerate(zip(begins, ends, strict=True))]


def _found_exactly(text: str, words: np.ndarray, answers: Answers) -> bool:
    return text.startswith(answers.texts[0], answers.starts[0])


def _found_lowered(text: str, words: np.ndarray, answers: Answers) -> bool:
    if answers.starts[0] + len(answers.texts[0]) > len(text):
        return False
    first, last = _words_of(words, answers)
    around = " ".join(text[begin:end] for begin, end in words[first : last + 1])
    return " ".join(answers.texts[0].split()).lower() in around.lower()


def _words_of(words: np.ndarray, answers: Answers) -> tuple[int, int]:
    """(first, last) word: those that hold the answer's first and last character. White space belongs to the word before it, and to -1 at
    the beginning of the text."""
    begin, size = answers.starts[0], len(answers.texts[0])
    first, last = np.searchsorted(words[:, 0], [begin, begin + size - 1], "right") - 1
    return int(first), int(last)


def _pieces(context: Context, answers: Answers) -> tuple[int, int] | None:
    """(first, last) piece of those that share a character with the answer; None if no piece does."""
    begin, end = answers.starts[0], answers.starts[0] + len(answers.texts[0])
    first = int(np.searchsorted(context.spans[:, 1], begin, "right"))
    last = int(np.searchsorted(context.spans[:, 0], end, "left")) - 1
    return (first, last) if first <= last else None


def _pieces_by_words(context: Context, answers: Answers, wanted: np.ndarray) -> tuple[int, int] | None:
    """(first, last) piece of the answer as published (featurize and _improve_answer_span).

    The published code takes all pieces from the word in which the answer begins to the word in which it ends. If these contain `wanted`,
    which are the pieces of the answer's text tokenized by itself, it takes their first occurrence instead. So "Japan" in "Japanese" gives
    the whole word, and the second "no" of "no-no" gives the first.
    """
    first_word, last_word = _words_of(context.words, answers)
    first = int(np.searchsorted(context.word, first_word, "left"))
    last = int(np.searchsorted(context.word, last_word, "right")) - 1
    for start in range(first, last + 2 - len(wanted)):
        if len(wanted) and np.array_equal(context.tokens[start : start + len(wanted)], wanted):
            return start, start + len(wanted) - 1
    return (first, last) if first <= last else None
