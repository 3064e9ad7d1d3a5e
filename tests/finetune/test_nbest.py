"""From log-probabilities and logits to answers: each filter by hand, and both decodings against plain loops on random scores."""

import json

import numpy as np
import pytest

from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.finetune.answers import make_windows
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.nbest import (
    NULL_THRESHOLD,
    Entry,
    JointOutputs,
    align,
    decode_independent,
    decode_joint,
    exact_text,
    published_text,
    with_null,
)
from tests.data.test_tokenizer import bert_words

WORDS = "what is it the big house no of ( ) , . ' s steve smith ##s".split()


@pytest.fixture(scope="module")
def small():
    return WordPiece([*SPECIALS, *WORDS])


@pytest.fixture(scope="module")
def questions(shared_data):
    """60 real ones, without their answers."""
    data = json.loads((shared_data / "squad" / "dev-v2.0.json").read_text())["data"]
    asked = [(q["question"], paragraph["context"]) for article in data for paragraph in article["paragraphs"] for q in paragraph["qas"]]
    return [Example(str(number), texts, None, "") for number, texts in enumerate(asked[::38])]


def windows_of(tokenizer, *contexts, length=68, **options):
    examples = [Example(str(n), ("what is it", context), Answers((), ()), "") for n, context in enumerate(contexts)]
    return make_windows(examples, tokenizer, length=length, training=False, **options).rows


def joint(*candidates, windows=1, null=(0.0,)):
    """Outputs with these (window, start, its score, end, its score), and as many starts and ends at [CLS], at the lowest scores."""
    size = len(candidates) + 1
    outputs = JointOutputs(
        np.full((windows, size), -99.0, np.float32),
        np.zeros((windows, size), np.int32),
        np.full((windows, size, size), -99.0, np.float32),
        np.zeros((windows, size, size), np.int32),
        np.array(null, np.float32),
    )
    for place, (window, start, start_score, end, end_score) in enumerate(candidates):
        outputs.start_index[window, place], outputs.start_log_probs[window, place] = start, start_score
        outputs.end_index[window, place, 0], outputs.end_log_probs[window, place, 0] = end, end_score
    return outputs


def test_the_best_pairs_of_one_window(small):
    windows = windows_of(small, "The Big House, no")  # [CLS] what is it [SEP] the big house , no [SEP]: the context is at 5 to 9
    outputs = joint((0, 5, -1.0, 7, -1.0), (0, 6, -0.5, 7, -0.25), (0, 9, -3.0, 9, 0.0), null=[-4.0])
    [prediction] = decode_joint(windows, outputs)
    assert (prediction.question, prediction.text, prediction.null_score) == (0, "Big House", -4.0)
    assert [entry.text for entry in prediction.nbest] == ["Big House", "The Big House", "no"]
    assert [(entry.start, entry.end, entry.span) for entry in prediction.nbest] == [
        (-0.5, -0.25, (4, 13)),
        (-1.0, -1.0, (0, 13)),
        (-3.0, 0.0, (15, 17)),
    ]
    weights = np.exp([-0.75, -2.0, -3.0])
    np.testing.assert_allclose([entry.probability for entry in prediction.nbest], weights / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        (5, 5, True),
        (0, 5, False),  # [CLS]
        (1, 5, False),  # in the question
        (4, 5, False),  # its [SEP]
        (5, 35, False),  # 31 pieces
        (5, 34, True),  # 30 pieces
        (7, 6, False),  # ends before it begins
        (44, 44, True),  # the last piece
        (44, 45, False),  # the [SEP] behind it
        (45, 45, False),
        (60, 60, False),  # padding
        (5, 60, False),
    ],
)
def test_which_spans_are_left_out(start, end, kept, small):
    windows = windows_of(small, "the big " * 20)
    [prediction] = decode_joint(windows, joint((0, start, 0.0, end, 0.0)))
    assert (prediction.text != "empty") == kept
    if not kept:
        assert prediction.nbest == [Entry("empty", 1.0, 0.0, 0.0, None)]
    logits = np.full((2, 1, 64), -9.0)
    logits[0, 0, start] = logits[1, 0, end] = 9.0
    [prediction] = decode_independent(windows, *logits, null=True, n_best=1)
    assert (prediction.text != "empty") == kept


def test_a_span_begins_where_its_window_shows_most(small):
    """Windows of 6 at 0 and 4: piece 4 counts in the first, piece 5 in the second."""
    windows = windows_of(small, "the big house no of what is it the big", length=12, max_question=3, stride=4)
    assert [row.begin for row in windows] == [0, 4]
    outputs = joint((0, 5 + 5, 0.0, 5 + 5, 0.0), (1, 5 + 0, 0.0, 5 + 1, 0.0), windows=2, null=[0, 0])
    assert decode_joint(windows, outputs)[0].text == "empty"
    outputs = joint((0, 5 + 4, 0.0, 5 + 5, 0.0), (1, 5 + 1, -1.0, 5 + 1, 0.0), windows=2, null=[0, 0])
    assert [entry.text for entry in decode_joint(windows, outputs)[0].nbest] == ["of what", "what"]
    logits = np.full((2, 2, 12), -9.0)
    logits[0, 0, 5 + 5] = logits[1, 0, 5 + 5] = 9.0  # run_qa.py does not ask for it
    assert decode_independent(windows, *logits, null=False)[0].text == "what"


def test_of_one_text_the_best_counts_and_equal_scores_keep_their_order(small):
    windows = windows_of(small, "no the no big")
    outputs = joint((0, 8, -1.0, 8, 0.0), (0, 5, -2.0, 5, 0.0), (0, 7, -0.5, 7, 0.0), (0, 6, 0.0, 6, -1.0))
    [prediction] = decode_joint(windows, outputs)
    assert [(entry.text, entry.span) for entry in prediction.nbest] == [("no", (7, 9)), ("big", (10, 13)), ("the", (3, 6))]
    assert [entry.text for entry in decode_joint(windows, outputs, n_best=2)[0].nbest] == ["no", "big"]


def test_a_span_without_characters_is_no_answer(small):
    """SentencePiece's "▁" may be a piece by itself."""
    outputs = joint((0, 5, 0.0, 5, 0.0), (0, 6, -1.0, 6, 0.0))
    [prediction] = decode_joint(windows_of(small, "no the"), outputs, lambda context, first, last: "the" if first else "")
    assert [entry.text for entry in prediction.nbest] == ["the"]


def test_the_null_score_is_the_least_of_the_windows(small):
    windows = windows_of(small, "the big house no of what is it the big", "the", length=12, max_question=3, stride=4)
    predictions = decode_joint(windows, joint((0, 5, 0.0, 5, 0.0), (2, 5, 0.0, 5, 0.0), windows=3, null=[-2.0, -3.0, 1.0]))
    assert [(prediction.question, prediction.null_score) for prediction in predictions] == [(0, -3.0), (1, 1.0)]
    assert [with_null(prediction) for prediction in predictions] == ["the", ""]
    assert [with_null(prediction, -3.5) for prediction in predictions] == ["", ""]
    border = predictions[0]._replace(null_score=NULL_THRESHOLD)
    assert NULL_THRESHOLD == -2.75 and with_null(border) == "the"  # no answer only above the threshold


# --- From pieces to text


@pytest.mark.parametrize(
    ("pieces", "words", "text"),
    [
        ("steve smith", "Steve Smith's", "Steve Smith"),
        ("( 1895", "(1895-1943).", "(1895"),
        ("1895", "(1895-1943).", "1895"),
        ("no", "No-no", "No"),  # always the first
        ("cafe", "Café,", "Café"),
        ("istanbul", "İstanbul.", "İstanbul"),  # two characters when lowered, one without its dot
        ("cafe", "Cafe\u0301,", "Cafe\u0301,"),  # an accent by itself: no longer equally long
        ("x", "x\u200b,", "x\u200b,"),
        ("the [UNK]", "The ☃", "The ☃"),  # an unknown piece is not found
        ("big house", "The big\xa0house", "The big\xa0house"),  # a space that only one of the two has
        ("", "The house", "The house"),
    ],
)
def test_published_alignment(pieces, words, text):
    assert align(pieces, words, True) == text == plain_align(pieces, words)


def test_a_cased_vocabulary_is_aligned_as_it_is():
    assert align("Steve", "Steve Smith's", False) == "Steve" and align("steve", "Steve Smith's", False) == "Steve Smith's"
    cased = WordPiece([*SPECIALS, "Steve", "'", "s"], lower_case=False)
    [window] = windows_of(cased, "Steve's")
    assert published_text(cased)(window.context, 0, 0) == "Steve"


def plain_align(pieces, words):
    tokenized = " ".join(bert_words(words, True))
    if pieces not in tokenized or not pieces or len(tokenized.replace(" ", "")) != len(words.replace(" ", "")):
        return words
    begin = tokenized.index(pieces)
    before = len(tokenized[:begin].replace(" ", ""))
    count, text = 0, ""
    for character in words:
        if character != " ":
            count += 1
        if before < count <= before + len(pieces.replace(" ", "")) and (character != " " or text):
            text += character
    return text.rstrip(" ")


def test_exact_text_keeps_what_the_alignment_loses(small):
    [window] = windows_of(small, "The big\u0301  House's no-no")
    words = published_text(small)
    context = window.context
    pieces = small.pieces(context.tokens)
    assert pieces == ["the", "big", "house", "'", "s", "no", "[UNK]", "no"]
    assert exact_text(context, 1, 2) == "big\u0301  House" and words(context, 1, 2) == "big\u0301 House's"
    assert exact_text(context, 2, 2) == words(context, 2, 2) == "House"
    assert exact_text(context, 7, 7) == "no" and words(context, 7, 7) == "no"
    assert exact_text(context, 5, 6) == "no-" and words(context, 5, 6) == "no-no"


def test_both_texts_on_real_contexts(bert, questions):
    """Equal in nine of ten; where they differ, it is because the alignment fell back to whole words or squeezed white space."""
    rng, text_of, differ, count = np.random.default_rng(0), published_text(bert), 0, 0
    for window in make_windows(questions, bert, length=512, training=False).rows:
        context = window.context
        for _ in range(20):
            first = rng.integers(len(context.tokens))
            last = min(first + rng.integers(6), len(context.tokens) - 1)
            exact, published = exact_text(context, first, last), text_of(context, first, last)
            inside = " ".join(context.text[b:e] for b, e in context.words[context.word[first] : context.word[last] + 1])
            pieces = " ".join(bert.pieces(context.tokens[first : last + 1])).replace(" ##", "").replace("##", "")
            assert published == plain_align(pieces, inside)
            differ, count = differ + (exact != published), count + 1
    assert count > 1000 and 0 < differ < 0.1 * count


# --- Both decodings against plain loops


def plain_joint(rows, outputs, text_of):
    found = []
    for number, window in rows:
        context = range(window.first, window.first + len(window.max_context))
        for i, start in enumerate(outputs.start_index[number]):
            for j, end in enumerate(outputs.end_index[number, i]):
                good = start in context and end in context and start <= end and end - start + 1 <= 30
                if good and window.max_context[start - window.first]:
                    shift = window.begin - window.first
                    scores = outputs.start_log_probs[number, i], outputs.end_log_probs[number, i, j]
                    found.append((sum(scores), scores, text_of(window.context, start + shift, end + shift)))
    best = {}
    for _, scores, text in sorted(found, key=lambda each: each[0], reverse=True):
        if len(best) < 20:
            best.setdefault(text, tuple(map(float, scores)))
    return [(text, *scores) for text, scores in best.items()] or [("empty", 0.0, 0.0)]


@pytest.mark.parametrize("published", [False, True])
def test_the_published_decoding_on_random_scores(published, bert, questions):
    windows = make_windows(questions, bert, length=160, training=False).rows
    rng, beam, size = np.random.default_rng(0), 8, (len(windows), 8)
    starts = np.stack([rng.permutation(len(row.tokens))[:beam] for row in windows])
    # Whole numbers, so that many sums are equal.
    outputs = JointOutputs(
        -rng.integers(0, 9, size).astype(np.float32),
        starts,
        -rng.integers(0, 9, (*size, beam)).astype(np.float32),
        starts[..., None] + rng.integers(-3, 40, (*size, beam)),
        rng.normal(size=len(windows)).astype(np.float32),
    )
    text_of = published_text(bert) if published else exact_text
    predictions = decode_joint(windows, outputs, text_of)
    assert [prediction.question for prediction in predictions] == list(range(len(questions)))
    for prediction in predictions:
        rows = [(number, window) for number, window in enumerate(windows) if window.question == prediction.question]
        wanted = plain_joint(rows, outputs, text_of)
        assert [(entry.text, entry.start, entry.end) for entry in prediction.nbest] == wanted
        assert prediction.text == wanted[0][0]
        assert prediction.null_score == min(float(outputs.no_answer[number]) for number, _ in rows)
        assert sum(entry.probability for entry in prediction.nbest) == pytest.approx(1)
    assert any(len(prediction.nbest) == 20 for prediction in predictions) and len(windows) > len(questions)


def plain_independent(rows, start_logits, end_logits, null):
    """transformers' run_qa.py: [(text, start, end)] of the list, the answer, and the null score."""
    found, least = [], None
    for number, window in rows:
        size = len(window.tokens)
        starts, ends = start_logits[number, :size].tolist(), end_logits[number, :size].tolist()
        if least is None or starts[0] + ends[0] < sum(least[1]):
            least = ("", (starts[0], ends[0]))
        context = range(window.first, window.first + len(window.max_context))
        for start in sorted(range(size), key=lambda place: -starts[place])[:20]:
            for end in sorted(range(size), key=lambda place: -ends[place])[:20]:
                if start in context and end in context and start <= end and end - start + 1 <= 30:
                    spans = window.context.spans[[start + window.begin - window.first, end + window.begin - window.first]]
                    found.append((window.context.text[spans[0, 0] : spans[1, 1]], (starts[start], ends[end])))
    found += [least] if null else []
    found = sorted(found, key=lambda each: sum(each[1]), reverse=True)[:20]
    if null and least not in found:
        found.append(least)
    if all(text == "" for text, _ in found):
        found.insert(0, ("empty", (0.0, 0.0)))
    text, scores = next(each for each in found if each[0])
    return [(text, *scores) for text, scores in found], text, sum(least[1]) - sum(scores)


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("shift", [-9, 4, 9])
def test_independent_decoding_on_random_scores(null, shift, bert, questions):
    """shift: of [CLS], so that the null answer is the last of the list, within it, or the first."""
    windows = make_windows(questions, bert, length=160, training=False).rows
    rng = np.random.default_rng(0)
    logits = rng.integers(-5, 6, (2, len(windows), 170)).astype(np.float32)
    for number, row in enumerate(windows):
        logits[:, number, len(row.tokens) :] = 99  # padding, which is not looked at
    logits[:, :, 0] = shift + rng.integers(-2, 3, logits.shape[:2])
    predictions = decode_independent(windows, *logits, null=null)
    places = []
    for prediction in predictions:
        rows = [(number, window) for number, window in enumerate(windows) if window.question == prediction.question]
        nbest, text, null_score = plain_independent(rows, *logits, null)
        assert [(entry.text, entry.start, entry.end) for entry in prediction.nbest] == nbest
        assert (prediction.text, prediction.null_score) == (text, null_score)
        assert sum(entry.probability for entry in prediction.nbest) == pytest.approx(1)
        places += [number for number, entry in enumerate(prediction.nbest) if entry.span is None]
    if null:
        assert len(places) == len(questions) and set(places) <= {-9: {20}, 9: {0}}.get(shift, set(range(21)))
    else:
        assert not places


def test_independent_decoding_without_an_allowed_span(small):
    windows = windows_of(small, "the big")
    logits = np.zeros((2, 1, 8))
    logits[0, 0, 6], logits[1, 0, 5] = 9.0, 9.0  # the best end is before the best start
    for null, texts in ((True, ["empty", ""]), (False, ["empty"])):
        [prediction] = decode_independent(windows, *logits, null=null, n_best=1)
        assert [entry.text for entry in prediction.nbest] == texts and prediction.text == "empty"
