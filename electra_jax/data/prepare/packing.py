"""One document after another -> rows of `length` tokens: the paper's two-segment examples, or dense packing.

The rows have the layout cls_sep of rows/layouts.py: `[CLS]` opens a segment, `[SEP]` ends it, `[PAD]` fills the end. They are int32
`[length]`, and no segment holds tokens of two documents. `lines` are the token arrays of one document, a line each, without special
tokens.
"""

import bisect
import itertools
from collections.abc import Iterable

import numpy as np

Row = np.ndarray


class PairPacker:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`: google-research/electra, build_pretraining_dataset.py, ExampleBuilder.

    A line is a "sentence". Sentences are taken until they reach the target length or the document ends; that is an example.
    What does not fit is dropped (`dropped_tokens` counts it): nothing is carried over, so a document of one long line gives
    one row. An example never holds two documents.
    """

    SINGLE_SEGMENT = 0.1  # the share of examples that have no second segment, as in classification tasks
    SHORT = 0.05  # the share whose target length is drawn, so that short inputs are known too
    SHORTEST = 5

    def __init__(self, length: int, cls_id: int, sep_id: int, pad_id: int, rng):
        """`rng.random()` in [0, 1) is all that is drawn: a `random.Random`'s stream is promised never to change."""
        if length < self.SHORTEST:
            raise ValueError(f"length {length} is below {self.SHORTEST}: [CLS] A [SEP] B [SEP] must fit")
        self.length, self.cls_id, self.sep_id, self.pad_id = length, cls_id, sep_id, pad_id
        self.dropped_tokens = 0
        self._rng = rng
        self._target = length  # carried from one example to the next, over documents too, as in the original

    def add(self, lines: Iterable[np.ndarray]) -> list[Row]:
        """The rows of one document."""
        rows, sentences, total = [], [], 0
        for line in lines:
            if not len(line):
                continue  # a line of control characters alone: it could change neither segment
            sentences.append(line)
            total += len(line)
            if total >= self._target:
                rows.append(self._example(sentences))
                sentences, total = [], 0
        if sentences:
            rows.append(self._example(sentences))
        return rows

    def flush(self) -> list[Row]:
        """Nothing is ever held back: a document's end ends its last example."""
        return []

    def _example(self, sentences: list[np.ndarray]) -> Row:
        first_target = float("inf")
        if self._rng.random() >= self.SINGLE_SEGMENT:
            first_target = (self._target - 3) // 2  # 3: [CLS] and two [SEP]
        first, second, first_size, second_size = [], [], 0, 0
        for sentence in sentences:
            # To A if A is empty, if it fits, or, once, half of the time, though it makes A too long.
            if (
                first_size == 0
                or first_size + len(sentence) < first_target
                or (second_size == 0 and first_size < first_target and self._rng.random() < 0.5)
            ):
                first.append(sentence)
                first_size += len(sentence)
            else:
                second.append(sentence)
                second_size += len(sentence)
        self._target = self.length
        if self._rng.random() < self.SHORT:
            self._target = self.SHORTEST + int(self._rng.random() * (self.length - self.SHORTEST + 1))

        # The full length bounds A and B, not the target: a short target ends an example early, it does not cut a sentence.
        first_size_kept = min(first_size, self.length - 2)
        second_size_kept = min(second_size, max(0, self.length - first_size_kept - 3))
        self.dropped_tokens += first_size - first_size_kept + second_size - second_size_kept
        row = np.full(self.length, self.pad_id, np.int32)
        row[0] = self.cls_id
        end = 1 + first_size_kept
        row[1:end] = np.concatenate(first)[:first_size_kept]
        row[end] = self.sep_id
        if second_size_kept:
            row[end + 1 : end + 1 + second_size_kept] = np.concatenate(second)[:second_size_kept]
            row[end + 1 + second_size_kept] = self.sep_id
        return row


class DensePacker:
    """`[CLS] piece [SEP] [CLS] piece [SEP] ...`: every token of every document stands in exactly one row, once.

    A document is cut into pieces of `length - 2` tokens (the last one shorter), in order; each is a segment. A piece goes to
    the open row that it fills best; at most `OPEN_ROWS` rows are open, and the fullest makes place for a new one. The rows
    follow from the documents' order alone.
    """

    OPEN_ROWS = 64  # more fill a little better and hold rows back longer
    LINES_AT_ONCE = 1 << 14  # joined, which bounds the memory that a document of many short lines takes

    def __init__(self, length: int, cls_id: int, sep_id: int, pad_id: int, rng=None):
        """`rng` is not drawn from: the signature is PairPacker's."""
        if length < 3:
            raise ValueError(f"length {length} is below 3: [CLS] token [SEP] must fit")
        self.length, self.cls_id, self.sep_id, self.pad_id = length, cls_id, sep_id, pad_id
        self._open: list[tuple[int, int, Row]] = []  # (free places, number: the older first, row), sorted
        self._opened = 0

    def add(self, lines: Iterable[np.ndarray]) -> list[Row]:
        """The rows that one more document completed."""
        step, lines = self.length - 2, iter(lines)
        rows, left = [], []  # left: at most one array, the tokens that fill no piece yet
        while some := list(itertools.islice(lines, self.LINES_AT_ONCE)):
            tokens = np.concatenate(left + some)
            whole = len(tokens) // step * step
            for start in range(0, whole, step):
                rows += self._place(tokens[start : start + step])
            left = [tokens[whole:]] if whole < len(tokens) else []
        return rows + self._place(left[0]) if left else rows

    def flush(self) -> list[Row]:
        """The rows that are still open, the older first."""
        rows = [row for _, _, row in sorted(self._open, key=lambda entry: entry[1])]
        self._open = []
        return rows

    def _place(self, piece: np.ndarray) -> list[Row]:
        need, done = len(piece) + 2, []
        best = bisect.bisect_left(self._open, need, key=lambda entry: entry[0])
        if best < len(self._open):
            free, number, row = self._open.pop(best)
        else:
            free, number, row = self.length, self._opened, np.full(self.length, self.pad_id, np.int32)
            self._opened += 1
            if len(self._open) == self.OPEN_ROWS and need + 3 <= self.length:
                done.append(self._open.pop(0)[2])
        start = self.length - free
        row[start] = self.cls_id
        row[start + 1 : start + need - 1] = piece
        row[start + need - 1] = self.sep_id
        free -= need
        if free < 3:  # no piece is smaller than [CLS] token [SEP]
            done.append(row)
        else:
            bisect.insort(self._open, (free, number, row), key=lambda entry: entry[:2])
        return done


PACKERS = {"pairs": PairPacker, "dense": DensePacker}
