"""Texts, pairs of texts and tagged words -> token ids, a row each, of its own length; numpy alone.

A row is `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, and `length` counts these special tokens too. Whole columns are given to the
tokenizer at once, because looking up its cache is all that a row should cost. Answers in a context are cut in answers.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer, WordPiece
from electra_jax.finetune.examples import Example

NO_LABEL = -1  # of a piece that carries none


class TextRows(NamedTuple):
    """N rows, each of its own length n."""

    tokens: list[np.ndarray]  # int32 [n]
    types: list[np.ndarray]  # int32 [n], read-only: 1 for the second text and its [SEP], else 0
    cut: list[int]  # tokens of each row's texts that did not get in


class TagRows(NamedTuple):
    """N sentences, each of its own length n, with w words that were not cut off."""

    tokens: list[np.ndarray]  # int32 [n]
    types: list[np.ndarray]  # int32 [n], read-only
    firsts: list[np.ndarray]  # int32 [w]: where the first piece of each word stands in the row
    cut: np.ndarray  # int32 [N]: words at the sentence's end that did not get in; whoever scores counts them as O, or as wrong


def type_pattern(length: int) -> np.ndarray:
    """int32 [2 x length], read-only, `length` zeros and as many ones: the types of every row are a slice of it."""
    pattern = np.repeat(np.array([0, 1], np.int32), length)
    pattern.flags.writeable = False
    return pattern


def encode_texts(examples: Sequence[Example], tokenizer: Tokenizer, *, length: int) -> TextRows:
    """One text or a pair, as google-research/electra, finetune/classification/classification_tasks.py (featurize) lays them out.

    A pair that is too long loses tokens at the end of the longer text, one at a time, and of equally long ones the second's
    (_truncate_seq_pair there). A second text without any token, "" among them, leaves the row of a single text, as there.
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
    """What is left of two texts of `a` and `b` tokens when the longer one, or the second of equal ones, loses a token until both fit."""
    if a + b <= room:
        return a, b
    a = min(a, max(room - b, (room + 1) // 2))
    return a, room - a


def both_orders(examples: Sequence[Example]) -> list[Example]:
    """The examples, then all of them again with their two texts exchanged: training data of MRPC and STS-B, where the order says nothing
    (google-research/electra, configure_finetuning.py, double_unordered). Ids and places stay, so that a mistake names its line."""
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
    """Sentences of words; the first piece of a word stands for it (google-research/electra, finetune/tagging/tagging_tasks.py, featurize).

    Each word is cut into pieces by itself. One that gives none, because it consists of control characters, becomes one [UNK], so that
    every word has a first piece; as published, its tag would sit on the next word's.

    The published rules are kept on request, one by one:
    type_id: 1 there; 0 is the type that a single text had in pretraining.
    by_word_count: line 132 there compares `length` with the sentence's number of words plus the tokens so far, where the word's own
      pieces are meant, and so cuts sentences of many words long before they are full. Otherwise a sentence is cut before the first
      word that does not fit. (A sentence of more than length - 3 words is left with [SEP] alone there, and with [CLS] [SEP] here.)
    published_case: words are lowered and stripped of accents even where the vocabulary is cased, and ideographs of a word are not
      set apart (line 228 there, tokenize_and_align). For WordPiece alone: the code knows no other kind.
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
        ends = 1 + np.cumsum(counts[words], dtype=np.int32)  # behind each word; [CLS] comes first
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
    """int32 [n] of each row: the word's label at its first piece, NO_LABEL at all other places.

    labels: of each sentence an integer for each of its words, those that were cut off included.
    """
    spread = []
    for tokens, firsts, numbers in zip(rows.tokens, rows.firsts, labels, strict=True):
        spread.append(np.full(len(tokens), NO_LABEL, np.int32))
        spread[-1][firsts] = numbers[: len(firsts)]
    return spread
