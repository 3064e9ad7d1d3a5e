"""Answers by the rules of SQuAD's scripts: each rule by hand, random answers against a plain reference, and what the scripts printed.

PRINTED_1 and PRINTED_2 hold the figures of evaluate-v1.1.py and evaluate-v2.0.py, in percent, for the answers that `many` and `real`
make here; these must not change without them.
"""

import json
import random
import string

import pytest

from electra_jax.finetune.answer_metrics import best_threshold, normalize, squad1, squad2, word_f1

RULES = {
    "lower case": ("Cat CAT", "cat cat"),
    "articles": ("The cat, a dog and an owl", "cat dog and owl"),
    "an article within a word stays": ("theatre banana an1", "theatre banana an1"),
    "punctuation goes first, so this is no article": ("a.m. the-cat t.h.e", "am thecat"),
    "nothing but articles": ("The a AN", ""),
    "all ASCII punctuation": (string.punctuation, ""),
    "an underscore is punctuation": ("snake_case _the_", "snakecase"),
    "other punctuation stays, and ends a word": ("\u201cthe\u201d x\u2014the\u2014y", "\u201c \u201d x\u2014 \u2014y"),
    "any white space parts words": ("x\u00a0y\t z\n\u3000w ", "x y z w"),
    "numbers and signs": ("$5.30 50% 1,000", "530 50 1000"),
    "accents stay": ("Caf\u00e9 \u0130", "caf\u00e9 i\u0307"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_normalizing(rule):
    text, want = RULES[rule]
    assert normalize(text) == want


def test_word_f1_counts_each_word_as_often_as_it_occurs():
    assert word_f1("big big cat", "big big dog dog dog") == pytest.approx(4 / 8)
    assert word_f1("x y", "y x") == 1.0
    assert word_f1("x", "y") == word_f1("x", "") == word_f1("", "x") == word_f1("", "") == word_f1("the", "a") == 0.0


def test_version_1_counts_every_question():
    gold = {"missing": ["x"], "right": ["y z", "The y"], "empty": ["the"], "near": ["p q"]}
    got = squad1(gold, {"right": "y", "empty": "an", "near": "q", "of another file": "x"})
    # "an" is "the", for both are nothing; but they share no word.
    assert got == {"exact": 2 / 4, "f1": pytest.approx((1 + 0 + 2 / 3) / 4), "total": 4, "missing": 1}


def test_version_2_by_hand():
    gold = {"q1": ["x y"], "q2": [], "q3": ["the", "."], "q4": [], "q5": ["z"]}
    predicted = {"q1": "y", "q2": "", "q3": "", "q4": "the", "q5": "", "of another file": "x"}
    # q3's answers are nothing, so "" is right, but it counts as answerable; q4's prediction is nothing too.
    assert squad2(gold, predicted) == {
        "exact": 3 / 5,
        "f1": pytest.approx((2 / 3 + 3) / 5),
        "total": 5,
        "HasAns_exact": pytest.approx(1 / 3),
        "HasAns_f1": pytest.approx((2 / 3 + 1) / 3),
        "HasAns_total": 3,
        "NoAns_exact": 1.0,
        "NoAns_f1": 1.0,
        "NoAns_total": 2,
    }
    scores = {"of another file": -9.0, "q4": 0.4, "q1": 0.1, "q2": 0.2, "q3": 0.3, "q5": 0.5}
    got = squad2(gold, predicted, scores, threshold=0.3)  # q3, at the threshold, is kept; q4 and q5 become ""
    assert (got["exact"], got["NoAns_exact"], got["HasAns_exact"], got["threshold"]) == (3 / 5, 1.0, pytest.approx(1 / 3), 0.3)
    assert squad2(gold, predicted, scores, threshold=0.29)["HasAns_exact"] == 0.0  # q3 counts as answerable
    # From 2, the questions without an answer: q1 adds 0 or 2/3, q2's "" nothing, q3 adds 1, q4's text takes 1 away, q5 adds nothing.
    assert (got["best_exact"], got["best_exact_thresh"]) == (3 / 5, 0.3)
    assert (got["best_f1"], got["best_f1_thresh"]) == (pytest.approx((2 + 2 / 3 + 1) / 5), 0.3)


def test_a_gold_answer_of_articles_alone_is_no_answer_beside_another():
    assert squad2({"q": ["the", "x"]}, {"q": ""})["exact"] == 0.0
    assert squad1({"q": ["the", "x"]}, {"q": ""})["exact"] == 1.0


def test_only_the_parts_that_there_are():
    assert "NoAns_total" not in squad2({"q": ["x"]}, {"q": "x"}) and "best_f1" not in squad2({"q": ["x"]}, {"q": "x"})
    assert "HasAns_total" not in squad2({"q": []}, {"q": "x"})


def test_the_best_threshold():
    gold, predicted = {"a": ["x"], "b": [], "c": ["x"]}, {"a": "x", "b": "y", "c": "x"}
    right = {"a": 1.0, "b": 0.0, "c": 1.0}
    # Nothing answered is threshold 0, whatever the scores are.
    assert best_threshold({"b": []}, predicted, {"b": 0.0}, {"b": -3.0}) == (1.0, 0.0)
    # The first of equally good ones: after a alone; a, b and c together are as good.
    assert best_threshold(gold, predicted, right, {"a": -2.0, "b": -1.0, "c": 0.5}) == (2 / 3, -2.0)
    assert best_threshold(gold, predicted, right, {"a": -2.0, "b": 1.0, "c": 0.5}) == (1.0, 0.5)
    # A prediction that is nothing but an article is right where there is no answer, but to answer with it costs 1.
    nothing = squad2({"a": ["x"], "b": []}, {"a": "x", "b": "the"}, {"a": 0.5, "b": -0.5}, threshold=0.5)
    assert (nothing["exact"], nothing["best_exact"], nothing["best_exact_thresh"]) == (1.0, 0.5, 0.0)
    # Equal scores are answered one by one, in the order of the mapping: 1.0 can be had by no threshold.
    assert best_threshold(gold, predicted, right, {"c": 0.5, "a": 0.5, "b": 0.5}) == (1.0, 0.5)
    assert best_threshold(gold, predicted, right, {"b": 0.5, "a": 0.5, "c": 0.5}) == (2 / 3, 0.5)


def test_what_cannot_be_scored_is_refused():
    for score in (squad1, squad2):
        with pytest.raises(ValueError, match="no question"):
            score({}, {})
    with pytest.raises(ValueError, match="question q2 has no answer"):
        squad1({"q1": ["x"], "q2": []}, {"q1": "x", "q2": ""})
    with pytest.raises(ValueError, match="1 of 2 questions have no prediction, the first of them q2"):
        squad2({"q1": ["x"], "q2": []}, {"q1": "x"})
    with pytest.raises(ValueError, match="1 of 2 questions have no no-answer score, the first of them q1"):
        squad2({"q1": ["x"], "q2": []}, {"q1": "x", "q2": ""}, {"q2": 0.0})
    with pytest.raises(ValueError, match="q1 is not a number"):
        squad2({"q1": ["x"]}, {"q1": "x"}, {"q1": float("nan")})


# --- Random answers against the definitions, written another way

WORDS = [
    "the",
    "a",
    "An",
    "cat",
    "Cat",
    "cat.",
    "The,",
    "dog",
    "U.S.",
    "us",
    "\u2014",
    "\u201cthe\u201d",
    "5%",
    "\u0130",
    "a.m.",
    "the_cat",
    "'s",
]
SPACES = [" ", "  ", "\u00a0", "-", "\n", "\u2014"]


def draw_text(r: random.Random) -> str:
    return "".join(r.choice(WORDS) + r.choice(SPACES) for _ in range(r.choice([0, 1, 1, 2, 3, 5])))


def draw(seed: int, answerable: float = 0.6) -> tuple[dict, dict, dict]:
    """Gold answers, predictions and no-answer scores, with ties, of up to 12 questions."""
    r = random.Random(seed)
    ids = [f"q{number}" for number in range(r.randint(1, 12))]
    gold = {id_: [draw_text(r) for _ in range(r.randint(1, 3))] if r.random() < answerable else [] for id_ in ids}
    predicted = {id_: r.choice([*gold[id_], draw_text(r), ""]) for id_ in ids}
    return gold, predicted, {id_: round(r.gauss(0, 1), r.choice([0, 3])) for id_ in r.sample(ids, len(ids))}


def plain(text: str) -> list[str]:
    """The words of a normalized text, letter by letter."""
    kept = [letter for letter in text.lower() if not ("!" <= letter <= "~" and not letter.isalnum())]
    words, word = [], ""
    for letter in [*kept, " "]:
        if letter.isalnum() == (word[-1:].isalnum()):
            word += letter
        else:
            words, word = [*words, " " if word in ("a", "an", "the") else word], letter
    return "".join([*words, word]).split()


def plain_f1(gold: str, predicted: str, both_empty: float) -> float:
    left, right = plain(gold), plain(predicted)
    if not left and not right:
        return both_empty
    rest, hits = list(left), 0
    for word in right:
        if word in rest:
            rest.remove(word)
            hits += 1
    precision, recall = hits / max(len(right), 1), hits / max(len(left), 1)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def test_normalizing_random_texts():
    r = random.Random(0)
    signs = [*string.printable, *"theTHEanAN" * 6, *"\u201c\u201d\u2014\u00a0\u00e9\u0130\u0660\u00b2"]
    for _ in range(1000):
        text = "".join(r.choice(signs) for _ in range(r.randint(0, 30))) if r.random() < 0.5 else draw_text(r)
        assert normalize(text).split(" ") == (plain(text) or [""]), repr(text)


def test_random_answers_of_version_1():
    for seed in range(1000):
        gold, predicted, _ = draw(seed, answerable=1.0)
        r = random.Random(seed)
        predicted = {id_: text for id_, text in predicted.items() if r.random() < 0.8}
        exact = [any(plain(text) == plain(predicted[id_]) for text in texts) for id_, texts in gold.items() if id_ in predicted]
        f1 = [max(plain_f1(text, predicted[id_], 0.0) for text in texts) for id_, texts in gold.items() if id_ in predicted]
        want = {"exact": sum(exact) / len(gold), "f1": sum(f1) / len(gold), "total": len(gold), "missing": len(gold) - len(predicted)}
        assert squad1(gold, predicted) == pytest.approx(want, abs=1e-12)


def test_random_answers_of_version_2():
    for seed in range(1000):
        gold, predicted, scores = draw(seed)
        threshold = random.Random(seed).choice([-1.0, 0.0, 0.5, 1.0])

        def points(name, emptied):
            """{question: its points} where the predictions of `emptied` are taken for the empty text."""
            found = {}
            for id_, texts in gold.items():
                if id_ in emptied:
                    found[id_] = float(not texts)
                    continue
                texts = [text for text in texts if plain(text)] or [""]
                exact = [float(plain(text) == plain(predicted[id_])) for text in texts]
                found[id_] = max(exact if name == "exact" else [plain_f1(text, predicted[id_], 1.0) for text in texts])
            return found

        got = squad2(gold, predicted, scores, threshold)
        for name in ("exact", "f1"):
            at = points(name, {id_ for id_ in gold if scores[id_] > threshold})
            for prefix, ids in (("", gold), ("HasAns_", [i for i in gold if gold[i]]), ("NoAns_", [i for i in gold if not gold[i]])):
                if ids:
                    assert got[prefix + name] == pytest.approx(sum(at[id_] for id_ in ids) / len(ids), abs=1e-12)
                    assert got[prefix + "total"] == len(ids)
            # Every number of answered questions, the likeliest first; one without an answer is right if it is not answered, or with "".
            order, raw = sorted(scores, key=lambda id_: scores[id_]), points(name, ())
            totals = [
                sum(raw[i] if gold[i] else float(predicted[i] == "") for i in order[:answered]) + sum(not gold[i] for i in order[answered:])
                for answered in range(len(order) + 1)
            ]
            best = next(number for number, total in enumerate(totals) if total > max(totals) - 1e-9)
            assert got[f"best_{name}"] == pytest.approx(totals[best] / len(gold), abs=1e-12)
            assert got[f"best_{name}_thresh"] == (scores[order[best - 1]] if best else 0.0)


# --- What the scripts printed

PRINTED_1 = {
    "random": {"exact_match": 54.7850643238155, "f1": 34.13801604733519},
    "squad/dev-v1.1.json": {"exact_match": 36.994219653179194, "f1": 48.31143864635873},
}
PRINTED_2 = {
    "random": {
        "exact": 42.90869155946031,
        "f1": 43.205881034560036,
        "total": 6374,
        "HasAns_exact": 11.702688455455982,
        "HasAns_f1": 12.201973040138565,
        "HasAns_total": 3794,
        "NoAns_exact": 88.7984496124031,
        "NoAns_f1": 88.7984496124031,
        "NoAns_total": 2580,
        "best_exact": 49.63915908377785,
        "best_exact_thresh": 2.283,
        "best_f1": 50.641370448399016,
        "best_f1_thresh": 2.555,
    },
    "squad/dev-v2.0.json": {
        "exact": 46.617519514310494,
        "f1": 53.54034207207926,
        "total": 2306,
        "HasAns_exact": 42.09205020920502,
        "HasAns_f1": 55.451070140765516,
        "HasAns_total": 1195,
        "NoAns_exact": 51.48514851485149,
        "NoAns_f1": 51.48514851485149,
        "NoAns_total": 1111,
        "best_exact": 59.15004336513443,
        "best_exact_thresh": -2.99,
        "best_f1": 62.622748081623065,
        "best_f1_thresh": -2.99,
    },
}


def many(answerable: float) -> tuple[dict, dict, dict]:
    """The random questions of 1,000 draws as one data set."""
    drawn = [draw(seed, answerable) for seed in range(1000)]
    return tuple({f"{seed} {id_}": value for seed, parts in enumerate(drawn) for id_, value in parts[part].items()} for part in range(3))


def real(path) -> tuple[dict, dict, dict]:
    """Gold answers of a file of SQuAD; predictions that are right, longer, cut short, empty or a piece of the context; random scores."""
    r, gold, predicted, scores = random.Random(0), {}, {}, {}
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                texts = [answer["text"] for answer in question["answers"]]
                first = int(r.random() * len(paragraph["context"]))
                piece = paragraph["context"][first : first + 25]
                one = texts[int(r.random() * len(texts))] if texts else piece
                choices = [one, one, f"the {one}!", f"{one} {piece}", one[: len(one) // 2], "", piece]
                gold[question["id"]], predicted[question["id"]] = texts, choices[int(r.random() * len(choices))]
                scores[question["id"]] = round(4 * r.random() - 3 - 2 * bool(texts), 2)
    return gold, predicted, scores


def as_printed(figures: dict) -> dict:
    return {name: value if name.endswith(("total", "thresh")) else 100 * value for name, value in figures.items()}


@pytest.mark.parametrize("name", ["random", "squad/dev-v1.1.json"])
def test_version_1_as_the_script_scores_it(name, request):
    gold, predicted, _ = many(1.0) if name == "random" else real(request.getfixturevalue("shared_data") / name)
    predicted = {id_: text for number, (id_, text) in enumerate(predicted.items()) if number % 10}
    got = squad1(gold, predicted)
    assert {"exact_match": 100 * got["exact"], "f1": 100 * got["f1"]} == pytest.approx(PRINTED_1[name], abs=1e-9)


@pytest.mark.parametrize("name", ["random", "squad/dev-v2.0.json"])
def test_version_2_as_the_script_scores_it(name, request):
    gold, predicted, scores = many(0.6) if name == "random" else real(request.getfixturevalue("shared_data") / name)
    got = squad2(gold, predicted, scores, -0.75)
    assert got.pop("threshold") == -0.75
    assert as_printed(got) == pytest.approx(PRINTED_2[name], abs=1e-9)
