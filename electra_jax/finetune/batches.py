"""Rows of their own lengths -> batches of a few lengths, so that little is padded and few programs are compiled.

Which rows stand in a step is a pure function of (lengths of all rows, seed, step), as in pretraining (data/rows/order.py): a resume
needs the step alone. The length of a step's batch does not depend on the seed, so that several seeds can train in one program.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.data.rows import hashing

MULTIPLE = 8  # of a batch's length: a multiple of what vector units and the cache's lines hold
_WITHIN, _STEPS = range(2)  # a word of each hash: what it is for


def row_lengths(lengths_N: np.ndarray, count: int = 4) -> tuple[int, ...]:
    """At most `count` multiples of 8, ascending, such that padding each row to the next of them leaves the fewest tokens.

    The last holds the longest row. Exact, by dynamic programming over the possible lengths.
    """
    candidates, rows = np.unique(-(-lengths_N // MULTIPLE) * MULTIPLE, return_counts=True)
    below = np.concatenate([[0], np.cumsum(rows)])  # rows of the first i candidates
    # best[k][i]: the fewest tokens of the first i candidates' rows in at most k lengths, and where the last group begins.
    best = [[0.0] + [np.inf] * len(candidates)]
    begins = []
    for _ in range(min(count, len(candidates))):
        costs = np.full(len(candidates) + 1, 0.0)
        begin = np.zeros(len(candidates) + 1, int)
        for i in range(1, len(candidates) + 1):
            of_begin = [best[-1][j] + candidates[i - 1] * (below[i] - below[j]) for j in range(i)]
            begin[i] = int(np.argmin(of_begin))
            costs[i] = of_begin[begin[i]]
        best.append(list(costs))
        begins.append(begin)
    found, i = [], len(candidates)
    for begin in reversed(begins):
        if i == 0:
            break
        found.append(int(candidates[i - 1]))
        i = begin[i]
    return tuple(reversed(found))


class Batches(NamedTuple):
    """The order of a training set in batches of `batch_rows`. lengths_N: of the rows, in tokens; lengths: that batches have."""

    lengths_N: np.ndarray
    lengths: tuple[int, ...]
    batch_rows: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths_N) // self.batch_rows)

    def rows(self, step: int, seed: int) -> tuple[int, np.ndarray]:
        """(length, numbers of the rows [batch_rows]) of a step; -1 is no row: the last batch of an epoch's longest rows may lack some.

        Every row stands in each epoch once.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        group, number = _schedule(self, epoch)[place]
        return self.lengths[group], _epoch(self, epoch, seed)[group][number]

    def __hash__(self):
        return id(self.lengths_N)


@functools.lru_cache(maxsize=8)
def _schedule(batches: Batches, epoch: int) -> list[tuple[int, int]]:
    """(group of lengths, number within it) of each step of an epoch: the same for every seed."""
    steps = [(group, number) for group, count in enumerate(_counts(batches)) for number in range(count)]
    return [steps[i] for i in hashing.permutation(len(steps), _STEPS, epoch)]


def groups(lengths_N: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """The numbers of the rows that each length is the shortest for."""
    which_N = np.searchsorted(lengths, lengths_N)
    return [np.flatnonzero(which_N == group) for group in range(len(lengths))]


def _counts(batches: Batches) -> list[int]:
    """Batches of each length: what fills none goes to the next length, and the longest has a last one that is not full."""
    counts, left = [], 0
    for group in groups(batches.lengths_N, batches.lengths):
        count, left = divmod(len(group) + left, batches.batch_rows)
        counts.append(count)
    counts[-1] += left > 0
    return counts


@functools.lru_cache(maxsize=32)
def _epoch(batches: Batches, epoch: int, seed: int) -> list[np.ndarray]:
    """[batches, batch_rows] of each length: shuffled anew in each epoch by each seed."""
    found, left = [], np.empty(0, np.int64)
    for number, (group, count) in enumerate(zip(groups(batches.lengths_N, batches.lengths), _counts(batches), strict=True)):
        rows = np.concatenate([left, group])
        rows = rows[hashing.permutation(len(rows), _WITHIN, seed, epoch, number)]
        size = count * batches.batch_rows
        full = np.full(size, -1, np.int64)
        full[: len(rows)] = rows[:size]
        found.append(full.reshape(count, batches.batch_rows))
        left = rows[size:]
    return found
