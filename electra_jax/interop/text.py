"""Text -> a Batch, to apply a model without a training run."""

import re
from collections.abc import Sequence

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.types import Batch


def encode(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Batch:
    """A row a text: [CLS], its tokens, [SEP], padded to the longest of them; what goes past `max_length` tokens is cut.

    The special pieces, as the vocabulary writes them, are themselves where a text has them: "The [MASK] sat." (In preparation they are
    text like any other.)

    max_length: at most config.max_length, the positions that the model has. UserError where it is under 2, or `texts` is one string.
    """
    if isinstance(texts, str):
        raise UserError("encode takes a list of texts: encode([text], ...)")
    if max_length < 2:
        raise UserError(f"max_length is {max_length}: it must be at least 2, for [CLS] and [SEP]")
    ids = [_ids(text, tokenizer)[: max_length - 2] for text in texts]
    length = max((len(x) for x in ids), default=0) + 2
    tokens_BxL = np.full((len(ids), length), tokenizer.pad_id, np.int32)
    segments_BxL = np.zeros_like(tokens_BxL)
    for row, x in enumerate(ids):
        tokens_BxL[row, : len(x) + 2] = [tokenizer.cls_id, *x, tokenizer.sep_id]
        segments_BxL[row, : len(x) + 2] = 1
    positions_BxL = np.arange(length, dtype=np.int32)[None] * segments_BxL
    return Batch(tokens_BxL, segments_BxL, positions_BxL, np.zeros_like(tokens_BxL), np.arange(len(ids), dtype=np.int32))


def _ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Of a text that may name special pieces."""
    numbers = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    specials = dict(zip(tokenizer.pieces(numbers), numbers, strict=True))
    parts = re.split(f"({'|'.join(map(re.escape, specials))})", text)
    encoded = iter(tokenizer.encode_batch([part for part in parts if part not in specials]))
    return np.concatenate([[specials[part]] if part in specials else next(encoded) for part in parts]).astype(np.int32)
