"""Windows over contexts and where answers lie in them: by hand, against plain loops, and exact on real questions."""

import json
import random
import re

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import SPECIALS, WordPiece, train_sentencepiece
from electra_jax.finetune.answers import make_windows
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.nbest import exact_text

PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = "what is it the big house no of japan japanese - ( ) , ##s".split()
WHAT, IS, IT, THE, BIG, HOUSE, NO, OF = range(5, 13)


@pytest.fixture(scope="module")
def small():
    return WordPiece([*SPECIALS, *WORDS])


@pytest.fixture(scope="module")
def squad(shared_data):
    def read(name):
        examples = []
        for article in json.loads((shared_data / "squad" / name).read_text())["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = Answers(*(tuple(answer[key] for answer in asked["answers"]) for key in ("text", "answer_start")))
                    examples.append(Example(asked["id"], (asked["question"], paragraph["context"]), answers, f"{name}: {asked['id']}"))
        return examples

    return {name: read(name) for name in ("dev-v1.1.json", "dev-v2.0.json")}


def example(context, answer=None, start=None, question="what is it"):
    """answer: None for a question without one; start: where it says that the answer begins, if not where it does."""
    if answer is None:
        return Example("q", (question, context), Answers((), ()), "file: q")
    return Example("q", (question, context), Answers((answer,), (context.index(answer) if start is None else start,)), "file: q")


def texts(rows):
    """What stands at the gold places; None for [CLS]."""
    shifts = [row.begin - row.first for row in rows]
    return [exact_text(row.context, row.start + k, row.end + k) if row.start else None for row, k in zip(rows, shifts, strict=True)]


def test_a_row_of_question_and_context(small):
    windows = make_windows([example("The big house", "big")], small, length=68, training=True)
    [row] = windows.rows
    assert windows.dropped == []
    assert row.tokens.tolist() == [CLS, WHAT, IS, IT, SEP, THE, BIG, HOUSE, SEP]
    assert row.types.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert (row.question, row.first, row.begin, row.start, row.end, row.impossible) == (0, 5, 0, 6, 6, False)
    assert row.max_context.tolist() == [True] * 3
    assert row.context.spans.tolist() == [[0, 3], [4, 7], [8, 13]] and row.context.word.tolist() == [0, 1, 2]
    assert row.tokens.dtype == row.types.dtype == np.int32


def test_questions_are_cut_and_windows_are_as_long_as_rows_allow(small):
    context = " ".join(["the", "big", "no", "of"] * 5)  # 20 pieces
    [row] = make_windows([example("the", question="what is it no")], small, length=100, training=True, max_question=3).rows
    assert row.tokens.tolist() == [CLS, WHAT, IS, IT, SEP, THE, SEP]
    rows = make_windows([example(context)], small, length=14, max_question=10, stride=5, training=True).rows  # 8 pieces at a time
    assert [row.begin for row in rows] == [0, 5, 10, 15]
    assert [len(row.max_context) for row in rows] == [8, 8, 8, 5] and [len(row.tokens) for row in rows] == [14, 14, 14, 11]
    for row in rows:
        ids = small.encode_batch([context])[0][row.begin : row.begin + 8]
        assert row.tokens.tolist() == [CLS, WHAT, IS, IT, SEP, *ids, SEP]
    assert [row.begin for row in make_windows([example(context)], small, length=14, max_question=10, stride=99, training=True).rows] == [
        0,
        8,
        16,
    ]
    exactly = " ".join(["the"] * 8)
    assert len(make_windows([example(exactly)], small, length=14, max_question=10, stride=5, training=True).rows) == 1
    assert len(make_windows([example(exactly + " the")], small, length=14, max_question=10, stride=5, training=True).rows) == 2
    with pytest.raises(UserError, match=r"rows of 67 tokens leave no room .* question of 64 pieces.*finetune.length must be at least 68"):
        make_windows([example("the")], small, length=67, training=True)


def test_each_piece_has_one_window_of_most_context(small):
    """Ten pieces, windows 0-5, 4-9: piece 4 has 1 piece to its right in the first and 0 to its left in the second."""
    rows = make_windows([example("the " * 10)], small, length=12, max_question=3, stride=4, training=True).rows
    assert [(row.begin, len(row.max_context)) for row in rows] == [(0, 6), (4, 6)]
    assert [row.max_context.tolist() for row in rows] == [[True] * 5 + [False], [False] + [True] * 5]


def test_a_longer_window_counts_more(small):
    """Windows 0-299 and 128-300: of all that both hold the second has a piece more to the right, which its missing 127 outweigh."""
    rows = make_windows([example("the " * 301)], small, length=306, max_question=3, training=True).rows
    assert [(row.begin, len(row.max_context)) for row in rows] == [(0, 300), (128, 173)]
    assert rows[0].max_context.all() and np.flatnonzero(rows[1].max_context).tolist() == [172]


def test_windows_without_the_answer(small):
    """start = end = 0; by the fixed rule nothing in them is the answer, by the published one they bear the question's label."""
    context = "the big house " + "of " * 10
    options = dict(length=12, max_question=3, stride=4, training=True)
    for published, wanted in ((False, [False, True, True]), (True, [False, False, False])):
        rows = make_windows([example(context, "big house")], small, labels_by_question=published, **options).rows
        assert [(row.start, row.end) for row in rows] == [(6, 7), (0, 0), (0, 0)]
        assert [row.impossible for row in rows] == wanted
        rows = make_windows([example(context)], small, labels_by_question=published, **options).rows  # unanswerable
        assert [(row.start, row.end, row.impossible) for row in rows] == [(0, 0, True)] * 3
        unlabelled = example(context)._replace(label=None)
        rows = make_windows([unlabelled], small, labels_by_question=published, **{**options, "training": False}).rows
        assert [(row.start, row.end, row.impossible) for row in rows] == [(0, 0, False)] * 3
    half = make_windows([example("of " * 5 + "big house of of", "big house")], small, **options).rows  # the first window has "big" alone
    assert [(row.start, row.impossible) for row in half] == [(0, True), (6, False)]


NBSP = "\xa0"


@pytest.mark.parametrize(
    ("context", "answer", "start", "lowered", "exactly"),
    [
        ("the big house", "big", None, True, True),
        (f"the big{NBSP}house", f"big{NBSP}house", None, False, True),  # the published words keep this space, the answer's lose it
        ("the big  house", "big  house", None, True, True),
        ("the big house", "Big", 4, True, False),  # found lower-cased
        ("the big house", "big", 5, True, False),  # an offset that is wrong by one: still within the word
        ("the big house", "the", 4, False, False),
        ("the big house", "house", 10, False, False),  # ends behind the text
        ("the big house", "house", 99, False, False),
        (" the big house", " the", 0, False, True),  # the published code takes the space for a part of the last word
        ("", "house", 0, False, False),
        ("", "", 0, False, False),
    ],
)
def test_which_answers_count_as_found(context, answer, start, lowered, exactly, small):
    asked = example(context, answer, start)
    for match_lowered, found in ((True, lowered), (False, exactly)):
        windows = make_windows([asked, example("the")], small, length=68, match_lowered=match_lowered, training=True)
        assert windows.dropped == ([] if found else ["file: q"])
        assert [row.question for row in windows.rows] == ([0, 1] if found else [1])
        kept = make_windows([asked], small, length=68, match_lowered=match_lowered, training=False)  # it must be answered all the same
        assert len(kept.rows) == 1 and kept.dropped == [] and not kept.rows[0].impossible
        assert bool(kept.rows[0].start) == found


@pytest.mark.parametrize(
    ("context", "answer", "start", "by_characters", "by_words"),
    [
        ("the (big) house", "big", None, "big", "big"),  # improved from the word "(big)"
        ("the Japanese, no", "Japan", None, "Japanese", "Japanese,"),  # its end is within a piece
        ("the Japan, no", "Japan", None, "Japan", "Japan"),
        ("the no-no house", "no", 7, "no", "no"),
        ("houses of the", "s of", None, "s of", "houses of"),
        ("the big house ", "house ", None, "house", "house"),
    ],
)
def test_from_characters_to_pieces(context, answer, start, by_characters, by_words, small):
    for spans_by_words, wanted in ((False, by_characters), (True, by_words)):
        windows = make_windows([example(context, answer, start)], small, length=68, spans_by_words=spans_by_words, training=True)
        assert texts(windows.rows) == [wanted]
    if start is not None:  # the published rule takes the first of two equal ones
        places = [
            make_windows([example(context, answer, start)], small, length=68, spans_by_words=x, training=True).rows[0].start for x in (0, 1)
        ]
        assert places == [8, 6]


def test_a_context_without_pieces_is_a_window(small):
    rows = make_windows([example(" \u200b")], small, length=68, training=False).rows
    assert [row.tokens.tolist() for row in rows] == [[CLS, WHAT, IS, IT, SEP, SEP]] and rows[0].max_context.shape == (0,)
    asked = [example("the", question="what is it no"), example("the")]
    assert make_windows(asked, small, length=68, training=False, max_question=3).cut == [1, 0]
    assert make_windows([], small, length=68, training=False) == ([], [], [])


def test_questions_share_their_context(small):
    rows = make_windows([example("the big"), example("the house"), example("the big")], small, length=68, training=False).rows
    assert rows[0].context is rows[2].context is not rows[1].context


def test_a_context_is_tokenized_once(small, monkeypatch):
    calls = []
    encode = WordPiece.encode_with_spans
    monkeypatch.setattr(WordPiece, "encode_with_spans", lambda self, texts: calls.append(list(texts)) or encode(self, texts))
    make_windows([example("the big"), example("the house"), example("the big")], small, length=68, training=False)
    assert calls == [["the big", "the house"]]


# --- Against plain loops on real questions


def plain_windows(asked, tokenizer, length, stride):
    """The published rules, a piece and a window at a time: [(tokens, (start, end), max-context)]; None for a dropped example."""
    question, context = asked.texts
    ids, owner, words = [], [], re.findall("[^ \t\r\n\u202f]+", context)
    for number, word in enumerate(words):
        pieces = tokenizer.encode_batch([word])[0].tolist()
        ids, owner = ids + pieces, owner + [number] * len(pieces)
    gold = None
    if asked.label.texts:
        answer, begin = asked.label.texts[0], asked.label.starts[0]
        word_of = [len(re.findall("[^ \t\r\n\u202f]+", context[: place + 1])) - 1 for place in (begin, begin + len(answer) - 1)]
        if " ".join(answer.split()).lower() not in " ".join(words[word_of[0] : word_of[1] + 1]).lower():
            return None
        inside = [place for place, number in enumerate(owner) if word_of[0] <= number <= word_of[1]]
        wanted = tokenizer.encode_batch([answer])[0].tolist()
        matches = [(a, b) for a in inside for b in reversed(inside) if ids[a : b + 1] == wanted]
        gold = matches[0] if matches else (inside[0], inside[-1])
    head = [tokenizer.cls_id, *tokenizer.encode_batch([question])[0][:64].tolist(), tokenizer.sep_id]
    room, windows = length - len(head) - 1, [(0, min(len(ids), length - len(head) - 1))]
    while windows[-1][1] < len(ids):
        begin = windows[-1][0] + min(stride, room)
        windows.append((begin, min(begin + room, len(ids))))
    rows = []
    for begin, end in windows:
        best = []
        for piece in range(begin, end):
            scores = [min(piece - b, e - 1 - piece) + 0.01 * (e - b) if b <= piece < e else -1 for b, e in windows]
            best.append(scores.index(max(scores)) == windows.index((begin, end)))
        place = (0, 0)
        if gold and begin <= gold[0] and gold[1] < end:
            place = (gold[0] - begin + len(head), gold[1] - begin + len(head))
        rows.append(([*head, *ids[begin:end], tokenizer.sep_id], place, best))
    return rows


@pytest.mark.parametrize(("length", "stride"), [(96, 32), (100, 128), (384, 128)])
def test_the_published_rules_on_real_questions(length, stride, bert, squad):
    examples = squad["dev-v2.0.json"][::40] + squad["dev-v1.1.json"][::40]
    examples += [example("Who? The  Café\u202f(1895–1999).", "café", 10), example("no\xa0yes", "no\xa0yes")]
    published = dict(match_lowered=True, spans_by_words=True, labels_by_question=True)
    windows = make_windows(examples, bert, length=length, stride=stride, training=True, **published)
    rows = iter(windows.rows)
    dropped, several = [], 0
    for number, asked in enumerate(examples):
        wanted = plain_windows(asked, bert, length, stride)
        if wanted is None:
            dropped.append(asked.where)
            continue
        several += len(wanted) > 1
        for tokens, place, best in wanted:
            row = next(rows)
            assert (row.question, row.tokens.tolist(), row.max_context.tolist()) == (number, tokens, best)
            assert (row.start, row.end) == place and row.impossible == (not asked.label.texts)
    assert next(rows, None) is None and windows.dropped == dropped == ["file: q"]
    assert several > (60 if length < 300 else 3)


# --- Exactness


def whole_pieces(asked, context):
    """Whether the answer begins where a piece does, and ends where one does."""
    begin = asked.label.starts[0]
    return begin in context.spans[:, 0] and begin + len(asked.label.texts[0]) in context.spans[:, 1]


def exactness(examples, tokenizer, **options):
    """(questions whose answer comes back exact from each window that holds it, {(answer, what comes back)} of the others)."""
    windows = make_windows(examples, tokenizer, length=384, training=True, **options)
    assert windows.dropped == []
    found: dict[int, set[str]] = {}
    for row, text in zip(windows.rows, texts(windows.rows), strict=True):
        if text is not None:
            found.setdefault(row.question, set()).add(text)
            assert not whole_pieces(examples[row.question], row.context) or text == examples[row.question].label.texts[0]
    assert len(found) == len(examples)
    return sum(found[n] == {asked.label.texts[0]} for n, asked in enumerate(examples)), {
        (asked.label.texts[0], text) for n, asked in enumerate(examples) for text in found[n] - {asked.label.texts[0]}
    }


@pytest.mark.parametrize(("name", "answerable"), [("dev-v1.1.json", 1211), ("dev-v2.0.json", 1195)])
def test_the_features_give_back_the_exact_answer(name, answerable, bert, squad):
    """Every answer whose borders are borders of pieces is exact: all but two. Those are "gold rush", of "gold rushes" in the context, and
    one that the annotator began with the last letter of "probably"."""
    examples = [asked for asked in squad[name] if asked.label.texts]
    exact, others = exactness(examples, bert)
    assert (len(examples), exact) == (answerable, answerable - 2)
    assert {(answer[:9], text[:11]) for answer, text in others} == {("gold rush", "gold rushes"), ("y through", "probably th")}
    assert exactness(examples, bert, match_lowered=True, spans_by_words=True)[0] == exact  # the published rules lose the same two


def test_the_answers_of_all_annotators_are_exact(bert, squad):
    """Each of them as if it were the first: all but those that end within a piece."""
    examples = [
        asked._replace(label=Answers((text,), (start,)))
        for asked in squad["dev-v1.1.json"][:300]
        for text, start in zip(*asked.label, strict=True)
    ]
    exact, others = exactness(examples, bert)
    assert (len(examples), exact) == (1026, 1023) and all(text.startswith(answer) for answer, text in others)


def test_any_span_of_pieces_goes_to_characters_and_back(bert, squad):
    """Random spans of random contexts, parts of words and words that occur many times among them: the same pieces, not only the text."""
    rng = random.Random(1)
    contexts = list(dict.fromkeys(asked.texts[1] for asked in squad["dev-v1.1.json"]))
    examples, wanted = [], []
    for context, (_, spans) in zip(contexts, bert.encode_with_spans(contexts), strict=True):
        for _ in range(3):
            first = rng.randrange(len(spans))
            last = min(first + rng.randrange(12), len(spans) - 1)
            begin, end = spans[first, 0], spans[last, 1]
            examples.append(example(context, context[begin:end], int(begin)))
            wanted.append((first, last))
    rows = make_windows(examples, bert, length=512, training=True).rows
    inside = [row for row in rows if row.start]
    assert len({row.question for row in inside}) == len(examples) > 500
    for row in inside:
        assert (row.start - row.first + row.begin, row.end - row.first + row.begin) == wanted[row.question]
    assert all(text == examples[row.question].label.texts[0] for row, text in zip(inside, texts(inside), strict=True))


def test_exact_with_sentencepiece(squad):
    """Its pieces begin with white space and its normalisation changes lengths; spans are still the context's characters."""
    contexts = [asked.texts[1] for asked in squad["dev-v1.1.json"][:200]]
    tokenizer = train_sentencepiece(list(dict.fromkeys(contexts)), 1000, lower_case=True)
    examples = squad["dev-v1.1.json"][:200] + [example("The ﬁrst  Ⅷ, no", "Ⅷ"), example("a ﬁrst", "ﬁrst")]
    exact = 0
    windows = make_windows(examples, tokenizer, length=400, training=True)
    for row, text in zip(windows.rows, texts(windows.rows), strict=True):
        answer = examples[row.question].label.texts[0]
        assert text is None or answer in text
        exact += text == answer
    assert exact >= 190
