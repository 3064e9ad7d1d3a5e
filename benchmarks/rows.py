"""The rows that both sides train on: random tokens in documents of real lengths, and sentences of real lengths from words of a text."""

import itertools
from collections.abc import Sequence

import numpy as np

from electra_jax.data.prepare import packing
from electra_jax.data.rows import layouts
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.types import Batch

PAD, CLS, SEP, MASK, FIRST = 0, 101, 102, 103, 1000  # of BERT's vocabulary; words begin somewhere below FIRST
KINDS = ("full", "padded", "packed")

# Every fifth percentile (0, 5, ..., 100) of the lengths of the 25,000 training reviews of IMDB (Maas et al. 2011), in tokens of BERT's
# uncased WordPiece vocabulary, [CLS] and [SEP] counted, cut at 512. Their mean is 275; 15% are cut.
REVIEW_TOKENS = (13, 86, 123, 147, 158, 168, 178, 189, 202, 217, 233, 253, 276, 306, 340, 382, 436, 509, 512, 512, 512)

# How many of the 67,349 training rows of SST-2 (Socher et al. 2013, as GLUE has it) have 3, 4, 5 ... 66 tokens, counted in the same way.
# Their mean is 13.3.
SHORTEST_SENTENCE = 3
SENTENCES = (
    (1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950, 1777, 1661, 1515)
    + (1373, 1285, 1132, 1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491, 442, 448, 400)
    + (337, 304, 286, 242, 195, 203, 192, 155, 148, 130, 89, 82, 85, 73, 55, 42)
    + (50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2)
)


# How many of the 134,000 sentences of BLiMP (Warstadt et al. 2020) have 3, 4, 5 ... 36 tokens, counted in the same way. Their mean is 11.8.
SCORED_SENTENCES = (
    *(0, 0, 678, 3853, 7423, 13569, 15829, 16659, 16804, 13671, 10638, 8050, 5909, 4633, 3803, 3108, 2472),
    *(1921, 1574, 1150, 779, 546, 374, 259, 97, 70, 61, 18, 20, 15, 7, 5, 3, 2),
)


def make(kind: str, vocab_size: int, num_rows: int, length: int) -> Batch:
    """full: a document fills each row. padded: a review a row, the rest padding. packed: reviews, packed densely."""
    rng = np.random.default_rng(0)

    def document(num_tokens: int) -> np.ndarray:
        return rng.integers(FIRST, vocab_size, max(num_tokens - 2, 1)).astype(np.int32)  # without [CLS] and [SEP]

    if kind == "full":
        sizes = [length] * num_rows
    else:
        number = num_rows if kind == "padded" else 8 * num_rows + 256
        at = (np.arange(number) + 0.5) / number  # evenly over the distribution: a few rows have its mean
        sizes = np.minimum(np.interp(at, np.linspace(0, 1, len(REVIEW_TOKENS)), REVIEW_TOKENS), length).astype(int)
        sizes = rng.permutation(sizes)
    if kind == "packed":
        packer = packing.DensePacker(length, CLS, SEP, PAD)
        tokens = [row for size in sizes for row in packer.add([document(size)])] + packer.flush()
        tokens = np.stack([tokens[i] for i in rng.permutation(len(tokens))[:num_rows]])
    else:
        tokens = np.full((num_rows, length), PAD, np.int32)
        for row, size in zip(tokens, sizes, strict=True):
            row[:size] = [CLS, *document(size), SEP][:size]
    return Batch(**layouts.expand(tokens, CLS, SEP, PAD), row=np.arange(num_rows, dtype=np.int32))


def useful_tokens(batch: Batch) -> int:
    return int(np.sum(batch.segments > 0))


def sentence_lengths(number: int, counts: Sequence[int] = SENTENCES) -> np.ndarray:
    """int [number]: tokens of so many sentences, evenly over the distribution that `counts` gives, in random order."""
    at = (np.arange(number) + 0.5) / number * sum(counts)
    lengths = SHORTEST_SENTENCE + np.searchsorted(np.cumsum(counts), at, side="right")
    return np.random.default_rng(0).permutation(lengths)


def sentences(text: str, tokenizer: Tokenizer, lengths: Sequence[int]) -> list[str]:
    """One sentence for each length, of exactly so many tokens with [CLS] and [SEP]: words of the text in their order, but those that
    have more pieces than the sentence still lacks."""
    words = text.split()[: 50 * len(lengths) + 1000]
    usable = [(word, len(pieces)) for word, pieces in zip(words, tokenizer.encode_batch(words), strict=True) if len(pieces)]
    stream, found = itertools.cycle(usable), []
    for length in lengths:
        chosen, lacks = [], int(length) - 2
        while lacks:
            word, count = next(stream)
            if count <= lacks:
                chosen.append(word)
                lacks -= count
        found.append(" ".join(chosen))
    return found
