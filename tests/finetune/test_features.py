"""Rows of texts, pairs and tags: layout, truncation, alignment; each published rule against a plain loop, and all of CoNLL-2000."""

import random
import unicodedata

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import SPECIALS, WordPiece, train_sentencepiece
from electra_jax.finetune.config import FinetuneConfig
from electra_jax.finetune.examples import Example
from electra_jax.finetune.features import NO_LABEL, both_orders, encode_tags, encode_texts, labels_of_pieces, pair_lengths
from electra_jax.finetune.rows import KINDS
from electra_jax.finetune.tasks import TASKS

PAD, UNK, CLS, SEP, MASK = range(5)
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def letters():
    """Each letter is a piece: "abc" gives a ##b ##c, with the ids 5 and up for a and 13 and up for ##a."""
    return WordPiece([*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "中", "##文"], lower_case=False)


def examples(*rows, label=None):
    return [Example(str(number), texts, label, f"file:{number + 1}") for number, texts in enumerate(rows)]


def test_a_single_text_and_a_pair(letters):
    rows = encode_texts(examples(("a bc",), ("",)), letters, length=16)
    assert [row.tolist() for row in rows.tokens] == [[CLS, 5, 6, 15, SEP], [CLS, SEP]]
    assert [row.tolist() for row in rows.types] == [[0] * 5, [0] * 2]
    rows = encode_texts(examples(("a", "bc"), ("ab", "c")), letters, length=16)
    assert [row.tolist() for row in rows.tokens] == [[CLS, 5, SEP, 6, 15, SEP], [CLS, 5, 14, SEP, 7, SEP]]
    assert [row.tolist() for row in rows.types] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert all(row.dtype == np.int32 for row in (*rows.tokens, *rows.types))
    assert encode_texts([], letters, length=16) == ([], [], [])
    assert rows.cut == [0, 0] and encode_texts(examples(("abc" * 4,)), letters, length=8).cut == [6]
    assert encode_texts(examples(("a b c a b c", "a b"), ("a b c", "a b")), letters, length=8).cut == [3, 0]


def test_the_length_counts_special_tokens(letters):
    rows = encode_texts(examples(("a b c d",), ("a b c d e",)), letters, length=6)
    assert [row.tolist() for row in rows.tokens] == [[CLS, 5, 6, 7, 8, SEP]] * 2
    rows = encode_texts(examples(("a b", "c d"), ("a b c", "c d e")), letters, length=7)
    assert [row.tolist() for row in rows.tokens] == [[CLS, 5, 6, SEP, 7, 8, SEP]] * 2
    assert [row.tolist() for row in rows.types] == [[0, 0, 0, 0, 1, 1, 1]] * 2


def test_a_second_text_without_tokens_leaves_a_single_text(letters):
    rows = encode_texts(examples(("a b c", ""), ("a b c", " \u200b"), ("", "a")), letters, length=5)
    assert [row.tolist() for row in rows.tokens] == [[CLS, 5, 6, 7, SEP]] * 2 + [[CLS, SEP, 5, SEP]]
    assert [row.tolist() for row in rows.types] == [[0] * 5] * 2 + [[0, 0, 1, 1]]


def test_the_longer_text_loses_a_token_at_a_time_and_of_equal_ones_the_second():
    for room in range(2, 12):
        for a in range(14):
            for b in range(14):
                left, right = a, b
                while left + right > room:
                    if left > right:
                        left -= 1
                    else:
                        right -= 1
                assert pair_lengths(a, b, room) == (left, right), (a, b, room)


def test_both_orders_are_the_examples_and_then_all_of_them_exchanged():
    rows = examples(("a", "b"), ("c", "d"), label="1")
    doubled = both_orders(rows)
    assert [row.texts for row in doubled] == [("a", "b"), ("c", "d"), ("b", "a"), ("d", "c")]
    assert [(row.id, row.label, row.where) for row in doubled] == [(row.id, row.label, row.where) for row in rows] * 2
    with pytest.raises(UserError, match=r"^file:1: both orders of two texts were asked for, and there is one text here"):
        both_orders(examples(("a",)))


@pytest.mark.parametrize(
    ("task", "label", "option", "training", "count"),
    [
        ("mrpc", "1", None, True, 2),
        ("mrpc", "1", None, False, 1),
        ("mrpc", "1", False, True, 1),
        ("stsb", 2.5, None, True, 2),
        ("rte", "entailment", None, True, 1),
        ("rte", "entailment", True, True, 2),
    ],
)
def test_which_tasks_are_trained_in_both_orders(letters, task, label, option, training, count):
    made = KINDS[TASKS[task].kind].rows(
        TASKS[task], examples(("a", "b"), label=label), letters, FinetuneConfig(both_orders=option), 16, training
    )
    assert len(made.tokens) == len(made.labels) == count


def test_a_column_is_given_to_the_tokenizer_at_once(letters):
    calls = []

    class Counted:
        cls_id, sep_id, unk_id = letters.cls_id, letters.sep_id, letters.unk_id

        def encode_batch(self, texts):
            calls.append(len(texts))
            return letters.encode_batch(texts)

    encode_texts(examples(*[("a", "b")] * 50), Counted(), length=16)
    assert calls == [50, 50]
    calls.clear()
    encode_tags(examples(*[("a", "b", "a", "cd")] * 50), Counted(), length=16)
    assert calls == [3]  # each distinct word once


def test_any_kind_of_tokenizer(letters):
    words = ["eta oin shr dlu", "oin oin eta"]
    pieces = train_sentencepiece(words * 50, 30)
    [row] = encode_texts(examples((words[0], words[1])), pieces, length=99).tokens
    a, b = pieces.encode_batch(words)
    assert row.tolist() == [pieces.cls_id, *a, pieces.sep_id, *b, pieces.sep_id]
    tags = encode_tags(examples(("eta", "oin")), pieces, length=99, published_case=True)
    assert tags.tokens[0].tolist() == [pieces.cls_id, *pieces.encode_batch(["eta"])[0], *pieces.encode_batch(["oin"])[0], pieces.sep_id]


# --- Tags


def test_the_first_piece_of_a_word_stands_for_it(letters):
    rows = encode_tags(examples(("abc", "a", "h", "bd"), ("a",)), letters, length=16)
    assert [row.tolist() for row in rows.tokens] == [[CLS, 5, 14, 15, 5, 12, 6, 16, SEP], [CLS, 5, SEP]]
    assert [row.tolist() for row in rows.firsts] == [[1, 4, 5, 6], [1]]
    assert rows.cut.tolist() == [0, 0]
    spread = labels_of_pieces(rows, [np.array([7, 8, 9, 6]), np.array([5])])
    no = NO_LABEL
    assert [row.tolist() for row in spread] == [[no, 7, no, no, 8, 9, 6, no, no], [no, 5, no]]


def test_the_type_of_tags(letters):
    for type_id in (0, 1):
        rows = encode_tags(examples(("abc", "a"), ("a",) * 99), letters, length=16, type_id=type_id)
        assert [row.tolist() for row in rows.types] == [[type_id] * 6, [type_id] * 16]
    assert encode_tags(examples(("a",)), letters, length=16).types[0].tolist() == [0, 0, 0]


def test_a_word_is_cut_only_when_it_does_not_fit(letters):
    rows = encode_tags(examples(("abc", "ab", "a"), ("abc", "ab", "ab"), ("abc", "a", "abc", "a"), ("abcdefg", "a")), letters, length=8)
    assert [len(row) for row in rows.tokens] == [8, 7, 6, 2]  # 3 + 2 + 1 and the special ones; then words that do not fit, whole
    assert [row.tolist() for row in rows.firsts] == [[1, 4, 6], [1, 4], [1, 4], []]
    assert rows.cut.tolist() == [0, 1, 2, 2]  # a word behind one that was cut is cut too: "a" would have fitted
    assert labels_of_pieces(rows, [np.arange(4)] * 4)[1].tolist() == [-1, 0, -1, -1, 1, -1, -1]


def published_positions(counts, length):
    """Of the words of these many pieces, which stand where, by the published loop over [CLS], the words and [SEP]; and the row's length."""
    sizes, used, places = [1, *counts, 1], 0, []
    for number, size in enumerate(sizes):
        if len(sizes) + used + 1 > length:
            return places, used + 1
        if 0 < number < len(sizes) - 1:
            places.append(used)
        used += size
    return places, used


def test_the_published_cut_counts_the_words_of_the_sentence(letters):
    long = encode_tags(examples(("ab",) * 60), letters, length=128, by_word_count=True)
    assert len(long.tokens[0]) == 68 and long.cut.tolist() == [27]  # full at 66 of 128 tokens, because there are 60 words and [CLS], [SEP]
    assert encode_tags(examples(("ab",) * 60), letters, length=128).cut.tolist() == [0]
    giant = encode_tags(examples(("a", "abcdefgh", "a")), letters, length=9, by_word_count=True)  # begins early enough, and does not fit
    assert giant.tokens[0].tolist() == [CLS, 5, SEP] and giant.cut.tolist() == [2]
    rng, compared = random.Random(0), 0
    for _ in range(500):
        words = tuple(LETTERS[: rng.randint(1, 4)] for _ in range(rng.randint(1, 20)))
        length = rng.randint(8, 40)
        places, size = published_positions([len(word) for word in words], length)
        rows = encode_tags(examples(words), letters, length=length, by_word_count=True)
        if size > length:
            continue  # the published code fails there
        compared += 1
        assert rows.firsts[0].tolist() == places and rows.cut[0] == len(words) - len(places)
        assert len(rows.tokens[0]) == max(size, 2)
    assert compared > 400


def test_the_published_case_lowers_whatever_the_vocabulary(letters):
    words = ("A", "éa", "CAB", "中文")
    fixed = encode_tags(examples(words), letters, length=32)
    assert letters.pieces(fixed.tokens[0]) == ["[CLS]", "[UNK]", "[UNK]", "[UNK]", "中", "[UNK]", "[SEP]"]
    published = encode_tags(examples(words), letters, length=32, published_case=True)
    assert letters.pieces(published.tokens[0])[1:-1] == ["a", "e", "##a", "c", "##a", "##b", "中", "##文"]
    assert not letters.lower_case  # another tokenizer was made for it
    accents = encode_tags(examples(("ába",)), letters, length=32, published_case=True)
    assert letters.pieces(accents.tokens[0])[1:-1] == ["a", "##b", "##a"]


def test_a_word_without_pieces_is_one_unknown_piece(letters):
    for published in (False, True):
        rows = encode_tags(
            examples(("a", "\u200b", "\x01\x02", "b")), letters, length=16, by_word_count=published, published_case=published
        )
        assert rows.tokens[0].tolist() == [CLS, 5, UNK, UNK, 6, SEP] and rows.firsts[0].tolist() == [1, 2, 3, 4]


def conll(path):
    sentences = path.read_text().strip().split("\n\n")
    return [tuple(line.split()[0] for line in sentence.split("\n")) for sentence in sentences]


@pytest.mark.parametrize("name", ["train.txt", "test.txt"])
def test_alignment_round_trips_on_all_of_conll_2000(name, bert, shared_data):
    """Every word has one first piece, in order, and the pieces from it to the next one's spell the word."""
    sentences = conll(shared_data / "conll2000" / name)
    assert len(sentences) == {"train.txt": 8936, "test.txt": 2012}[name]
    rows = encode_tags(examples(*sentences), bert, length=512)
    assert not rows.cut.any()
    for words, tokens, firsts in zip(sentences, rows.tokens, rows.firsts, strict=True):
        assert len(firsts) == len(words) and firsts[0] == 1 and (np.diff(firsts) > 0).all()
        assert tokens[0] == bert.cls_id and tokens[-1] == bert.sep_id
        assert bert.word_starts[tokens[firsts]].all()
        pieces = bert.pieces(tokens)
        for word, begin, end in zip(words, firsts, [*firsts[1:], len(tokens) - 1], strict=True):
            spelled = "".join(piece.removeprefix("##") if len(piece) > 2 else piece for piece in pieces[begin:end])
            assert spelled == "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")


def test_what_the_published_cut_loses_of_conll_2000(bert, shared_data):
    """At the published 256 tokens nothing; at 128 tokens 673 words, though no sentence has more pieces than that."""
    sentences = examples(*conll(shared_data / "conll2000" / "train.txt"))
    assert encode_tags(sentences, bert, length=256, by_word_count=True).cut.sum() == 0
    whole, cut = (encode_tags(sentences, bert, length=128, by_word_count=published) for published in (False, True))
    assert whole.cut.sum() == 0 and cut.cut.sum() == 673
    for example, firsts, tokens, left in zip(sentences, whole.firsts, whole.tokens, cut.firsts, strict=True):
        counts = np.diff([*firsts, len(tokens) - 1]).tolist()
        if len(example.texts) > 40:
            assert left.tolist() == published_positions(counts, 128)[0]
        else:
            assert len(left) == len(counts)
