"""Prepared folders opened for a run: its training rows, its held-out set and their tokenizer, compared with what the config says."""

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.config import DataConfig
from electra_jax.data.rows import loader, order, records, staging
from electra_jax.data.rows.counts import unigram_entropy
from electra_jax.types import Batch, Vocabulary


@dataclass(frozen=True)
class Data:
    stream: order.Stream
    tokenizer: tokenizers.Tokenizer
    vocabulary: Vocabulary
    heldout: list[tuple[Batch, np.ndarray]]  # with `valid`: see loader.heldout_batches
    unigram_entropy: float  # of the held-out set: see counts.py

    @property
    def reference(self) -> dict[str, float]:
        """What a naive guess reaches on the held-out set, as an evaluation's metrics."""
        return {"eval/unigram_entropy": self.unigram_entropy}

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these rows from any other: a run goes on only with the same."""
        return {"data": [manifest["sha256"] for manifest in self.stream.manifests], "tokenizer": self.tokenizer.sha256}

    @property
    def summaries(self) -> list[dict]:
        """What tells a person which text, rows and tokenizer they are, a folder each."""
        return [records.summary(manifest) for manifest in self.stream.manifests]


def open_rows(
    config: DataConfig,
    *,
    length: int | None,
    vocab_size: int | None,
    max_length: int | None,
    eval_batch_rows: int,
    eval_max_rows: int,
    num_devices: int,
    seed: int,
    scratch: pathlib.Path,
) -> Data:
    """Opens the folders of `config.path`.

    Args:
      length, vocab_size: what the rows must have; None: they may have any.
      max_length: positions that the model has; None: it needs none for any length.
      eval_batch_rows: rows of a held-out batch; rounded up until `num_devices` divide it.
      eval_max_rows: of the held-out set; 0: all.
      seed: decides the order of the training rows.
      scratch: where folders in a bucket are staged.

    UserError: no folder; one that is absent, unfinished or damaged; folders that do not fit one another or the config.
    """
    if not config.folders:
        raise UserError("no data: --config.data.path=FOLDER, a folder that launch/prepare.py wrote (several: A,B)")
    folders = [staging.local_folder(folder, scratch) for folder in config.folders]
    stream = order.Stream(folders, config.weights, seed)
    ids = stream.manifests[0]["tokenizer"]
    if length not in (None, stream.length):
        raise UserError(
            f"the rows in {folders[0]} are {stream.length} tokens long and the config says {length}: "
            f"leave --config.data.length out, or prepare the data again with --length={length}"
        )
    if vocab_size not in (None, ids["vocab_size"]):
        raise UserError(
            f"the rows in {folders[0]} were made with a vocabulary of {ids['vocab_size']} and the config says {vocab_size}: "
            "leave --config.model.vocab_size out, or prepare the data again with the other tokenizer"
        )
    if max_length is not None and stream.length > max_length:
        raise UserError(
            f"rows of {stream.length} tokens need as many positions and model.max_length is {max_length}: "
            f"--config.model.max_length={stream.length}"
        )
    tokenizer = tokenizers.load(pathlib.Path(folders[0]) / "tokenizer")
    if tokenizer.sha256 != ids["sha256"]:
        raise UserError(f"{folders[0]}/tokenizer is not the tokenizer that made the rows there: prepare the data again")
    counts_V = _counts(folders, stream.shares, tokenizer)
    vocabulary = Vocabulary(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.word_starts, counts_V)
    batch_rows = -(-eval_batch_rows // num_devices) * num_devices
    heldout = list(loader.heldout_batches(folders, batch=batch_rows, max_rows=eval_max_rows or None))
    return Data(stream, tokenizer, vocabulary, heldout, _entropy(counts_V, heldout, tokenizer))


def _special(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The tokens that are never masked."""
    return [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]


def _counts(folders: list[str], shares: np.ndarray, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """[V]: how often each token that can be masked is in what the run trains on: the folders' counts by their `shares` of its rows."""
    counts = [records.load_token_counts(folder).astype(np.float64) for folder in folders]
    total = sum(each.sum() for each in counts)
    counts_V = sum(each * (share * total / each.sum()) for share, each in zip(shares, counts, strict=True))
    counts_V[_special(tokenizer)] = 0
    return counts_V


def _entropy(counts_V: np.ndarray, heldout: list[tuple[Batch, np.ndarray]], tokenizer: tokenizers.Tokenizer) -> float:
    """The unigram entropy of the held-out set, over the tokens that can be masked, under the frequencies of what the run trains on."""
    heldout_counts_V = np.zeros(len(counts_V), np.int64)
    for batch, valid_B in heldout:
        heldout_counts_V += np.bincount(batch.tokens[valid_B].ravel(), minlength=len(counts_V))
    heldout_counts_V[_special(tokenizer)] = 0
    return unigram_entropy(counts_V, heldout_counts_V)
