"""Texts, pairs of texts and tagged words -> one row of token IDs each, without padding; numpy alone.

A row is `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, and `length` counts these special tokens too. The tokenizer is given whole columns at
once, because then most words cost no more than a look-up in its cache. Questions about contexts become rows in answers.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer, WordPiece
from electra_jax.finetune.examples import Example

NO_LABEL = -1  # for a piece without a label


class TextRows(NamedTuple):
    """N rows, each of its own length n."""

    tokens: list[np.ndarray]  # int32 [n]
    types: list[np.ndarray]  # int32 [n], read-only: 1 for the second text and its [SEP], else 0
    cut: list[int]  # how many tokens of each row's texts did not fit


class TagRows(NamedTuple):
    """N sentences, each of its own length n, with w words that were not cut off."""

    tokens: list[np.ndarray]  # int32 [n]
    types: list[np.ndarray]  # int32 [n], read-only
    firsts: list[np.ndarray]  # int32 [w]: the place in the row of each word's first piece
    cut: np.ndarray  # int32 [N]: how many words at the sentence's end did not fit; what rows.outside gives is predicted for them


def type_pattern(length: int) -> np.ndarray:
    """int32 [2 x length], read-only: `length` zeros and as many ones. The types of every row are a slice of this array."""
    pattern = np.repeat(np.array([0, 1], np.int32), length)
    pattern.flags.writeable = False
    return pattern


def encode_texts(examples: Sequence[Example], tokenizer: Tokenizer, *, length: int) -> TextRows:
    """Rows of one text or of a pair, laid out as in google-research/electra, finetune/classification/classification_tasks.py (featurize).

    If a pair is too long, tokens are dropped one at a time from the end of the longer text, or of the second if both are equally long
    (_truncate_seq_pair there). If the second text has no tokens, for instance because it is "", the row is that of a single text, as
    there.
    """
    columns = [tokenizer.encode_batch(column) for column in zip(*(example.texts for example in examples), strict=True)]
    pattern = type_pattern(length)
    cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    tokens, types, cut = [], [], []
    for first, *others in zip(*columns, strict=True):
        if others and len(others[0]):
            a, b = pair_lengths(len(first), len(others[0]), length - 3)
            tokens.append(np.concatenate((cls, first[:a], sep, others[0][:b], sep)))
            types.append(pattern[length - a - 2 : length + b + 1])
            cut.append(len(first) - a + len(others[0]) - b)
        else:
            tokens.append(np.concatenate((cls, first[: length - 2], sep)))
            types.append(pattern[: len(tokens[-1])])
            cut.append(max(len(first) - length + 2, 0))
    return TextRows(tokens, types, cut)


def pair_lengths(a: int, b: int, room: int) -> tuple[int, int]:
    """How many of `a` and `b` tokens are left when the longer text, or the second of equally long ones, loses a token until both fit."""
    if a + b <= room:
        return a, b
    a = min(a, max(room - b, (room + 1) // 2))
    return a, room - a


def both_orders(examples: Sequence[Example]) -> list[Example]:
    """The examples, and then all of them again with their two texts exchanged: for training on MRPC and STS-B, where the order of a pair
    means nothing (google-research/electra, configure_finetuning.py, double_unordered). `id` and `where` stay the same, so that messages
    still name the right line."""
    single = next((example for example in examples if len(example.texts) != 2), None)
    if single is not None:
        raise UserError(f"{single.where}: both orders of two texts were asked for, and there is one text here: switch the option off")
    return [*examples, *(example._replace(texts=example.texts[::-1]) for example in examples)]


def encode_tags(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    length: int,
    type_id: int = 0,
    by_word_count: bool = False,
    published_case: bool = False,
) -> TagRows:
    """Rows of sentences; each word is labelled at its first piece (google-research/electra, finetune/tagging/tagging_tasks.py, featurize).

    Each word is cut into pieces by itself. A word of control characters alone has no pieces; it becomes one [UNK], so that every word
    has a first piece. In the published code, its tag would move to the next word.

    Each of these three options keeps a published rule:
    type_id: the published type of all tokens is 1. Type 0 is what a single text had in pretraining.
    by_word_count: before each word, line 132 there adds the sentence's number of words to the tokens so far, where the number of this
      word's pieces is meant, and compares the sum with `length`. So sentences of many words are cut long before the row is full. Otherwise
      a sentence is cut before the first word that does not fit. (A sentence of more than length - 3 words is left with [SEP] alone there,
      and with [CLS] [SEP] here.)
    published_case: words are lower-cased and stripped of accents even if the vocabulary is cased, and the ideographs of a word are not
      set apart (lines 237-239 there, tokenize_and_align). It applies to WordPiece alone, because the published code has no other tokenizer.
    """
    if published_case and isinstance(tokenizer, WordPiece):
        tokenizer = WordPiece(tokenizer.vocabulary, lower_case=True, strip_accents=True, chinese_chars=False)
    number: dict[str, int] = {}
    sentences = [np.array([number.setdefault(word, len(number)) for word in example.texts], np.intp) for example in examples]
    unknown = np.array([tokenizer.unk_id], np.int32)
    pieces = [ids if len(ids) else unknown for ids in tokenizer.encode_batch(list(number))]
    counts = np.array([len(ids) for ids in pieces], np.int32)

    pattern = type_pattern(length)
    start = length if type_id else 0
    cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    rows = TagRows([], [], [], np.zeros(len(sentences), np.int32))
    for row, words in enumerate(sentences):
        ends = 1 + np.cumsum(counts[words], dtype=np.int32)  # the place behind each word's last piece; [CLS] comes first
        firsts = ends - counts[words]
        kept = np.searchsorted(ends, length - 1, "right")
        if by_word_count:
            kept = min(kept, np.searchsorted(firsts, length - 3 - len(words), "right"))
        rows.tokens.append(np.concatenate((cls, *(pieces[word] for word in words[:kept]), sep)))
        rows.types.append(pattern[start : start + len(rows.tokens[-1])])
        rows.firsts.append(firsts[:kept])
        rows.cut[row] = len(words) - kept
    return rows


def labels_of_pieces(rows: TagRows, labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """int32 [n] for each row: a word's label at its first piece, NO_LABEL at all other places.

    labels: for each sentence, one integer for each of its words, also for words that were cut off.
    """
    spread = []
    for tokens, firsts, numbers in zip(rows.tokens, rows.firsts, labels, strict=True):
        spread.append(np.full(len(tokens), NO_LABEL, np.int32))
        spread[-1][firsts] = numbers[: len(firsts)]
    return spread
