"""Text -> a Batch, for who wants a model's numbers and not a training run."""

from collections.abc import Sequence

import numpy as np

from electra_jax.data.tokenizer import Tokenizer
from electra_jax.types import Batch


def encode(texts: Sequence[str], tokenizer: Tokenizer, max_length: int = 512) -> Batch:
    """A row a text: [CLS], its tokens, [SEP], padded to the longest of them; what goes past `max_length` tokens is cut."""
    ids = [tokenizer_ids[: max_length - 2] for tokenizer_ids in tokenizer.encode_batch(list(texts))]
    length = max((len(x) for x in ids), default=0) + 2
    tokens_BxL = np.full((len(ids), length), tokenizer.pad_id, np.int32)
    segments_BxL = np.zeros_like(tokens_BxL)
    for row, x in enumerate(ids):
        tokens_BxL[row, : len(x) + 2] = [tokenizer.cls_id, *x, tokenizer.sep_id]
        segments_BxL[row, : len(x) + 2] = 1
    positions_BxL = np.arange(length, dtype=np.int32)[None] * segments_BxL
    return Batch(tokens_BxL, segments_BxL, positions_BxL, np.zeros_like(tokens_BxL), np.arange(len(ids), dtype=np.int32))
