"""Rows of many lengths -> batches of a few lengths, so that there is little padding and few programs are compiled.

Which rows a step has is a pure function of (lengths of all rows, seed, step), as in pretraining (data/rows/order.py): a resumed run
needs to know the step alone. The length of a step's batch does not depend on the seed, so that several seeds can train in one program.
"""

from collections.abc import Sequence

import numpy as np

from electra_jax.data.rows import hashing

_WITHIN, _STEPS = range(2)  # what a hash is for; each hash has one of these words in its key


def row_lengths(lengths_N: np.ndarray, count: int = 6, multiple: int = 8) -> tuple[int, ...]:
    """At most `count` multiples of `multiple`, ascending, chosen so that padding each row to the next of them gives the fewest tokens in
    all. 8 suits the widths of vector units and cache lines; attention may want more (models.attention.choice.row_multiple).

    The last one holds the longest row. The choice is exact, by dynamic programming over the possible lengths.
    """
    candidates, rows = np.unique(-(-lengths_N // multiple) * multiple, return_counts=True)
    below = np.concatenate([[0], np.cumsum(rows)])  # rows of the first i candidates
    # best[k][i]: the fewest tokens that the rows of the first i candidates have with at most k lengths. begins[k - 1][i]: where the last
    # length's group of candidates then begins.
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


def ladder(longest: int, multiple: int = 8) -> tuple[int, ...]:
    """Lengths for rows that are not known in advance, ascending. Each is two thirds of the next longer one, rounded up to a multiple of
    `multiple`; the shortest is twice that, unless `longest` is less. They follow from these two numbers alone, so that the length to which
    a row is padded never depends on the other rows."""
    found = [longest]
    while (next_one := -(-found[-1] * 2 // (3 * multiple)) * multiple) < found[-1] and found[-1] > 2 * multiple:
        found.append(next_one)
    return tuple(reversed(found))


class Batches:
    """The order of a training set in batches. Attributes: lengths (those that batches may have), batch_rows, steps_per_epoch."""

    def __init__(self, lengths_N: np.ndarray, lengths: Sequence[int], batch_rows: int):
        """lengths_N: how many tokens each row has."""
        self.lengths, self.batch_rows = tuple(lengths), batch_rows
        self.steps_per_epoch = -(-len(lengths_N) // batch_rows)
        self._groups = groups(lengths_N, lengths)
        self._counts = _counts([len(group) for group in self._groups], batch_rows)
        self._epoch, self._steps, self._rows = -1, [], {}  # a cache for the epoch that was asked for last

    def rows(self, step: int, seed: int) -> tuple[int, np.ndarray]:
        """(length of the batch, numbers of its rows [batch_rows]) of a step. -1 stands for an empty row: the last batch of the longest
        length may not be full. Every row occurs once per epoch.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._steps, self._rows = epoch, self._schedule(epoch), {}
        if seed not in self._rows:
            self._rows[seed] = self._shuffled(epoch, seed)
        group, number = self._steps[place]
        return self.lengths[group], self._rows[seed][group][number]

    def _schedule(self, epoch: int) -> list[tuple[int, int]]:
        """(number of its length, number of the batch among those of this length) of each step: the same for every seed."""
        steps = [(group, number) for group, count in enumerate(self._counts) for number in range(count)]
        return [steps[i] for i in hashing.permutation(len(steps), _STEPS, epoch)]

    def _shuffled(self, epoch: int, seed: int) -> list[np.ndarray]:
        """Numbers of rows [batches, batch_rows] for each length. Rows that do not fill a batch of their own length join those of the
        next."""
        found, left = [], np.empty(0, np.int64)
        for number, (group, count) in enumerate(zip(self._groups, self._counts, strict=True)):
            rows = np.concatenate([left, group])
            rows = rows[hashing.permutation(len(rows), _WITHIN, seed, epoch, number)]
            size = count * self.batch_rows
            full = np.full(size, -1, np.int64)
            full[: len(rows)] = rows[:size]
            found.append(full.reshape(count, self.batch_rows))
            left = rows[size:]
        return found


def groups(lengths_N: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """For each length, the numbers of the rows that it is the shortest for."""
    which_N = np.searchsorted(lengths, lengths_N)
    return [np.flatnonzero(which_N == group) for group in range(len(lengths))]


def _counts(sizes: Sequence[int], batch_rows: int) -> list[int]:
    """How many batches each length has, given the number of its rows. Rows that do not fill a batch go to the next length; the last
    length may have one batch that is not full."""
    counts, left = [], 0
    for size in sizes:
        count, left = divmod(size + left, batch_rows)
        counts.append(count)
    counts[-1] += left > 0
    return counts
