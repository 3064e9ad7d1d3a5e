"""What a head says of the windows of a question -> its best answers, as text; numpy alone.

The published head scores pairs: its best starts, and the best ends of each (google-research/electra, finetune/qa/qa_tasks.py,
get_prediction_module; qa_metrics.py, write_predictions). The usual head scores starts and ends apart (transformers,
examples/pytorch/question-answering/utils_qa.py). Both are decoded here by the rules of their own programs.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.data.tokenizers import Tokenizer
from electra_jax.data.tokenizers.words import basic_words
from electra_jax.finetune.answers import Context, Window
from electra_jax.finetune.config import NULL_THRESHOLD

N_BEST = 20
MAX_PIECES = 30  # of an answer
NOTHING = "empty"  # what both programs answer when no span is allowed

TextOf = Callable[[Context, int, int], str]  # (context, first piece, last piece) -> the answer


class JointOutputs(NamedTuple):
    """Of B windows, K starts each with K ends each, natural logarithms of probabilities."""

    start_log_probs: np.ndarray  # [B, K]
    start_index: np.ndarray  # [B, K] places in the row
    end_log_probs: np.ndarray  # [B, K, K]: given the start
    end_index: np.ndarray  # [B, K, K]
    answerable: np.ndarray  # [B] logit; the higher, the less the window holds an answer


class Entry(NamedTuple):
    text: str
    probability: float  # among the entries of this list
    start: float  # log-probability or logit of the start
    end: float
    span: tuple[int, int] | None  # characters of the context, whatever `text` makes of them; None if the answer is none


class Prediction(NamedTuple):
    question: int  # Window.question
    text: str  # the best answer that is one
    null_score: float  # the higher, the less there is an answer
    nbest: list[Entry]  # best first, one at least


def with_null(prediction: Prediction, threshold: float = NULL_THRESHOLD) -> str:
    """SQuAD 2.0's answer: none, "", if and only if the null score is above the threshold."""
    return "" if prediction.null_score > threshold else prediction.text


def probability_of(text: str, prediction: Prediction) -> float:
    """Of an answer that was given, among the best. The published head scores "no answer" apart from them, as a logit."""
    among = next((entry.probability for entry in prediction.nbest if entry.text == text), None)
    return 1 / (1 + math.exp(-max(prediction.null_score, -500.0))) if among is None else among


def exact_text(context: Context, first: int, last: int) -> str:
    """The context's characters from the first piece's first to the last piece's last."""
    return context.text[context.spans[first, 0] : context.spans[last, 1]]


def published_text(tokenizer: Tokenizer) -> TextOf:
    """The answer as the published code finds it again: see `align`. With pieces that do not begin with "##" inside of words, as
    SentencePiece's, it mostly finds nothing and gives whole words."""
    lower_case = bool(tokenizer.options.get("lower_case"))

    def text_of(context: Context, first: int, last: int) -> str:
        pieces = " ".join(tokenizer.pieces(context.tokens[first : last + 1])).replace(" ##", "").replace("##", "")
        words = context.words[context.word[first] : context.word[last] + 1]
        return align(" ".join(pieces.split()), " ".join(context.text[begin:end] for begin, end in words), lower_case)

    return text_of


def align(pieces: str, words: str, lower_case: bool) -> str:
    """The part of `words`, text as it was written, that `pieces`, lowered and with spaces between marks of punctuation, stands for.

    By get_final_text in qa_metrics.py: `pieces` is looked for in `words` tokenized by BERT's rules, at its first occurrence; without
    their spaces the two texts must be equally long, and are then taken to match character by character. Else all of `words` is the answer.
    """
    tokenized = " ".join(basic_words(words, lower_case))
    begin = tokenized.find(pieces)
    places = [place for place, character in enumerate(words) if character != " "]
    if begin < 0 or len(places) != len(tokenized.replace(" ", "")):
        return words
    begin -= tokenized.count(" ", 0, begin)
    return words[places[begin] : places[begin + len(pieces.replace(" ", "")) - 1] + 1]


def decode_joint(
    windows: Sequence[Window],
    outputs: JointOutputs,
    text_of: TextOf = exact_text,
    *,
    n_best: int = N_BEST,
    max_pieces: int = MAX_PIECES,
) -> list[Prediction]:
    """The published decoding. All windows of a question must be here, one after the other, as make_windows gives them.

    Spans outside of the context, beginning in a piece of which another window shows more, ending before they begin or longer than
    `max_pieces` are left out; the others are sorted by the sum of their two scores, equal ones in the order of windows, starts and ends;
    of those with one text the best counts. The null score is the least of the windows' answerability logits.
    """
    predictions = []
    for question, rows in _questions(windows):
        found = []
        for row in rows:
            start, end = np.broadcast_arrays(outputs.start_index[row][:, None], outputs.end_index[row])
            start_score = np.broadcast_to(outputs.start_log_probs[row][:, None], end.shape)
            allowed = _allowed(windows[row], start, end, max_pieces) & _max_context(windows[row], start)
            found.append(_spans(windows[row], row, start, end, start_score, outputs.end_log_probs[row], allowed))
        entries, seen = [], set()
        for row, first, last, start, end in _best_first(found):
            entry = _entry(windows[row].context, first, last, start, end, text_of)
            if entry.text and entry.text not in seen:
                seen.add(entry.text)
                entries.append(entry)
            if len(entries) == n_best:
                break
        entries = _with_probabilities(entries or [Entry(NOTHING, 0.0, 0.0, 0.0, None)])
        null_score = min(float(outputs.answerable[row]) for row in rows)
        predictions.append(Prediction(question, entries[0].text, null_score, entries))
    return predictions


def decode_independent(
    windows: Sequence[Window],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    text_of: TextOf = exact_text,
    *,
    null: bool,
    n_best: int = N_BEST,
    max_pieces: int = MAX_PIECES,
) -> list[Prediction]:
    """The decoding of transformers' run_qa.py. start_logits, end_logits: [B, L] of B windows; what stands at padding is not looked at.

    The `n_best` starts of a window go with its `n_best` ends. Spans outside of the context, ending before they begin or longer than
    `max_pieces` are left out. A window's null answer is [CLS] to [CLS], and a question's the one with the least score;
    its null score is that score less the best span's, to be compared with 0. With `null`, as in SQuAD 2.0, the null answer is in the list.
    Equal logits, whose order run_qa.py leaves open, are taken from left to right.
    """
    predictions = []
    for question, rows in _questions(windows):
        found, nulls = [], []
        for row in rows:
            window = windows[row]
            starts, ends = start_logits[row, : len(window.tokens)], end_logits[row, : len(window.tokens)]
            start, end = np.argsort(-starts, kind="stable")[:n_best, None], np.argsort(-ends, kind="stable")[None, :n_best]
            start, end = np.broadcast_arrays(start, end)
            found.append(_spans(window, row, start, end, starts[start], ends[end], _allowed(window, start, end, max_pieces)))
            nulls.append(_Spans(np.array([row]), np.array([-1]), np.array([-1]), starts[:1], ends[:1]))
        least = min(nulls, key=lambda null: null.start[0] + null.end[0])
        ordered = list(itertools.islice(_best_first([*found, *([least] if null else [])]), n_best))
        if null and not any(first < 0 for _, first, *_ in ordered):
            ordered += _best_first([least])
        entries = [_entry(windows[row].context, first, last, start, end, text_of) for row, first, last, start, end in ordered]
        if not any(entry.text for entry in entries):
            entries.insert(0, Entry(NOTHING, 0.0, 0.0, 0.0, None))
        answer = next(entry for entry in entries if entry.text)
        null_score = float(least.start[0] + least.end[0]) - answer.start - answer.end
        predictions.append(Prediction(question, answer.text, null_score, _with_probabilities(entries)))
    return predictions


class _Spans(NamedTuple):
    """Of S spans: arrays [S]."""

    row: np.ndarray  # the window's number
    first: np.ndarray  # first piece, in the context; -1 for no answer
    last: np.ndarray
    start: np.ndarray  # score
    end: np.ndarray


def _questions(windows: Sequence[Window]) -> Iterator[tuple[int, list[int]]]:
    """(question, the numbers of its windows) of all questions."""
    for question, rows in itertools.groupby(range(len(windows)), key=lambda row: windows[row].question):
        yield question, list(rows)


def _allowed(window: Window, start: np.ndarray, end: np.ndarray, max_pieces: int) -> np.ndarray:
    """Which spans of places in the row lie in the context and are in order and short enough."""
    behind = window.first + len(window.max_context)
    return (start >= window.first) & (end < behind) & (start <= end) & (end - start < max_pieces)


def _max_context(window: Window, start: np.ndarray) -> np.ndarray:
    """Whether the window shows more than any other of what is around these places; False for places outside of the context."""
    everywhere = np.zeros(max(len(window.tokens), int(start.max()) + 1), bool)
    everywhere[window.first : window.first + len(window.max_context)] = window.max_context
    return everywhere[start]


def _spans(window: Window, row: int, start, end, start_score, end_score, allowed) -> _Spans:
    """The allowed spans of a window, in the order of the grid; all arguments behind `row` have its shape."""
    shift = window.begin - window.first
    first, last = start[allowed] + shift, end[allowed] + shift
    return _Spans(np.full(len(first), row), first, last, start_score[allowed], end_score[allowed])


def _best_first(found: Sequence[_Spans]) -> Iterator[tuple[int, int, int, float, float]]:
    """(row, first, last, start, end) of all spans by falling sums of scores; equal ones stay in order."""
    spans = _Spans(*(np.concatenate(column) for column in zip(*found, strict=True)))
    order = np.argsort(-(spans.start + spans.end), kind="stable")
    return zip(*(column[order].tolist() for column in spans), strict=True)


def _entry(context: Context, first: int, last: int, start: float, end: float, text_of: TextOf) -> Entry:
    if first < 0:
        return Entry("", 0.0, start, end, None)
    return Entry(text_of(context, first, last), 0.0, start, end, (int(context.spans[first, 0]), int(context.spans[last, 1])))


def _with_probabilities(entries: list[Entry]) -> list[Entry]:
    """The softmax of the entries' scores, as both programs give it."""
    scores = np.array([entry.start + entry.end for entry in entries])
    weights = np.exp(scores - scores.max())
    return [entry._replace(probability=float(p)) for entry, p in zip(entries, weights / weights.sum(), strict=True)]
