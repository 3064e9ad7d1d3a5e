"""Which row stands at a global index, and batches of them, read ahead.

    stream = Stream(["data/wiki", "data/books"], weights=[3, 1], seed=0)
    for batch in batches(stream, start_step=1200, global_batch=256): ...

The row at an index is a pure function of (seed, index), so the loader's whole state is the step, for any number of hosts: each
asks for its rows of the step's global batch. An epoch holds every row once, in the order of a permutation of the chunks (the records
of 256 rows) and of a permutation of the rows within each chunk.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.rows import layouts, permutations, records
from electra_jax.types import Batch

PERIOD = 10_000  # rows after which the pattern of a mixture repeats; any so many rows in a row keep the weights
_CHUNKS, _ROWS, _MIX = range(3)  # a word of each hash: what it is for, so that no two uses share one


class Stream:
    """The training rows of one or more prepared folders, endless and shuffled.

    Attributes: `length` of a row, `num_rows` of all folders together, `manifests`, one a folder.
    """

    def __init__(self, directories: Sequence[str], weights: Sequence[float] | None, seed: int):
        """`weights`: the folders' shares of the rows, any positive numbers; None or empty: in proportion to their rows.

        UserError where the folders do not agree on length and tokenizer, are damaged, or where a weight cannot be kept.
        """
        splits = _open(directories, "train")
        self.length: int = splits[0].length
        self.num_rows = sum(split.num_rows for split in splits)
        self.manifests = [split.manifest for split in splits]
        self._quotas = _quotas(directories, weights or [split.num_rows for split in splits])
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

    CACHED_CHUNKS = 32  # of at most 256 rows each

    def __init__(self, split: records.Split, seed: int, number: int):
        self._split, self._key = split, (seed, number)
        self._lock = threading.Lock()
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._chunks: OrderedDict[tuple[int, int], _Chunk] = OrderedDict()

    def read(self, own: np.ndarray, tokens: np.ndarray, at: np.ndarray) -> None:
        """Writes the rows with indices `own` [n] into tokens[at]."""
        epochs, places = np.divmod(own, self._split.num_rows)
        for epoch in np.unique(epochs).tolist():
            chunks, starts = self._epoch(epoch)
            here = np.flatnonzero(epochs == epoch)
            slots = np.searchsorted(starts, places[here], side="right") - 1
            for slot in np.unique(slots).tolist():
                some = here[slots == slot]
                tokens[at[some]] = self._chunk(epoch, int(chunks[slot]))[places[some] - starts[slot]]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the chunks in this epoch's order, the place in the epoch where each begins)."""
        with self._lock:
            if epoch not in self._epochs:
                chunks = permutations.permutation(len(self._split.chunk_rows), *self._key, epoch, _CHUNKS)
                ends = np.cumsum(self._split.chunk_rows[chunks])
                self._epochs[epoch] = chunks, ends - self._split.chunk_rows[chunks]
                if len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def _chunk(self, epoch: int, chunk: int) -> np.ndarray:
        """Its rows in this epoch's order; read by one thread while the others go on with other chunks."""
        with self._lock:
            entry = self._chunks.pop((epoch, chunk), None) or _Chunk()
            self._chunks[epoch, chunk] = entry
            if len(self._chunks) > self.CACHED_CHUNKS:
                self._chunks.popitem(last=False)
        with entry.lock:
            if entry.rows is None:
                rows = self._split.read_chunk(chunk)
                entry.rows = rows[permutations.permutation(len(rows), *self._key, epoch, _ROWS, chunk)]
            return entry.rows


class _Chunk:
    def __init__(self):
        self.lock, self.rows = threading.Lock(), None


def batches(
    stream: Stream, *, start_step: int, global_batch: int, rows: Sequence[int] | None = None, read_ahead: int = 8
) -> Iterator[Batch]:
    """Endless: the batch of `start_step`, and so on. Leaves are numpy int32, [b, L], and `row` [b].

    Args:
      rows: which of the step's rows 0 to global_batch - 1 this host wants, in this order; None: all.
      read_ahead: how many batches threads prepare in advance; 0: none, and no threads.

    The iterator has a `close()`, which ends its threads.
    """
    row = np.arange(global_batch, dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
    if len(row) and not (0 <= row.min() and row.max() < global_batch):
        raise ValueError(f"rows must lie in 0 to {global_batch - 1}")
    # Most of the cost of a small batch does not depend on its size. So the batches of several steps are made at once, until they have as
    # many rows as a chunk, which makes several times as many tokens per CPU-second (docs/speed.md).
    steps = max(1, min(read_ahead, records.ROWS_PER_RECORD // max(len(row), 1)))
    ahead = -(-read_ahead // steps)
    threads = min(2, ahead)  # numpy holds the interpreter's lock for half of the time, so that more threads do not help
    groups = grain.MapDataset.source(_Groups(stream, start_step, global_batch, row, steps))
    return _each(iter(groups.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))))


class _Groups:
    """A source as grain wants it: element i is the batches of the `steps` steps from `start_step + i * steps` on."""

    def __init__(self, stream: Stream, start_step: int, global_batch: int, row: np.ndarray, steps: int):
        self._stream, self._start_step, self._global_batch, self._row, self._steps = stream, start_step, global_batch, row, steps

    def __len__(self) -> int:
        return 1 << 60

    def __getitem__(self, element: int) -> list[Batch]:
        step_S = self._start_step + element * self._steps + np.arange(self._steps, dtype=np.int64)
        tokens = self._stream.rows((step_S[:, None] * self._global_batch + self._row).ravel())
        whole = _batch(tokens, np.tile(self._row, self._steps), self._stream.manifests[0])
        kind, shape = type(whole), (self._steps, len(self._row))  # the Batch of a task may have more leaves than ours
        by_step = (leaf.reshape(*shape, *leaf.shape[1:]) for leaf in vars(whole).values())
        return [kind(*batch) for batch in zip(*by_step, strict=True)]


def _each(groups: Iterator[list[Batch]]) -> Iterator[Batch]:
    try:
        for group in groups:
            yield from group
    finally:
        groups.close()


def heldout_batches(directories: Sequence[str], *, batch: int, max_rows: int | None = None) -> Iterator[tuple[Batch, np.ndarray]]:
    """(Batch, valid [b] bool) over the held-out rows, in order, folder after folder.

    The last batch repeats its last row, with `valid` False, until it is full. `row` is the row's index in the held-out set.
    `max_rows`: at most so many, the first ones of each folder in proportion to what it has (they were shuffled when written).
    """
    splits = _open(directories, "heldout")
    total = sum(split.num_rows for split in splits)
    taken = [split.num_rows for split in splits]
    if max_rows is not None and max_rows < total:
        ends = np.cumsum([0, *taken]) * max_rows // total
        taken = np.diff(ends).tolist()
    tokens = _first_rows(splits, taken)
    index, count, left = 0, sum(taken), np.empty((0, splits[0].length), np.int32)
    while index < count:
        while len(left) < min(batch, count - index):
            left = np.concatenate([left, next(tokens)])
        block, left = left[:batch], left[batch:]
        kept = np.minimum(np.arange(batch), len(block) - 1)
        row = (index + kept).astype(np.int32)
        yield _batch(block[kept], row, splits[0].manifest), np.arange(batch) < len(block)
        index += len(block)


def _first_rows(splits: Sequence[records.Split], taken: Sequence[int]) -> Iterator[np.ndarray]:
    for split, rows in zip(splits, taken, strict=True):
        for chunk in range(len(split.chunk_rows)):
            if rows > 0:
                yield split.read_chunk(chunk)[:rows].astype(np.int32)
            rows -= int(split.chunk_rows[chunk])


def _batch(tokens_BxL: np.ndarray, row_B: np.ndarray, manifest: dict) -> Batch:
    return Batch(**layouts.columns(tokens_BxL, manifest), row=row_B)


def _open(directories: Sequence[str], split: str) -> list[records.Split]:
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
    offset = np.array([permutations.uniform(seed, number, _MIX) for number in range(len(quotas))])
    by_place = np.argsort((rank + offset[which]) / quotas[which], kind="stable")
    return which[by_place], rank[by_place]
