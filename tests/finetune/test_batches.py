"""Which rows stand in a step, and in which length."""

import itertools

import numpy as np
import pytest

from electra_jax.finetune.batches import Batches, ladder, row_lengths


def some_lengths(count: int = 1000, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).geometric(0.08, count) + 3, 3, 64)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_lengths_leave_the_fewest_tokens(count):
    for seed in range(5):
        lengths_N = some_lengths(60, seed)
        found = row_lengths(lengths_N, count)
        last = -(-lengths_N.max() // 8) * 8

        def cost(lengths, lengths_N=lengths_N):
            return sum(min(each for each in lengths if each >= n) for n in lengths_N)

        others = itertools.combinations(range(8, last, 8), min(count, last // 8) - 1)
        assert cost(found) == min(cost((*each, last)) for each in others)
        assert len(found) <= count and found[-1] == last and all(length % 8 == 0 for length in found)


def test_of_one_length_there_is_one():
    assert row_lengths(np.full(10, 17), 4) == (24,)


def test_lengths_that_a_kernel_takes():
    assert row_lengths(np.array([3, 130, 140, 300]), 6, 128) == (128, 256, 384)
    assert ladder(512, 128) == (256, 384, 512)


@pytest.mark.parametrize("batch_rows", [1, 7, 32, 2000])
def test_each_row_stands_once_in_an_epoch(batch_rows):
    lengths_N = some_lengths()
    order = Batches(lengths_N, row_lengths(lengths_N), batch_rows)
    for epoch in (0, 3):
        seen = []
        for step in range(order.steps_per_epoch):
            length, rows = order.rows(epoch * order.steps_per_epoch + step, 5)
            assert rows.shape == (batch_rows,)
            rows = rows[rows >= 0]
            assert len(rows) and (lengths_N[rows] <= length).all()
            seen += rows.tolist()
        assert sorted(seen) == list(range(len(lengths_N)))


def test_lengths_follow_from_the_data_and_rows_from_the_seed():
    lengths_N = some_lengths()
    order = Batches(lengths_N, row_lengths(lengths_N, 4), 32)
    steps = range(2 * order.steps_per_epoch)
    lengths = {seed: [order.rows(step, seed)[0] for step in steps] for seed in (0, 1, 77)}
    assert lengths[0] == lengths[1] == lengths[77] and len(set(lengths[0])) == 4
    assert lengths[0][: order.steps_per_epoch] != lengths[0][order.steps_per_epoch :]  # each epoch in an order of its own
    first, again, other = (np.concatenate([order.rows(step, seed)[1] for step in steps]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.05
    half = len(first) // 2
    assert np.mean(first[:half] == first[half : 2 * half]) < 0.05


def test_little_is_padded():
    lengths_N = some_lengths(5000)
    order = Batches(lengths_N, row_lengths(lengths_N), 32)
    made = sum(order.rows(step, 0)[0] * 32 for step in range(order.steps_per_epoch))
    padded = sum(min(length for length in order.lengths if length >= n) for n in lengths_N)
    assert made < 1.05 * padded < 0.4 * 64 * len(lengths_N)  # rows that fill no batch of their length stand in a longer one
