"""The one tiny model, vocabulary and batches of all tests; a test names what it wants otherwise."""

import dataclasses

import jax
import numpy as np

import electra_jax
from electra_jax import rng
from electra_jax.data.tokenizers import SPECIALS, Tokenizer, WordPiece
from electra_jax.models import electra as network
from electra_jax.models.config import PRESETS, ElectraConfig
from electra_jax.objectives import electra
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.types import Batch, Objective, Vocabulary

VOCAB_SIZE, LENGTH = 64, 16
CLS, SEP, MASK, FIRST = 2, 3, 4, 5  # ids; [PAD] is 0
VOCABULARY = Vocabulary(CLS, SEP, MASK, np.ones(VOCAB_SIZE, bool))
ROOT = rng.root_key(7)
WORDS = [f"w{number}" for number in range(40)]


def vocabulary(size: int) -> Vocabulary:
    """Of other tokens as well; their frequencies rise with their numbers."""
    return Vocabulary(CLS, SEP, MASK, np.ones(size, bool), np.r_[np.zeros(FIRST), np.arange(1.0, size - FIRST + 1)])


def model(**changes) -> ElectraConfig:
    """One layer, dropout as published."""
    fields = dict(vocab_size=VOCAB_SIZE, max_length=32, embedding_size=8, hidden_size=16, num_layers=1, head_size=8)
    return dataclasses.replace(PRESETS["small"], **{**fields, "generator_hidden_fraction": 0.5, **changes})


def double(**changes) -> ElectraConfig:
    return model(dtype="float64", param_dtype="float64", **changes)


def save(path, tokenizer: Tokenizer, config: ElectraConfig) -> None:
    """Drawn weights of both networks and the tokenizer, in a folder of our own format, to begin a fine-tuning with."""
    params = jax.jit(lambda key: network.init_params(key, config))(ROOT)
    electra_jax.save(path, config, params, tokenizer, "electra_jax")


def save_words(path, *pieces: str, **changes) -> None:
    """A model, wide enough to learn from rows of WORDS, whose vocabulary is these words and pieces."""
    tokenizer = WordPiece([*SPECIALS, *pieces, *WORDS])
    save(path, tokenizer, model(vocab_size=tokenizer.vocab_size, hidden_size=32, head_size=16, **changes))


def objective(config: ElectraConfig | None = None, rate: float = 0.3) -> Objective:
    """ELECTRA's."""
    return electra.make(config or model(), MaskingConfig(rate=rate), ObjectiveConfig(), VOCABULARY)


def batch(rows: int = 8, length: int = LENGTH, seed: int = 0) -> Batch:
    """Rows of one document each, of very different lengths, so that means of means are far off and every device's count differs."""
    r = np.random.default_rng(seed)
    lengths = r.integers(3, length + 1, rows)
    lengths[0] = length
    tokens = np.where(np.arange(length) < lengths[:, None], r.integers(FIRST, VOCAB_SIZE, (rows, length)), 0).astype(np.int32)
    tokens[:, 0] = CLS
    tokens[np.arange(rows), lengths - 1] = SEP
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Batch(tokens, (tokens > 0).astype(np.int32), positions, np.zeros_like(tokens), np.arange(rows, dtype=np.int32))


def packed(rows: int = 4, length: int = 24, seed: int = 0) -> Batch:
    """Rows of two documents of different lengths with padding at the end."""
    r = np.random.default_rng(seed)
    tokens, segments, positions = (np.zeros((rows, length), np.int32) for _ in range(3))
    for b in range(rows):
        n, m = r.integers(5, 11), r.integers(5, 11)
        tokens[b, : n + m] = r.integers(FIRST, VOCAB_SIZE, n + m)
        tokens[b, [0, n]], tokens[b, [n - 1, n + m - 1]] = CLS, SEP
        segments[b, :n], segments[b, n : n + m] = 1, 2
        positions[b, : n + m] = [*range(n), *range(m)]
    return Batch(tokens, segments, positions, np.zeros_like(tokens), np.arange(rows, dtype=np.int32))
