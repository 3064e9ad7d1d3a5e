"""Batches of a stream's rows, read ahead; and of the held-out rows, in order.

    for batch in batches(Stream(folders, None, seed=0), start_step=1200, global_batch=256): ...

The stream says which row stands where (order.py), so the loader's whole state is the step.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from electra_jax.data.rows import layouts, order, records
from electra_jax.types import Batch


def batches(
    stream: order.Stream, *, start_step: int, global_batch: int, rows: Sequence[int] | None = None, read_ahead: int = 8
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

    def __init__(self, stream: order.Stream, start_step: int, global_batch: int, row: np.ndarray, steps: int):
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
    splits = order.agreeing(directories, "heldout")
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
