"""Hashes and permutations that stay the same for ever, on every machine and under every version of numpy.

numpy does not promise that `Generator.permutation` stays the same, so a permutation here is the order of a counter's hashes. The hash is
splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), one round a word.
"""

import numpy as np

_GOLDEN, _M1, _M2, _MASK = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, (1 << 64) - 1


def _round(state, word):
    """A bijection of the word, and of the state. Python integers or uint64 arrays."""
    state = ((state ^ word) + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _M1) & _MASK
    state = ((state ^ (state >> 27)) * _M2) & _MASK
    return state ^ (state >> 31)


def hash64(*words: int) -> int:
    """64 bits from integers between 0 and 2**64 - 1."""
    state = 0
    for word in words:
        state = _round(state, word)
    return state


def hashes(count: int, *words: int, start: int = 0) -> np.ndarray:
    """uint64 [count]: hash64(*words, i) for i from `start` on. No two are equal."""
    return _round(np.uint64(hash64(*words)), np.arange(start, start + count, dtype=np.uint64))


def permutation(count: int, *words: int) -> np.ndarray:
    """int64 [count]: the numbers below `count` in an order that the words decide."""
    return np.argsort(hashes(count, *words))


def uniform(*words: int) -> float:
    """In [0, 1)."""
    return (hash64(*words) >> 11) / 2**53
