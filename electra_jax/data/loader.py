"""Which row stands at a global index: a pure function of (seed, index), for one corpus or a mixture.

Resume is the step number alone, whatever the number of hosts. Chunks (records) are permuted, and rows within each, anew every epoch.
"""

import collections
import functools
import os
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from electra_jax.cli import UserError
from electra_jax.data import records
from electra_jax.types import Batch

MIXTURE_PERIOD = 10_000  # rows in which a mixture keeps its weights exactly
_CACHED_CHUNKS = 64
_READ_AHEAD_STEPS = 16


def permutation(size: int, *salt: int) -> np.ndarray:
    """A permutation of range(size), int64, for ever the same: argsort of splitmix64 (numpy's own may change with its version)."""
    state = np.uint64(0)
    for word in salt:
        state = _splitmix(np.array([word & 0xFFFFFFFFFFFFFFFF], np.uint64) ^ state)[0]
    return np.argsort(_splitmix(np.arange(size, dtype=np.uint64) + state), kind="stable")


def _splitmix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Shuffled:
    """The training rows of one folder in shuffled order, epoch after epoch."""

    def __init__(self, split: records.Split, seed: int, number: int):
        self._split, self._seed, self._number = split, seed, number
        self._chunks: collections.OrderedDict[tuple[int, int], np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._epoch = functools.lru_cache(maxsize=3)(self._order_of)

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = permutation(len(self._split.chunk_rows), self._seed, self._number, epoch)
        return order, np.concatenate([[0], np.cumsum(self._split.chunk_rows[order])])

    def _chunk(self, epoch: int, chunk: int) -> np.ndarray:
        with self._lock:
            if (epoch, chunk) not in self._chunks:
                tokens = self._split.read_chunk(chunk)
                self._chunks[epoch, chunk] = tokens[permutation(len(tokens), self._seed, self._number, epoch, chunk)]
                if len(self._chunks) > _CACHED_CHUNKS:
                    self._chunks.popitem(last=False)
            return self._chunks[epoch, chunk]

    def fill(self, out: np.ndarray, places: np.ndarray, indices: np.ndarray) -> None:
        """out[places] = the rows at `indices` of this corpus's own order."""
        epochs, within = np.divmod(indices, self._split.num_rows)
        for epoch in np.unique(epochs):
            order, starts = self._epoch(int(epoch))
            now = epochs == epoch
            which = np.searchsorted(starts, within[now], side="right") - 1
            offset, at = within[now] - starts[which], places[now]
            for w in np.unique(which):
                here = which == w
                out[at[here]] = self._chunk(int(epoch), int(order[w]))[offset[here]]


class Stream:
    """The endless stream of training rows of one prepared folder, or of several by weights.

    `weights` None: by the folders' numbers of rows. Raises UserError where folders do not fit together.
    """

    def __init__(self, directories: Sequence[str | os.PathLike], weights: Sequence[float] | None, seed: int):
        splits = [records.Split(directory, "train") for directory in directories]
        self.manifests = [split.manifest for split in splits]
        _same_layout(directories, self.manifests)
        self.length, self.num_rows = splits[0].length, sum(split.num_rows for split in splits)
        weights = [split.num_rows for split in splits] if weights is None else list(weights)
        if len(weights) != len(splits) or min(weights) < 0 or not sum(weights):
            raise UserError(f"data.weights={tuple(weights)} for {len(splits)} folders: give one positive number for each")
        self._corpora = [_Shuffled(split, seed, number) for number, split in enumerate(splits)]
        self._pattern = mixture_pattern(weights, seed)
        # Of each corpus, how many of its rows stand before a place of the pattern.
        self._before = np.stack([np.cumsum(self._pattern == k) - (self._pattern == k) for k in range(len(splits))])
        self._quota = np.bincount(self._pattern, minlength=len(splits))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """tokens [n, L] int32 at global indices [n] int64."""
        indices = np.asarray(indices, np.int64)
        out = np.empty((len(indices), self.length), np.int32)
        period, place = np.divmod(indices, MIXTURE_PERIOD)
        corpus = self._pattern[place]
        for k in np.unique(corpus):
            mine = np.flatnonzero(corpus == k)
            self._corpora[k].fill(out, mine, period[mine] * self._quota[k] + self._before[k, place[mine]])
        return out


def mixture_pattern(weights: Sequence[float], seed: int) -> np.ndarray:
    """int64 [MIXTURE_PERIOD]: which corpus each row is from. Exact quotas by largest remainder, each spread evenly.

    Repeated without end, so any window of MIXTURE_PERIOD rows keeps the weights exactly. Raises UserError for a weight too small for one row.
    """
    share = np.asarray(weights, np.float64) / np.sum(weights) * MIXTURE_PERIOD
    quota = np.floor(share).astype(np.int64)
    quota[np.argsort(-(share - quota), kind="stable")[: MIXTURE_PERIOD - quota.sum()]] += 1
    if np.any((quota == 0) & (share > 0)):
        raise UserError(f"data.weights={tuple(weights)}: the smallest gives under one row in {MIXTURE_PERIOD:,}; leave that folder out")
    # The j-th of q rows wants the place (j + phase) / q of the period; sorting the wishes spreads every corpus evenly.
    phase = (permutation(len(quota), seed, 7) + 0.5) / len(quota)
    wishes = np.concatenate([(np.arange(q) + p) / max(q, 1) for q, p in zip(quota, phase, strict=True)])
    return np.repeat(np.arange(len(quota)), quota)[np.argsort(wishes, kind="stable")]


def _same_layout(directories, manifests) -> None:
    for directory, manifest in zip(directories[1:], manifests[1:], strict=True):
        for name, of in (("length of rows", lambda m: m["length"]), ("tokenizer", lambda m: m["tokenizer"]["sha256"])):
            if of(manifest) != of(manifests[0]):
                raise UserError(f"{directories[0]} and {directory} differ in {name}: prepare them alike to mix them")


def batches(stream: Stream, *, start_step: int, global_batch: int, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """The batches of steps start_step, start_step + 1, ... without end, numpy int32, read ahead by threads.

    Step s holds the global indices s * global_batch + row; `rows` are those that this host wants (all by default).
    """
    rows = np.arange(global_batch, dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
    special = _special_ids(stream.manifests[0])

    def at(step: int) -> Batch:
        tokens = stream.rows(step * global_batch + rows)
        return Batch(**records.expand(tokens, *special), row=rows.astype(np.int32))

    steps = grain.MapDataset.range(start_step, 2**62).map(at)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=_READ_AHEAD_STEPS)))


def heldout_batches(
    directories: Sequence[str | os.PathLike], *, batch: int, max_rows: int | None = None
) -> Iterator[tuple[Batch, np.ndarray]]:
    """(batch, valid [B] bool): the held-out rows in their order; the last batch is filled up with repeats that are not valid.

    `row` is the index in the held-out set. Of several folders each gives its share of `max_rows`.
    """
    splits = [records.Split(directory, "heldout") for directory in directories]
    special, total = _special_ids(splits[0].manifest), sum(split.num_rows for split in splits)
    pieces = []
    for split in splits:
        wanted = split.num_rows if max_rows is None else min(split.num_rows, -(-max_rows * split.num_rows // total))
        chunks: list[np.ndarray] = []
        while sum(map(len, chunks)) < wanted:
            chunks.append(split.read_chunk(len(chunks)))
        pieces.append(np.concatenate(chunks)[:wanted])
    tokens = np.concatenate(pieces)
    for start in range(0, len(tokens), batch):
        row = np.arange(start, start + batch)
        valid = row < len(tokens)
        yield Batch(**records.expand(tokens[row % len(tokens)], *special), row=row.astype(np.int32)), valid


def _special_ids(manifest) -> tuple[int, int, int]:
    ids = manifest["tokenizer"]
    return ids["cls_id"], ids["sep_id"], ids["pad_id"]
