"""A head's scores for the windows of a question -> the question's n best answers, as text; numpy alone.

The published head scores pairs: the best starts, and for each of them the best ends (google-research/electra, finetune/qa/qa_tasks.py,
get_prediction_module; qa_metrics.py, write_predictions). The usual head scores starts and ends independently (transformers,
examples/pytorch/question-answering/utils_qa.py). Each is decoded here by the rules of the program that it comes from.
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
MAX_PIECES = 30  # the most that an answer may have
NOTHING = "empty"  # both programs give this text if no span is allowed

TextOf = Callable[[Context, int, int], str]  # (context, first piece, last piece) -> the answer


class JointOutputs(NamedTuple):
    """The published head's outputs for B windows: K starts of each window and K ends of each start, as log-probabilities (natural)."""

    start_log_probs: np.ndarray  # [B, K]
    start_index: np.ndarray  # [B, K] places in the row
    end_log_probs: np.ndarray  # [B, K, K]: of each end, given the start
    end_index: np.ndarray  # [B, K, K]
    no_answer: np.ndarray  # [B] logit; the higher, the likelier it is that the window holds no answer


class Entry(NamedTuple):
    text: str
    probability: float  # the softmax over the entries of this list
    start: float  # log-probability or logit of the start
    end: float
    span: tuple[int, int] | None  # (begin, end) in the context's characters, which `text` may differ from; None for no answer


class Decoded(NamedTuple):
    question: int  # Window.question
    text: str  # the best answer that is not empty
    null_score: float  # the higher, the likelier it is that there is no answer
    nbest: list[Entry]  # best first, at least one


def with_null(prediction: Decoded, threshold: float = NULL_THRESHOLD) -> str:
    """The answer for SQuAD 2.0: "", which stands for no answer, if and only if the null score is above the threshold."""
    return "" if prediction.null_score > threshold else prediction.text


def probability_of(text: str, prediction: Decoded) -> float:
    """The probability of the answer `text` among the n-best answers. The published head has no entry for "no answer" among these, but a
    logit of its own."""
    among = next((entry.probability for entry in prediction.nbest if entry.text == text), None)
    return 1 / (1 + math.exp(-max(prediction.null_score, -500.0))) if among is None else among


def exact_text(context: Context, first: int, last: int) -> str:
    """The characters of the context from the beginning of piece `first` to the end of piece `last`."""
    return context.text[context.spans[first, 0] : context.spans[last, 1]]


def published_text(tokenizer: Tokenizer) -> TextOf:
    """How the published code recovers an answer's text from its pieces: see `align`. It expects pieces inside of words to begin with "##".
    With other pieces, such as SentencePiece's, it mostly finds nothing and gives whole words."""
    lower_case = bool(tokenizer.options.get("lower_case"))

    def text_of(context: Context, first: int, last: int) -> str:
        pieces = " ".join(tokenizer.pieces(context.tokens[first : last + 1])).replace(" ##", "").replace("##", "")
        words = context.words[context.word[first] : context.word[last] + 1]
        return align(" ".join(pieces.split()), " ".join(context.text[begin:end] for begin, end in words), lower_case)

    return text_of


def align(pieces: str, words: str, lower_case: bool) -> str:
    """The part of `words` that `pieces` stands for. `words` is text as it was written; `pieces` may be lower-cased, and has spaces around
    marks of punctuation.

    By the rules of get_final_text in qa_metrics.py: `words` is tokenized by BERT's rules, and `pieces` is looked up in the result, at its
    first occurrence. If `words` and the result have equally many characters other than spaces, these are taken to match one by one.
    Otherwise, or if `pieces` does not occur, all of `words` is the answer.
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
) -> list[Decoded]:
    """The published decoding. All windows of a question must be here, one after the other, as make_windows gives them.

    A span is left out if it is not inside the context, if another window shows more context around its first piece, if it ends before
    it begins, or if it is longer than `max_pieces`. The others are sorted by the sum of their two scores; equal ones stay in the order of
    windows, starts and ends. Of several spans with the same text the best counts. The null score is the least of the windows'
    answerability logits.
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
        null_score = min(float(outputs.no_answer[row]) for row in rows)
        predictions.append(Decoded(question, entries[0].text, null_score, entries))
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
) -> list[Decoded]:
    """The decoding of transformers' run_qa.py. start_logits, end_logits: [B, L] of B windows; those at padding are ignored.

    The `n_best` best starts of a window are combined with its `n_best` best ends. A span is left out if it is not inside the context, if
    it ends before it begins, or if it is longer than `max_pieces`. The null answer of a window is the span from [CLS] to [CLS]; that of
    a question is its windows' null answer with the least score. The null score is this score minus that of the best span, and is to be
    compared with 0. With `null`, as in SQuAD 2.0, the null answer is in the list. Equal logits, whose order run_qa.py leaves open, are
    taken from left to right.
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
        predictions.append(Decoded(question, answer.text, null_score, _with_probabilities(entries)))
    return predictions


class _Spans(NamedTuple):
    """S spans, as arrays [S]."""

    row: np.ndarray  # the window's number
    first: np.ndarray  # the first piece, counted in the context; -1 for no answer
    last: np.ndarray
    start: np.ndarray  # the start's score
    end: np.ndarray


def _questions(windows: Sequence[Window]) -> Iterator[tuple[int, list[int]]]:
    """Yields (question, the numbers of its windows) for each question."""
    for question, rows in itertools.groupby(range(len(windows)), key=lambda row: windows[row].question):
        yield question, list(rows)


def _allowed(window: Window, start: np.ndarray, end: np.ndarray, max_pieces: int) -> np.ndarray:
    """Which spans, given as places in the row, lie in the context, end where they begin or later, and are short enough."""
    behind = window.first + len(window.max_context)
    return (start >= window.first) & (end < behind) & (start <= end) & (end - start < max_pieces)


def _max_context(window: Window, start: np.ndarray) -> np.ndarray:
    """Window.max_context at these places of the row; False at places outside of the context."""
    everywhere = np.zeros(max(len(window.tokens), int(start.max()) + 1), bool)
    everywhere[window.first : window.first + len(window.max_context)] = window.max_context
    return everywhere[start]


def _spans(window: Window, row: int, start, end, start_score, end_score, allowed) -> _Spans:
    """The allowed spans of a window, in the order of the grid [starts, ends], whose shape all arguments behind `row` have."""
    shift = window.begin - window.first
    first, last = start[allowed] + shift, end[allowed] + shift
    return _Spans(np.full(len(first), row), first, last, start_score[allowed], end_score[allowed])


def _best_first(found: Sequence[_Spans]) -> Iterator[tuple[int, int, int, float, float]]:
    """(row, first, last, start, end) of all spans, the highest sum of scores first; equal ones stay in order."""
    spans = _Spans(*(np.concatenate(column) for column in zip(*found, strict=True)))
    order = np.argsort(-(spans.start + spans.end), kind="stable")
    return zip(*(column[order].tolist() for column in spans), strict=True)


def _entry(context: Context, first: int, last: int, start: float, end: float, text_of: TextOf) -> Entry:
    if first < 0:
        return Entry("", 0.0, start, end, None)
    return Entry(text_of(context, first, last), 0.0, start, end, (int(context.spans[first, 0]), int(context.spans[last, 1])))


def _with_probabilities(entries: list[Entry]) -> list[Entry]:
    """With the softmax of the entries' scores as their probabilities, as in both programs."""
    scores = np.array([entry.start + entry.end for entry in entries])
    weights = np.exp(scores - scores.max())
    return [entry._replace(probability=float(p)) for entry, p in zip(entries, weights / weights.sum(), strict=True)]
