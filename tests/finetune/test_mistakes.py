"""The report's tables and marked texts of every kind of task, to the letter, from examples and predictions made by hand."""

import dataclasses
import math

import pytest

from electra_jax.finetune import confusion, mistakes, results, rows, view
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.nbest import Decoded, Entry
from electra_jax.finetune.rows import Prediction
from electra_jax.finetune.tasks import TASKS, Task
from electra_jax.views import Cell, Table
from electra_jax.watch import report, telemetry
from tests.watch.test_report import Page

EVIL = "<script>alert('&\"')</script>"
ARABIC = "هذا نص عربي"


def task_of(kind: str, labels=(), scheme: str = "auto") -> Task:
    """One of a user's own."""
    layout = dataclasses.replace(TASKS["sst2"].layout, kind=kind, labels=tuple(labels), scheme=scheme)
    return Task("own", "mine", layout, {})


def examples(*pairs) -> list[Example]:
    """Of (texts, label) each."""
    return [Example(f"id{number}", texts, label, "") for number, (texts, label) in enumerate(pairs)]


def cells(table: Table) -> list[list[str]]:
    """The counts, row by row; "" where there is none."""
    assert all(len(row) == len(table.columns) for _, row in table.rows)
    return [[cell.text for cell in row] for _, row in table.rows]


def texts(found, number: int = 0) -> str:
    return "".join(span.space + span.text for span in found.sentences[number])


def marks(found, number: int = 0) -> list[tuple[str, str, float]]:
    """(text, what stands above it, shade) of the spans that have a shade or something above."""
    return [(span.text, span.over, span.shade) for span in found.sentences[number] if span.over or span.shade]


def drawn(tmp_path, *sections) -> Page:
    """The page, which checks that its tags are closed in order."""
    report.write(tmp_path / "report.html", metrics=tmp_path / "none", title="t", summary={}, sections=sections)
    return Page((tmp_path / "report.html").read_text())


def a_class(value: str, p: float, labels=("a", "b", "c")) -> Prediction:
    rest = (1 - p) / (len(labels) - 1)
    return Prediction(value, p, {label: p if label == value else rest for label in labels})


def test_every_kind_has_both():
    assert set(confusion.KINDS) == set(mistakes.KINDS) == set(rows.KINDS)


def test_classes_that_are_taken_for_others():
    task = task_of("class", ("a", "b", "c"))
    made = examples((("x",), "a"), (("y",), "a"), (("z",), "a"), (("w",), "b"))
    (table,) = confusion.KINDS["class"](task, made, [a_class("a", 0.9), a_class("b", 0.5), a_class("a", 0.4), a_class("a", 0.7)])
    assert table.columns == ["a", "b", "c"] and [name for name, _ in table.rows] == ["a", "b", "c"]
    assert cells(table) == [["2", "1", ""], ["1", "", ""], ["", "", ""]]
    assert table.rows[0][1][:2] == [Cell("2", "66.7%", 2 / 3, True), Cell("1", "33.3%", 1 / 3, False)]
    assert table.rows[1][1][0] == Cell("1", "100.0%", 1.0, False)
    assert "4 in all" in table.reading and "most frequent" not in table.reading


def test_many_classes_are_cut_to_the_most_frequent():
    labels = [f"l{number:02}" for number in range(30)]
    task = task_of("class", labels)
    gold = [label for number, label in enumerate(labels) for _ in range(number + 1)]  # the later, the more frequent
    called = ["l00" if label == "l29" else label for label in gold]  # which makes l00 frequent, and the next ones not
    made = examples(*((("x",), label) for label in gold))
    (table,) = confusion.KINDS["class"](task, made, [Prediction(label, 0.9) for label in called])
    assert [name for name, _ in table.rows] == ["l00", *labels[11:]] == table.columns
    assert cells(table)[-1] == ["30"] + [""] * 19
    assert "the 20 most frequent of 30 labels" in table.reading
    called[-1] = "l05"  # which has no column
    (table,) = confusion.KINDS["class"](task, made, [Prediction(label, 0.9) for label in called])
    assert table.columns == ["l00", *labels[11:], "others"]
    assert cells(table)[-1] == ["29"] + [""] * 19 + ["1"] and table.rows[-1][1][-1].note == "3.3%"


def test_the_surest_wrong_classes():
    task = task_of("class", ("a", "b", "c"))
    made = examples((("one",), "a"), (("two\n lines", EVIL), "a"), (("three",), "b"), (("long " * 200,), "c"))
    predictions = [a_class("b", 0.6), a_class("c", 0.8), a_class("b", 0.99), a_class("a", 0.7)]
    found = mistakes.KINDS["class"](task, made, predictions)
    assert [each["row"] for each in found.facts] == ["id1", "id3", "id0"]
    assert found.facts[0] == {"row": "id1", "predicted": "c (0.800)", "gold": "a (0.100)"}
    assert texts(found) == f"two lines\n{EVIL}" and marks(found) == []
    assert len(texts(found, 1)) == mistakes.TEXT and texts(found, 1).endswith("long…")
    all_right = mistakes.KINDS["class"](task, made[2:3], predictions[2:3])
    assert all_right.sentences == all_right.facts == []
    many = mistakes.KINDS["class"](task, made[:1] * 40, [a_class("b", 0.5 + number / 100) for number in range(40)])
    assert [each["predicted"] for each in many.facts] == [f"b ({0.89 - number / 100:.3f})" for number in range(mistakes.MOST)]


def several(task: Task, **probabilities: float) -> Prediction:
    more = {label: probabilities.get(label, 0.1) for label in task.labels}
    chosen = [label for label in task.labels if more[label] > 0.5]
    return Prediction(tuple(chosen), tuple(more[label] for label in chosen), more)


def test_several_labels():
    task = task_of("classes", ("a", "b", "c"))
    made = examples((("one",), ("a", "b")), (("two",), ()), (("three",), ("c", "a")), (("four",), ("b",)))
    predictions = [several(task, a=0.9), several(task, a=0.95, b=0.6), several(task, a=0.7, c=0.8), several(task, b=0.3, c=0.55)]
    (table,) = confusion.KINDS["classes"](task, made, predictions)
    assert table.columns == ["right", "missed", "wrongly given"] and [name for name, _ in table.rows] == ["a", "b", "c"]
    assert cells(table) == [["2", "", "1"], ["", "2", "1"], ["1", "", "1"]]
    assert table.rows[0][1] == [Cell("2", "100.0%", 1.0, True), Cell(""), Cell("1", "33.3%", 1 / 3, False)]
    found = mistakes.KINDS["classes"](task, made, predictions)
    assert [texts(found, number) for number in range(3)] == ["two", "one", "four"]
    assert found.facts[0] == {"row": "id1", "missed": "none", "wrongly given": "a (0.950), b (0.600)", "gold": "none"}
    assert found.facts[1] == {"row": "id0", "missed": "b (0.100)", "wrongly given": "none", "gold": "a, b"}
    assert found.facts[2] == {"row": "id3", "missed": "b (0.300)", "wrongly given": "c (0.550)", "gold": "b"}


def test_numbers():
    task = task_of("number")
    made = examples((("one", "other"), 2.0), (("two", "other"), 5.0), (("three", "other"), 1.0))
    predictions = [Prediction(2.5, None), Prediction(3.25, None), Prediction(1.0, None)]
    assert confusion.KINDS["number"](task, made, predictions) == []
    found = mistakes.KINDS["number"](task, made, predictions)
    assert found.facts[0] == {"row": "id1", "predicted": "3.25", "gold": "5", "difference": "-1.75"}
    assert found.facts[1]["difference"] == "+0.5" and len(found.facts) == 2
    assert texts(found) == "two\nother"


def tagged(tags: str, *probabilities: float, cut: int = 0) -> Prediction:
    value = tuple(tags.split())
    return Prediction(value, probabilities, value[: len(value) - cut])


def test_spans_stand_against_those_of_the_same_words():
    task = task_of("tags", ("O", "B-X", "I-X", "B-Y"))
    gold = ["B-X I-X O B-Y", "B-X O", "O B-Y", "B-X I-X"]
    called = ["B-X I-X O B-X", "B-X I-X", "O O", "B-X I-X"]
    made = examples(*((tuple("wxyz"[: len(tags.split())]), tuple(tags.split())) for tags in gold))
    predictions = [tagged(tags, *([0.5] * len(tags.split())), cut=number == 2) for number, tags in enumerate(called)]
    (table,) = confusion.KINDS["tags"](task, made, predictions)
    assert table.columns == ["X", "Y", "none"] and [name for name, _ in table.rows] == ["X", "Y", "none"]
    assert cells(table) == [["2", "", "1"], ["1", "", "1"], ["1", "", ""]]
    assert table.rows[0][1][0] == Cell("2", "66.7%", 2 / 3, True) and "1 words did not fit" in table.reading


def test_tags_of_words():
    task = task_of("tags", ("ADJ", "NOUN", "VERB"), scheme="tokens")
    made = examples((("w", "x", "y"), ("NOUN", "VERB", "NOUN")))
    (table,) = confusion.KINDS["tags"](task, made, [tagged("NOUN NOUN NOUN", 0.9, 0.8, 0.7)])
    assert table.columns == ["ADJ", "NOUN", "VERB"] and cells(table) == [["", "", ""], ["", "2", ""], ["", "1", ""]]
    assert "3 in all. Below" in table.reading  # nothing was cut off


def test_the_surest_wrong_words():
    task = task_of("tags", ("O", "B-X", "I-X"))
    gold = ["O B-X O B-X", "B-X O O", "O O O", "O B-X"]
    called = ["B-X B-X O O", "O B-X O", "O O O", "O O"]
    made = examples(*((tuple(f"{tags}w{word}" for word in range(len(tags.split()))), tuple(tags.split())) for tags in gold))
    predictions = [
        tagged(called[0], 0.7, 0.9, 0.9, 0.0, cut=1),
        tagged(called[1], 0.4, 0.8, 0.9),
        tagged(called[2], 0.9, 0.9, 0.9),
        tagged(called[3], 0.99, 0.0, cut=1),  # wrong, but only where it was cut off
    ]
    found = mistakes.KINDS["tags"](task, made, predictions)
    assert found.facts == [
        {"row": "id1", "probability": "0.800", "wrong words": "2"},
        {"row": "id0", "probability": "0.700", "wrong words": "1"},
    ]
    words = made[1].texts
    assert marks(found) == [(words[0], "B-X/O", 0.4), (words[1], "O/B-X", 0.8)]
    assert found.sentences[0][1].tip == "gold O, predicted B-X, 0.800"
    long = examples((tuple(f"w{word}" for word in range(100)), ("O",) * 100))
    wrong_at_50 = tagged(" ".join(["O"] * 50 + ["B-X"] + ["O"] * 49), *[0.9] * 100)
    around = texts(mistakes.KINDS["tags"](task, long, [wrong_at_50]))
    assert around == " ".join(["…", *(f"w{word}" for word in range(30, 80)), "…"])


def answered(text: str, *entries: tuple[str, float, tuple | None], null_score: float = -5.0) -> Prediction:
    nbest = [Entry(each, p, 0.0, 0.0, span) for each, p, span in entries]
    best = next((entry.text for entry in nbest if entry.text), "")
    return Prediction(text, nbest[0].probability, Decoded(0, best, null_score, nbest))


CONTEXT = "The tower was built in 1889\nfor the fair."
YEAR = (23, 27)


def test_the_surest_wrong_answers():
    task = task_of("answer")
    made = examples(
        (("When?", CONTEXT), Answers(("1889", "in 1889", "1889"), (23, 20, 23))),
        (("What for?", CONTEXT), Answers(("fair",), (36,))),
        (("Who?", CONTEXT), Answers((), ())),
        (("Where?", CONTEXT), Answers((), ())),
        (("What?", CONTEXT), Answers(("tower",), (4,))),
    )
    predictions = [
        answered("THE 1889!", ("THE 1889!", 0.99, YEAR)),  # right, as the official scorer compares
        answered("1889\nfor", ("1889\nfor", 0.6, (23, 31)), ("fair", 0.4, (36, 40))),
        answered("1889", ("", 0.1, None), ("1889", 0.9, YEAR)),
        answered("", ("1889", 1.0, YEAR), null_score=3.0),
        answered("", ("1889", 1.0, YEAR), null_score=math.log(3)),
    ]
    assert confusion.KINDS["answer"](task, made, predictions) == []
    found = mistakes.KINDS["answer"](task, made, predictions)
    assert found.facts == [
        {"row": "id2", "predicted": "1889 (0.900)", "gold": "no answer"},
        {"row": "id4", "predicted": "no answer (0.750)", "gold": "tower"},
        {"row": "id1", "predicted": "1889 for (0.600)", "gold": "fair"},
    ]
    assert texts(found) == "Who?\nThe tower was built in 1889 for the fair."
    assert marks(found, 0) == [("1889", "predicted", 0.9)]
    assert marks(found, 1) == [("tower", "gold", 0.0)]
    assert marks(found, 2) == [("1889", "predicted", 0.6), ("for", "", 0.6)]
    several = examples((("When?", CONTEXT), Answers(("1889", "in 1889", "1889"), (23, 20, 23))))
    assert mistakes.KINDS["answer"](task, several, [answered("x", ("x", 0.5, (0, 3)))]).facts[0]["gold"] == "1889; in 1889"


def test_answers_without_a_place():
    """No allowed span at all; the published threshold; logits that no exponential takes."""
    task, made = task_of("answer"), examples((("Who?", CONTEXT), Answers((), ())), (("What?", CONTEXT), Answers(("tower",), (4,))))
    nothing = answered("empty", ("empty", 1.0, None))
    found = mistakes.KINDS["answer"](task, made, [nothing, nothing])
    assert texts(found, 0) == "Who?\n" + " ".join(CONTEXT.split()) and marks(found, 0) == [] and marks(found, 1) == [("tower", "gold", 0.0)]
    sure, unsure = (answered("", ("1889", 1.0, YEAR), null_score=score) for score in (1e4, -1e4))
    assert mistakes.KINDS["answer"](task, made[1:], [sure]).facts[0]["predicted"] == "no answer (1.000)"
    assert mistakes.KINDS["answer"](task, made[1:], [unsure]).facts[0]["predicted"] == "no answer (0.000)"


def test_a_stretch_of_a_long_context():
    words = [f"word{number:03}" for number in range(200)]
    context = " ".join(words)
    start = context.index("word100")
    made = examples((("q", context), Answers((), ())))
    found = mistakes.KINDS["answer"](task_of("answer"), made, [answered("word100", ("word100", 0.9, (start, start + 7)))])
    _, line = texts(found).split("\n")
    shown = line.split()
    assert shown[0] == shown[-1] == "…" and set(shown[1:-1]) < set(words)  # whole words alone
    assert shown[1:-1] == words[words.index(shown[1]) : words.index(shown[-2]) + 1] and 2 * 130 < len(line) < 2 * 160
    solid = "字" * 1000  # a script without spaces
    made = examples((("q", solid), Answers((), ())))
    found = mistakes.KINDS["answer"](task_of("answer"), made, [answered("字" * 70, ("字" * 70, 0.9, (500, 570)))])
    assert [(len(text), over) for text, over, _ in marks(found)] == [(30, "predicted"), (30, ""), (10, "")]
    assert texts(found).split("\n")[1] == "…" + "字" * (150 + 70 + 150) + " …"


@pytest.mark.parametrize("text", [EVIL, ARABIC, "", "\x00\x1b[2J", "a" * 1000])
def test_whatever_stands_in_a_text_the_page_is_whole(text, tmp_path):
    task, a_row = task_of("class", (text, "b")), examples(((text, text), "b"))
    found = [
        *confusion.KINDS["class"](task, a_row, [a_class(text, 0.9, task.labels)]),
        mistakes.KINDS["class"](task, a_row, [a_class(text, 0.9, task.labels)]),
        mistakes.KINDS["tags"](task_of("tags"), examples(((text, text), ("O", f"B-{text}"))), [tagged("O O", 0.9, 0.8)]),
    ]
    answer, question = text or "empty", examples(((text, text), Answers((), ())))
    found.append(mistakes.KINDS["answer"](task_of("answer"), question, [answered(answer, (answer, 0.9, (0, len(text))))]))
    page = drawn(tmp_path, *found)
    assert "script" not in page.tags and page.tags.count("ruby") == 1 + bool(text.strip()) and page.tags.count("table") == 1
    assert page.attributes.count(("p", "class", "sentence")) == 3
    if text in (EVIL, ARABIC):
        assert page.texts.count(text) >= 3


def test_the_table_of_seeds():
    scores = {"dev": {3: {"f1": 0.5, "exact": 0.1, "total": 9}, 4: {"f1": 0.7, "exact": 0.3, "total": 9}}}
    (table,) = results.of_seeds(scores, ("f1", "exact"), 4)
    assert table.columns == ["f1", "exact"]
    assert [name for name, _ in table.rows] == ["seed 3", "seed 4", "median", "mean", "deviation", "best"]
    assert cells(table) == [["0.5000", "0.1000"], ["0.7000", "0.3000"], *[["0.6000", "0.2000"]] * 2, ["0.1414"] * 2, ["0.7000", "0.3000"]]
    assert [cell.shade for _, row in table.rows for cell in row] == [0.0, 0.0, 1.0, 1.0] + [0.0] * 8
    assert "threshold" not in table.reading
    (answers,) = results.of_seeds({"dev": {seed: {**each, "threshold": -2.75} for seed, each in scores["dev"].items()}}, ("f1",), 4)
    assert answers.reading.endswith("The scores are those at the no-answer threshold -2.75.")
    two = results.of_seeds({**scores, "dev_other": scores["dev"]}, ("f1",), 4)
    assert two[0].columns == ["dev f1", "dev_other f1"]
    assert results.of_seeds({"dev": {0: {"f1": 0.5}}}, ("f1",), 0) == []


def test_a_curve_of_each_seed_where_there_are_several_points(tmp_path):
    task = TASKS["sst2"]
    assert len(view.make(task).panels) == 2
    panel = view.make(task, (5, 6)).panels[-1]
    assert [(curve.metric, curve.label) for curve in panel.curves] == [(f"eval/accuracy.seed{seed}", f"seed {seed}") for seed in (5, 6)]
    assert len({curve[2:] for curve in view.make(task, range(14)).panels[-1].curves}) == 14
    many = view.make(task, range(1000)).panels[-1]
    assert len(many.curves) == 14 and "14 of 1000" in many.reading
    for lines, wanted in ((1, []), (2, [panel.title])):
        scores = {"eval/accuracy.seed5": 0.5, "eval/accuracy.seed6": 0.6}
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(telemetry.format_line(step, scores) for step in range(lines)))
        report.write(tmp_path / "report.html", metrics=tmp_path / "metrics.jsonl", title="t", summary={}, panels=[panel])
        page = Page((tmp_path / "report.html").read_text())
        assert [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")] == wanted
