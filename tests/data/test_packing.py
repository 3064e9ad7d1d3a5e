"""The paper's example builder, rule by rule and over 20,000 rows, and dense packing: every token once."""

import itertools
import math
import random

import numpy as np
import pytest

from electra_jax.data.prepare.packing import DensePacker, PairPacker

PAD, CLS, SEP = 0, 2, 3
FIRST = 10  # the first id of text: every token of a test has an id of its own, so that rows show where they come from


class Script:
    """The draws, in the order in which they are asked for."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return self.draws.pop(0)


def documents_of(sentence_lengths_of_documents):
    ids = itertools.count(FIRST)
    return [[np.array([next(ids) for _ in range(n)], np.int32) for n in lengths] for lengths in sentence_lengths_of_documents]


def segments_of(row):
    """[CLS] A [SEP] (B [SEP]) padding -> [A, B]; fails on any other form. Written for the pairs' layout alone."""
    row = row.tolist()
    end = len(row) - row[::-1].index(SEP)
    assert row[0] == CLS and set(row[end:]) <= {PAD} and row.count(CLS) == 1 and PAD not in row[:end]
    first, *rest = "".join("S" if t == SEP else "t" for t in row[1:end]).split("S")
    assert len(rest) in (1, 2) and rest[-1] == "" and first
    cuts = [i for i, t in enumerate(row) if t == SEP]
    segments = [row[1 : cuts[0]]] + ([row[cuts[0] + 1 : cuts[1]]] if len(cuts) == 2 else [])
    assert all(segments)
    return segments


def sizes(rows):
    return [[len(segment) for segment in segments_of(row)] for row in rows]


# One draw for the single segment, one coin for each sentence that would make A too long, one for a short next target.
PAIR, SINGLE, HEADS, TAILS, FULL, SHORT = 0.5, 0.05, 0.2, 0.8, 0.5, 0.01


@pytest.mark.parametrize(
    ("length", "lines", "draws", "expected"),
    [
        # A's target is (16 - 3) // 2 = 6.
        (16, [4, 4, 4, 4], [PAIR, TAILS, FULL], [[4, 9]]),  # 4 + 4 is too long: to B, cut to 16 - 4 - 3
        (16, [4, 4, 4, 4], [PAIR, HEADS, FULL], [[8, 5]]),  # the coin puts one sentence too many into A
        (16, [4, 4, 4, 4], [SINGLE, FULL], [[14]]),  # no second segment: cut to 16 - 2
        (16, [4, 1, 11], [PAIR, TAILS, FULL], [[5, 8]]),  # 4 + 1 fits
        (16, [4, 2, 10], [PAIR, TAILS, FULL], [[4, 9]]),  # 4 + 2 does not: the sum must stay below the target
        (16, [6, 10], [PAIR, FULL], [[6, 7]]),  # A has reached its target: no coin
        (20, [5, 4, 2, 9], [PAIR, TAILS, FULL], [[7, 10]]),  # target 8: after 4 went to B, 2 still fits into A; no coin for 9
        (16, [20], [PAIR, FULL], [[14]]),  # the first sentence goes to A, however long; its tail is dropped
        (16, [13, 9], [PAIR, FULL], [[13]]),  # no room for B: 16 - 13 - 3 = 0
        (16, [12, 9], [PAIR, FULL], [[12, 1]]),
        (16, [4, 3], [PAIR, TAILS, FULL], [[4, 3]]),  # the document ends below the target
        (16, [4, 0, 3], [PAIR, TAILS, FULL], [[4, 3]]),  # an empty line changes nothing
        (16, [], [], []),
        (16, [0], [], []),
        (16, [8, 8, 2, 2], [PAIR, FULL, PAIR, FULL], [[8, 5], [4]]),  # at 16 an example; the rest, both below 6, another
        (16, [8, 9, 7], [PAIR, FULL, PAIR, FULL], [[8, 5], [7]]),  # nothing is carried over
        # A short target: 5 + int(0.5 x 12) = 11, so A's is 4; it ends the example, but the full length cuts it.
        (16, [8, 8, 3, 3, 3, 3], [PAIR, SHORT, 0.5, PAIR, TAILS, FULL], [[8, 5], [3, 9]]),
        (16, [8, 8, 9, 9, 1], [PAIR, SHORT, 0.5, PAIR, FULL, PAIR, FULL], [[8, 5], [9, 4], [1]]),
        (16, [8, 8, 5, 5], [PAIR, SHORT, 0.0, PAIR, SHORT, 0.9999, PAIR, FULL], [[8, 5], [5], [5]]),  # 5 .. 16
    ],
)
def test_example_builder_rules(length, lines, draws, expected):
    script = Script(*draws)
    packer = PairPacker(length, CLS, SEP, PAD, script)
    [document] = documents_of([lines])
    rows = packer.add(document)
    assert sizes(rows) == expected
    assert script.draws == [] and packer.flush() == []
    assert all(row.shape == (length,) and row.dtype == np.int32 for row in rows)
    assert packer.dropped_tokens == sum(lines) - sum(map(sum, expected))


def test_a_short_target_lasts_into_the_next_document():
    packer = PairPacker(16, CLS, SEP, PAD, Script(PAIR, SHORT, 0.0, PAIR, FULL, PAIR, FULL))
    first, second = documents_of([[3], [5, 5]])
    assert sizes(packer.add(first)) == [[3]]
    assert sizes(packer.add(second)) == [[5], [5]]


def bound(share, count):
    """4.5 standard deviations of a binomial share: a right rule fails once in 150,000 seeds."""
    return 4.5 * math.sqrt(share * (1 - share) / count)


def assert_share(hits, share):
    hits = np.asarray(hits)
    assert abs(hits.mean() - share) <= bound(share, len(hits)), (hits.mean(), share, len(hits))


def test_shares_over_20_000_rows():
    """One document of sentences of 8 tokens, rows of 128: every share of the published rules follows by arithmetic.

    A full example takes 16 sentences. Its A-target is 62: seven sentences fit, and half of the time one more is put in.
    """
    length, sentences, size = 128, 350_000, 8
    document = list(np.arange(FIRST, FIRST + sentences * size, dtype=np.int32).reshape(sentences, size))
    rows = PairPacker(length, CLS, SEP, PAD, random.Random(1)).add(document)[:-1]  # the last was ended by the document
    assert len(rows) >= 20_000
    segments = [segments_of(row) for row in rows]
    starts = np.array([(parts[0][0] - FIRST) // size for parts in segments])
    taken = np.diff(starts, append=sentences)[:-1]  # sentences of each row, those cut off as well
    segments = segments[:-1]
    full = taken == length // size

    # 5% have a target drawn from 5 .. 128: t takes ceil(t / 8) sentences, one for 5 to 8 and so on; 121 to 128 take 16.
    assert_share(~full, 0.05 * 116 / 124)
    for count in range(1, 16):
        assert_share(taken == count, 0.05 * (4 if count == 1 else 8) / 124)
    # A full row: 10% in one segment, cut to 126; else A has 7 or 8 sentences, B what room there is.
    shapes = [tuple(map(len, parts)) for parts, is_full in zip(segments, full, strict=True) if is_full]
    assert set(shapes) == {(126,), (56, 69), (64, 61)}
    assert_share([shape == (126,) for shape in shapes], 0.1)
    assert_share([shape == (56, 69) for shape in shapes if len(shape) == 2], 0.5)
    # Each segment is sentences in their order, without gaps, and B follows A.
    for parts in segments:
        tokens = sum(parts, [])
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
    # The draws do not hang together: singles as often after a single.
    single = np.array([shape == (126,) for shape in shapes])
    assert_share(single[1:][single[:-1]], 0.1)


def test_rows_never_cross_documents_and_keep_the_order():
    rng = random.Random(2)
    documents = documents_of([[rng.randint(0, 40) for _ in range(rng.randint(0, 60))] for _ in range(2200)])
    document_of = np.concatenate([np.full(sum(map(len, d)), n) for n, d in enumerate(documents)])
    packer, seen, kept, rows_of = PairPacker(128, CLS, SEP, PAD, random.Random(3)), -1, 0, np.zeros(len(documents), int)
    for number, document in enumerate(documents):
        for row in packer.add(document):
            segments = segments_of(row)
            tokens = sum(segments, [])
            assert {document_of[token - FIRST] for token in tokens} == {number}
            assert min(tokens) > seen and len(set(tokens)) == len(tokens)
            assert all(segment == sorted(segment) for segment in segments)
            assert sum(map(len, segments)) <= 128 - 1 - len(segments)
            seen, kept, rows_of[number] = max(tokens), kept + len(tokens), rows_of[number] + 1
    assert sum(rows_of) > 10_000
    assert (rows_of > 0).tolist() == [sum(map(len, document)) > 0 for document in documents]
    assert kept + packer.dropped_tokens == len(document_of) and 0 < packer.dropped_tokens < 0.25 * len(document_of)


def dense_pieces(rows, length):
    """The pieces of each row, by the layout's definition."""
    for row in rows:
        assert row.shape == (length,) and row.dtype == np.int32
        pieces, inside = [], False
        for place, token in enumerate(row.tolist()):
            if token == PAD:
                assert not inside and not row[place:].any()
                break
            assert inside != (token == CLS)
            if token == CLS:
                pieces.append([])
            elif token != SEP:
                pieces[-1].append(token)
            inside = token != SEP
        assert not inside and all(pieces)
        yield pieces


def pack_dense(documents, length):
    packer = DensePacker(length, CLS, SEP, PAD)
    rows = [row for document in documents for row in packer.add(document)]
    return rows, rows + packer.flush(), packer


@pytest.mark.parametrize("length", [3, 16, 128])
def test_dense_packing_keeps_every_token_once_and_in_order(length):
    rng = random.Random(length)
    documents = documents_of([[rng.randint(0, 30) for _ in range(rng.choice([0, 1, 2, 5, 30]))] for _ in range(400)])
    _, rows, packer = pack_dense(documents, length)
    found = sorted((piece for pieces in dense_pieces(rows, length) for piece in pieces), key=lambda piece: piece[0])
    expected = []
    for document in documents:
        tokens = [int(token) for line in document for token in line]
        expected += [tokens[start : start + length - 2] for start in range(0, len(tokens), length - 2)]
    assert found == expected
    assert packer.flush() == []


def test_dense_packing_fills_rows_and_holds_few_back():
    """Documents of log-normal lengths, about those of IMDB's reviews."""
    rng = random.Random(5)
    lengths = [[max(1, int(rng.lognormvariate(5.2, 0.8)))] for _ in range(4000)]
    for length in (128, 512):
        early, rows, _ = pack_dense(documents_of(lengths), length)
        filled = sum(int(np.count_nonzero(row)) for row in rows) / (len(rows) * length)
        assert filled > 0.98, filled
        assert len(rows) - len(early) <= DensePacker.OPEN_ROWS
        tokens, held = 0, 0
        packer = DensePacker(length, CLS, SEP, PAD)
        for document in documents_of(lengths[:500]):
            tokens += len(document[0]) - sum(int(np.count_nonzero(row > SEP)) for row in packer.add(document))
            held = max(held, tokens)
        assert held <= DensePacker.OPEN_ROWS * length


def test_dense_rows_follow_from_the_documents_alone():
    rng = random.Random(6)
    documents = documents_of([[rng.randint(1, 60)] for _ in range(500)])
    first, second = pack_dense(documents, 64)[1], pack_dense(documents, 64)[1]
    np.testing.assert_array_equal(np.stack(first), np.stack(second))


def test_dense_packing_prefers_the_fullest_row_that_has_room():
    packer = DensePacker(23, CLS, SEP, PAD)
    documents = documents_of([[8], [12], [3], [6]])  # 13 and 9 places are free; 5 goes to the second row, 8 to the first
    assert [packer.add(document) for document in documents] == [[], [], [], []]
    pieces = [[len(piece) for piece in row] for row in dense_pieces(packer.flush(), 23)]
    assert pieces == [[8, 6], [12, 3]]


@pytest.mark.parametrize(("packer", "shortest"), [(PairPacker, 5), (DensePacker, 3)])
def test_a_row_too_short_for_its_structure(packer, shortest):
    with pytest.raises(ValueError, match="below"):
        packer(shortest - 1, CLS, SEP, PAD, random.Random(0))
    rows = packer(shortest, CLS, SEP, PAD, random.Random(0)).add([np.array([7, 8, 9])])
    assert len(rows) in (1, 3) and all(row.max() <= 9 for row in rows)
