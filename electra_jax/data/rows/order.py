"""Which row stands at a global index of the training rows.

    stream = Stream(["data/wiki", "data/books"], weights=[3, 1], seed=0)
    tokens_NxL = stream.rows(np.arange(256))

The row at an index is a pure function of (seed, index), so that no reader has a state: each host asks for its rows of the step's global
batch, however many hosts there are. An epoch holds every row once: the chunks (records of 256 rows) are permuted and cut into windows of
64 that follow one another, and the rows of each window are permuted. A window bounds the memory, and mixes well: were rows permuted
within each chunk alone, most rows of a batch would meet again in one batch of the next epoch.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.rows import hashing, layouts, records

PERIOD = 10_000  # rows after which the pattern of a mixture repeats; any so many rows in a row keep the weights
_CHUNKS, _ROWS, _MIX = range(3)  # a word of each hash: what it is for, so that no two uses share one


class Stream:
    """The training rows of one or more prepared folders, endless and shuffled.

    Attributes: `length` of a row, `num_rows` of all folders together, `manifests`, one a folder, and `shares`, of each folder in the rows.
    """

    def __init__(self, directories: Sequence[str], weights: Sequence[float] | None, seed: int):
        """`weights`: the folders' shares of the rows, any positive numbers; None or empty: in proportion to their rows.

        UserError where the folders do not agree on length and tokenizer, are damaged, or where a weight cannot be kept.
        """
        splits = agreeing(directories, "train")
        self.length: int = splits[0].length
        self.num_rows = sum(split.num_rows for split in splits)
        self.manifests = [split.manifest for split in splits]
        self._quotas = _quotas(directories, weights or [split.num_rows for split in splits])
        self.shares = self._quotas / PERIOD
        self._which, self._rank = _pattern(self._quotas, seed)
        self._shuffled = [_Shuffled(split, seed, number) for number, split in enumerate(splits)]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """tokens [n, L] int32 of the rows at these global indices [n] int64. UserError names a shard that is damaged."""
        indices = np.asarray(indices, np.int64)
        period, place = np.divmod(indices, len(self._which))
        which = self._which[place]
        own = period * self._quotas[which] + self._rank[place]
        tokens = np.empty((len(indices), self.length), np.int32)
        for number, corpus in enumerate(self._shuffled):
            at = np.flatnonzero(which == number)
            if len(at):
                corpus.read(own[at], tokens, at)
        return tokens


class _Shuffled:
    """One folder's rows at its own indices 0, 1, ...: an epoch after the other."""

    WINDOW_CHUNKS = 64  # of at most 256 rows each
    CACHED_WINDOWS = 3  # batches that are read ahead may stand on both sides of a window's end

    def __init__(self, split: records.Split, seed: int, number: int):
        self._split, self._key = split, (seed, number)
        self._lock = threading.Lock()
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    def read(self, own: np.ndarray, tokens: np.ndarray, at: np.ndarray) -> None:
        """Writes the rows with indices `own` [n] into tokens[at]."""
        epochs, places = np.divmod(own, self._split.num_rows)
        for epoch in np.unique(epochs).tolist():
            _, starts = self._epoch(epoch)
            here = np.flatnonzero(epochs == epoch)
            slots = np.searchsorted(starts, places[here], side="right") - 1
            for slot in np.unique(slots).tolist():
                some = here[slots == slot]
                tokens[at[some]] = self._window(epoch, slot)[places[some] - starts[slot]]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the chunks in this epoch's order, the place in the epoch where each window of them begins)."""
        with self._lock:
            if epoch not in self._epochs:
                chunks = hashing.permutation(len(self._split.chunk_rows), *self._key, epoch, _CHUNKS)
                ends = np.cumsum(self._split.chunk_rows[chunks])
                self._epochs[epoch] = chunks, (ends - self._split.chunk_rows[chunks])[:: self.WINDOW_CHUNKS]
                if len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """Its rows in this epoch's order; read by one thread while the others go on with other windows."""
        with self._lock:
            entry = self._windows.pop((epoch, window), None) or _Window()
            self._windows[epoch, window] = entry
            if len(self._windows) > self.CACHED_WINDOWS:
                self._windows.popitem(last=False)
        with entry.lock:
            if entry.rows is None:
                chunks = self._epoch(epoch)[0][window * self.WINDOW_CHUNKS : (window + 1) * self.WINDOW_CHUNKS]
                rows = np.concatenate([self._split.read_chunk(chunk) for chunk in chunks.tolist()])
                entry.rows = rows[hashing.permutation(len(rows), *self._key, epoch, _ROWS, window)]
            return entry.rows


class _Window:
    def __init__(self):
        self.lock, self.rows = threading.Lock(), None


def agreeing(directories: Sequence[str], split: str) -> list[records.Split]:
    """That split of each folder. UserError where they do not agree on length, layout, held-out share and tokenizer."""
    if not directories:
        raise UserError("no data: name a folder that launch/prepare.py wrote")
    splits = [records.Split(directory, split) for directory in directories]
    first = splits[0]
    for directory, other in zip(directories, splits, strict=True):
        if other.length != first.length:
            raise UserError(
                f"rows of {first.length} tokens in {directories[0]}, of {other.length} in {directory}: prepare one of them again"
            )
        layout, others = layouts.layout_of(first.manifest), layouts.layout_of(other.manifest)
        if layout != others:
            raise UserError(f"rows of the layout {layout} in {directories[0]}, {others} in {directory}: prepare one of them again")
        options, others = (each.manifest.get("options", {}) for each in (first, other))
        if options.get("heldout") != others.get("heldout"):  # a document is held out by a hash and the share
            raise UserError(
                f"{options.get('heldout')} of the documents in {directories[0]} and {others.get('heldout')} in {directory} are held out: a "
                "document of both may be trained on in one of them: prepare one again with the other's --heldout"
            )
        if options.get("split_rule", 1) != others.get("split_rule", 1):
            raise UserError(f"{directories[0]} and {directory} hold out documents by two versions' rules: prepare the older one again")
        if other.manifest["tokenizer"]["sha256"] != first.manifest["tokenizer"]["sha256"]:
            raise UserError(
                f"{directories[0]} and {directory} were made with different tokenizers: prepare one with --tokenizer={directories[0]}"
                "/tokenizer, or the other way round"
            )
    return splits


def _quotas(directories: Sequence[str], weights: Sequence[float]) -> np.ndarray:
    """int64 [folders], of sum PERIOD: rows of each in a period, by the method of the largest remainder."""
    if len(weights) != len(directories):
        raise UserError(f"{len(weights)} weights for {len(directories)} folders: give one each, or none")
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise UserError(f"weights {list(weights)}: each must be a number above 0; leave out a folder that is not wanted")
    shares = shares / shares.sum() * PERIOD
    quotas = np.floor(shares).astype(np.int64)
    largest = np.argsort(quotas - shares, kind="stable")
    quotas[largest[: PERIOD - quotas.sum()]] += 1
    if not quotas.all():
        raise UserError(
            f"{directories[int(np.argmin(quotas))]} would give less than one row in {PERIOD:,}: raise its weight or leave it out"
        )
    return quotas


def _pattern(quotas: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(which folder, the row's number among that folder's rows of a period), each int64 [PERIOD], each folder's rows evenly spread.

    The k-th of a folder's q rows stands near (k + u) / q of the period, u in [0, 1) drawn once. A period is repeated, so that
    any PERIOD rows in a row, wherever they begin, hold exactly the quotas.
    """
    which = np.repeat(np.arange(len(quotas)), quotas)
    rank = np.concatenate([np.arange(quota) for quota in quotas])
    offset = np.array([hashing.uniform(seed, number, _MIX) for number in range(len(quotas))])
    by_place = np.argsort((rank + offset[which]) / quotas[which], kind="stable")
    return which[by_place], rank[by_place]
