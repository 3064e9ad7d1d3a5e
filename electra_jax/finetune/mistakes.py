"""The report's worst mistakes: examples of a labelled split whose predictions are wrong, the most confident first, as marked texts.

Each kind of task has a maker in KINDS, a pure function of (task, examples, predictions). If nothing is wrong, the section has no
sentences.
"""

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from electra_jax.finetune import nbest
from electra_jax.finetune.answer_metrics import normalize
from electra_jax.finetune.confusion import clip
from electra_jax.finetune.examples import Example
from electra_jax.finetune.rows import Prediction
from electra_jax.finetune.tasks import Task
from electra_jax.views import Examples, Span

MOST = 15
TEXT, FACT = 400, 120  # the most characters of a text, and of a fact about it
BEFORE, BEHIND = 20, 30  # how many words of a sentence are shown around its worst one
WORD = 30  # the most characters of a marked word: a browser does not break it, and it must fit a phone
AROUND = 150  # how many characters of a context are shown on either side of an answer
TITLE = "The worst mistakes"


def _worst(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], badness: Callable) -> list[tuple]:
    """(badness, example, prediction) of the worst examples, at most MOST, those with badness above 0 alone; of equal ones the first."""
    scored = ((badness(example, each), example, each) for example, each in zip(examples, predictions, strict=True))
    return heapq.nlargest(MOST, (found for found in scored if found[0] > 0), key=lambda found: found[0])


def _facts(example: Example, **values: str) -> dict[str, str]:
    return {"row": clip(example.id, FACT), **{name.replace("_", " "): clip(value, FACT) for name, value in values.items()}}


def _texts(example: Example) -> list[Span]:
    """One line for each text."""
    return [Span(clip(text, TEXT), "\n" if number else "") for number, text in enumerate(example.texts)]


def _of_class(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Examples:
    worst = _worst(task, examples, predictions, lambda example, each: each.probability if each.value != example.label else 0.0)
    facts = [
        _facts(
            example,
            predicted=f"{each.value} ({each.probability:.3f})",
            gold=f"{example.label} ({each.more[example.label]:.3f})",
        )
        for _, example, each in worst
    ]
    reading = "Rows of the dev set that are wrong, the surest first. In brackets the probability that the model gives."
    return Examples(TITLE, reading, [_texts(example) for _, example, _ in worst], facts)


def _of_classes(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Examples:
    def wrong(example: Example, each: Prediction) -> tuple[list[str], list[str]]:
        """(missed labels, wrongly given labels), the most confident mistake first."""
        missed = [label for label in task.labels if label in example.label and label not in each.value]
        given = [label for label in each.value if label not in example.label]
        return sorted(missed, key=lambda label: each.more[label]), sorted(given, key=lambda label: -each.more[label])

    def badness(example: Example, each: Prediction) -> float:
        missed, given = wrong(example, each)
        return max([1 - each.more[label] for label in missed] + [each.more[label] for label in given], default=0.0)

    worst, facts = _worst(task, examples, predictions, badness), []
    for _, example, each in worst:
        missed, given = (", ".join(f"{label} ({each.more[label]:.3f})" for label in labels) for labels in wrong(example, each))
        facts.append(_facts(example, missed=missed or "none", wrongly_given=given or "none", gold=", ".join(example.label) or "none"))
    reading = "Rows of the dev set that are wrong, the surest wrong label first. In brackets the probability that a row has the label."
    return Examples(TITLE, reading, [_texts(example) for _, example, _ in worst], facts)


def _of_number(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Examples:
    worst = _worst(task, examples, predictions, lambda example, each: abs(each.value - example.label))
    facts = [
        _facts(example, predicted=f"{each.value:.4g}", gold=f"{example.label:.4g}", difference=f"{each.value - example.label:+.4g}")
        for _, example, each in worst
    ]
    reading = "Rows of the dev set, the largest difference first."
    return Examples(TITLE, reading, [_texts(example) for _, example, _ in worst], facts)


def _of_tags(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Examples:
    def wrong(example: Example, each: Prediction) -> dict[int, float]:
        """{word: probability of its predicted tag} for the wrong words. Words that were cut off are left out: the model did not see
        them."""
        kept = range(len(each.more))
        return {word: each.probability[word] for word in kept if each.value[word] != example.label[word]}

    worst = _worst(task, examples, predictions, lambda example, each: max(wrong(example, each).values(), default=0.0))
    sentences, facts = [], []
    for badness, example, each in worst:
        marks = wrong(example, each)
        centre = max(marks, key=marks.get)
        first, end = max(centre - BEFORE, 0), min(centre + BEHIND, len(example.texts))
        spans = [Span("…")] if first else []
        for word in range(first, end):
            text, gold, called = example.texts[word], example.label[word], each.value[word]
            if word in marks:
                over, tip = f"{clip(gold, WORD // 2)}/{clip(called, WORD // 2)}", f"gold {gold}, predicted {called}, {marks[word]:.3f}"
                spans.append(Span(clip(text, WORD), " ", marks[word], tip, over))
            else:
                spans.append(Span(clip(text, FACT), " "))
        sentences.append([*spans, Span("…", " ")] if end < len(example.texts) else spans)
        facts.append(_facts(example, probability=f"{badness:.3f}", wrong_words=str(len(marks))))
    reading = (
        "Sentences of the dev set, the one with the surest wrong word first. Above a wrong word: its gold and its predicted tag. "
        "The shade is the probability of the predicted tag."
    )
    return Examples(TITLE, reading, sentences, facts)


def _of_answer(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Examples:
    def badness(example: Example, each: Prediction) -> float:
        right = {normalize(text) for text in example.label.texts or ("",)}
        return nbest.probability_of(each.value, each.more) if normalize(each.value) not in right else 0.0

    worst, sentences, facts = _worst(task, examples, predictions, badness), [], []
    for probability, example, each in worst:
        question, context = example.texts
        span = next((entry.span for entry in each.more.nbest if entry.text == each.value), None)
        if span is not None:
            marked = _stretch(context, *span, "predicted", probability)
        elif example.label.texts:
            marked = _stretch(context, example.label.starts[0], example.label.starts[0] + len(example.label.texts[0]), "gold", 0.0)
        else:
            marked = [Span(clip(context, TEXT))]
        sentences.append([Span(clip(question, TEXT)), *_on_a_line(marked)])
        facts.append(
            _facts(
                example,
                predicted=f"{clip(each.value, FACT - 10) or 'no answer'} ({probability:.3f})",
                gold="; ".join(dict.fromkeys(example.label.texts)) or "no answer",
            )
        )
    reading = (
        "Questions of the dev set whose answer is none of the gold ones, the surest first, with the context around it. "
        "In brackets, and as the shade, the probability of the answer among the model's best ones, or of there being none."
    )
    return Examples(TITLE, reading, sentences, facts)


def _stretch(context: str, start: int, end: int, over: str, shade: float) -> list[Span]:
    """An answer and the context around it, cut at white space if there is any. `over` stands above the answer's first word."""
    before, behind = context[max(start - AROUND, 0) : start], context[end : end + AROUND]
    if start > AROUND:
        before = "…" + re.sub(r"^\S*(?=\s)", "", before)
    if end + AROUND < len(context):
        behind = re.sub(r"(?<=\s)\S*$", "", behind).rstrip() + " …"
    spans = [Span(" ".join(before.split()))]
    for word in re.finditer(rf"\S{{1,{WORD}}}", context[start:end]):
        space = " " if context[: start + word.start()][-1:].isspace() else ""
        tip = f"{over}, {shade:.3f}" if shade else over
        spans.append(Span(word.group(), space, shade, tip, over="" if len(spans) > 1 else over))
    return [*spans, Span(" ".join(behind.split()), " " if behind[:1].isspace() else "")]


def _on_a_line(spans: Iterable[Span]) -> list[Span]:
    first, *rest = spans
    return [first._replace(space="\n"), *rest]


Maker = Callable[[Task, Sequence[Example], Sequence[Prediction]], Examples]
KINDS: Mapping[str, Maker] = {"class": _of_class, "classes": _of_classes, "number": _of_number, "tags": _of_tags, "answer": _of_answer}
