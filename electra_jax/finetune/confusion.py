"""The report's confusion matrices, on a split that has labels: how often a label was predicted for a gold label. For rows of several
labels: how often each label is right, missed and wrongly given.

Each kind of task has a maker in KINDS, a pure function of (task, examples, predictions). Numbers and answers have no classes, and so no
table.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from electra_jax.finetune.examples import Example
from electra_jax.finetune.rows import Prediction
from electra_jax.finetune.tag_metrics import chunks
from electra_jax.finetune.tasks import Task
from electra_jax.views import Cell, Table

MOST_ROWS = 20
NAME_LENGTH = 24  # how many characters of a label are shown
GOLD_BY_PREDICTED = "gold → predicted"
NONE = None  # in place of a type: there is no span


def clip(text: str, length: int) -> str:
    """The text in one line, at most so many characters of it."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _of_class(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Table]:
    pairs = Counter((example.label, each.value) for example, each in zip(examples, predictions, strict=True))
    return [_matrix(pairs, task.labels, "labels", f"Rows of the dev set, {len(examples):,} in all.")]


def _of_tags(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Table]:
    pairs, cut = Counter(), 0
    for example, each in zip(examples, predictions, strict=True):
        pairs.update(_span_pairs(example.label, each.value) if task.of_spans else zip(example.label, each.value, strict=True))
        cut += len(example.texts) - len(each.more)
    lost = f" {cut:,} words did not fit into their rows, and count as untagged." if cut else ""
    if not task.of_spans:
        return [_matrix(pairs, task.labels, "tags", f"Words of the dev set, {pairs.total():,} in all.{lost}")]
    types = sorted({type_ for pair in pairs for type_ in pair} - {NONE})
    reading = (
        "Spans of the dev set, by their type. Those with the same first and last word stand against each other; "
        f"one that has no such counterpart stands against none.{lost}"
    )
    return [_matrix(pairs, types, "types", reading)]


def _span_pairs(gold: Sequence[str], predicted: Sequence[str]) -> Iterable[tuple[str | None, str | None]]:
    """(gold type, predicted type) of each span of a sentence; a span that only one side has is paired with NONE."""
    gold_types, predicted_types = ({chunk[1:]: chunk.type for chunk in chunks(tags)} for tags in (gold, predicted))
    return [(gold_types.get(words, NONE), predicted_types.get(words, NONE)) for words in gold_types | predicted_types]


def _matrix(pairs: Counter, names: Sequence[str], called: str, reading: str) -> Table:
    """pairs: {(gold, predicted): how often}; one of the two may be NONE. names: the labels in order. called: the plural noun for them."""
    shown = _most_frequent(_sides(pairs), names)
    lines, rows = [*shown, *([NONE] if any(NONE in pair for pair in pairs) else [])], []
    others = any(gold in lines and predicted not in lines for gold, predicted in pairs)
    for gold in lines:
        counts = [pairs[gold, predicted] for predicted in lines]
        total = sum(count for (each, _), count in pairs.items() if each == gold)
        cells = [_cell(count, total, predicted == gold) for predicted, count in zip(lines, counts, strict=True)]
        rows.append((_name(gold), [*cells, *([_cell(total - sum(counts), total, False)] if others else [])]))
    told = f"{reading} Below each count is its share of the row, which the shade shows too; what is right is blue."
    if len(shown) < len(names):
        told += f" These are the {len(shown)} most frequent of {len(names)} {called}."
    return Table("Confusion matrix", told, GOLD_BY_PREDICTED, [*map(_name, lines), *(["others"] if others else [])], rows)


def _sides(pairs: Counter) -> Counter:
    """How often each name occurs, as gold and as predicted together."""
    found = Counter()
    for (gold, predicted), count in pairs.items():
        found[gold] += count
        found[predicted] += count
    return found


def _most_frequent(counts: Counter, names: Sequence[str]) -> list[str]:
    """The most frequent names, at most MOST_ROWS, in the order of `names`."""
    kept = set(sorted(names, key=lambda name: -counts[name])[:MOST_ROWS])
    return [name for name in names if name in kept]


def _name(label: str | None) -> str:
    return "none" if label is NONE else clip(label, NAME_LENGTH)


def _cell(count: int, total: int, right: bool) -> Cell:
    share = count / total if total else 0.0
    return Cell(f"{count:,}", f"{share:.1%}", share, right) if count else Cell("")


def _of_classes(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Table]:
    gold, given, right = Counter(), Counter(), Counter()
    for example, each in zip(examples, predictions, strict=True):
        gold.update(example.label)
        given.update(each.value)
        right.update(set(example.label) & set(each.value))
    rows = []
    for label in (shown := _most_frequent(gold + given, task.labels)):
        missed, wrong = gold[label] - right[label], given[label] - right[label]
        cells = [_cell(right[label], gold[label], True), _cell(missed, gold[label], False), _cell(wrong, given[label], False)]
        rows.append((_name(label), cells))
    reading = (
        f"Over the {len(examples):,} rows of the dev set. Right and missed: with the share of the rows that have the label. "
        "Wrongly given: with the share of the rows that were given it."
    )
    if len(shown) < len(task.labels):
        reading += f" These are the {len(shown)} most frequent of {len(task.labels)} labels."
    return [Table("Each label", reading, "label", ["right", "missed", "wrongly given"], rows)]


Maker = Callable[[Task, Sequence[Example], Sequence[Prediction]], list[Table]]
KINDS: Mapping[str, Maker] = {
    "class": _of_class,
    "classes": _of_classes,
    "number": lambda task, examples, predictions: [],
    "tags": _of_tags,
    "answer": lambda task, examples, predictions: [],
}
