"""What the labels of a task's examples say of the task, and whether they fit one another."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from electra_jax.cli import UserError
from electra_jax.finetune import tags
from electra_jax.finetune.config import WIDEST_RANGE
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.tasks import Task

_SPAN = re.compile("[BI]-")


def label_types(example: Example, kind: str) -> tuple[str, ...]:
    """What a model must have seen in training to predict the example's label: its class or classes; for tags, the types of their spans, or
    the tags themselves where they are of no span. Nothing for a number or an answer."""
    if example.label is None or kind in ("number", "answer"):
        return ()
    if kind == "tags":
        return tuple(map(_type, example.label))
    return (example.label,) if kind == "class" else example.label


@functools.cache  # of a few dozen tags, millions of times
def _type(tag: str) -> str:
    return tags.split(tag)[1] if _SPAN.match(tag) else tag


def check_labels(examples: Mapping[str, Sequence[Example]], kind: str) -> None:
    """Raises UserError, which names the row, if a dev or test set has a class or a type of span that the training set has not."""
    seen = {each for example in examples.get("train", ()) for each in label_types(example, kind)}
    for split, others in examples.items():
        for example in others if seen else ():
            if new := [each for each in label_types(example, kind) if each not in seen]:
                raise UserError(
                    f"{example.where}: the {split} set has the label {new[0]!r}, which no row of the training set has: mend the label, "
                    "or give the training set such rows"
                )


def all_or_none(examples: list[Example], split: str, layout: Layout) -> list[Example]:
    """The examples, each with a label or all without, because a split is scored if it has labels. For several classes and for answers, an
    empty cell is itself a label if other rows have one. For other kinds, a UserError names the first row without a label."""
    bare = [example for example in examples if example.label is None]
    if len(bare) in (0, len(examples)):
        return examples
    nothing = {"classes": (), "answer": Answers((), ())}.get(layout.kind)
    if nothing is None or layout.format == "squad":  # where a question that has none says so
        raise UserError(
            f"{bare[0].where} has no label, and other rows of the {split} set have one: label all of them, or leave all labels out"
        )
    return [example._replace(label=nothing) if example.label is None else example for example in examples]


def completed(task: Task, examples: Mapping[str, Sequence[Example]]) -> Task:
    """The task with what follows from its examples: the labels and the tag scheme, the range of a number, whether questions may have no
    answer. Raises UserError where nothing can be learned from the labels, or where they look like another column's."""
    return _COMPLETED[task.kind](task, examples)


def _with_classes(task: Task, examples: Mapping[str, Sequence[Example]]) -> Task:
    check_labels(examples, task.kind)
    train = examples.get("train", ())
    if not task.labels:
        labels = tuple(sorted({each for example in train for each in label_types(example, task.kind)}))
        if train and not labels:
            raise UserError(f"{_file(train)}: no row has a label: is {task.layout.label!r} their column (task.label_column)?")
        if len(labels) > max(20, len(train) // 2):
            raise UserError(
                f"{_file(train)} has {len(labels):,} labels in {len(train):,} rows: is {task.layout.label!r} their column "
                "(task.label_column)? If they are right, list them (task.labels)"
            )
        task = _with_layout(task, labels=labels)
    separator = task.layout.separator
    if task.kind == "classes" and (both := [each for each in task.labels if separator in each]):
        where = next((f"{example.where}: " for example in train if example.label and both[0] in example.label), "")
        raise UserError(
            f"{where}the label {both[0]!r} has {separator!r} in it, which stands between the labels of a row in predictions: "
            "choose another task.separator"
        )
    if task.kind == "class" and len(only := {example.label for example in train}) == 1:
        raise UserError(f"{_file(train)} has the label {only.pop()!r} alone: there is nothing to learn")
    return task


def _with_tags(task: Task, examples: Mapping[str, Sequence[Example]]) -> Task:
    check_labels(examples, task.kind)
    every = [example.label for each in examples.values() for example in each if example.label is not None]
    of_spans = task.layout.scheme != "tokens" and all(tag == "O" or _SPAN.match(tag) for tag in {tag for tags in every for tag in tags})
    # The published code sorts the tags of all its files, BIOES where they are of spans (`tagging_tasks.py`, `_get_label_mapping`).
    labels = tuple(sorted({tag for labels in every for tag in (tags.convert(labels, "bioes") if of_spans else labels)}))
    if (train := examples.get("train", ())) and len(labels) == 1:
        raise UserError(f"{_file(train)} has the tag {labels[0]!r} alone: there is nothing to learn")
    task = _with_layout(task, labels=labels, scheme="iob2" if of_spans else "tokens")
    return task if of_spans else dataclasses.replace(task, metrics=("accuracy",))  # the others are of spans


def _with_range(task: Task, examples: Mapping[str, Sequence[Example]]) -> Task:
    train = examples.get("train", ())
    if task.layout.range or not train:
        return task
    low, high = min(example.label for example in train), max(example.label for example in train)
    if low == high:
        raise UserError(f"{_file(train)}: every number is {low:g}: there is nothing to learn")
    if high - low > WIDEST_RANGE:
        raise UserError(f"{_file(train)}: its numbers go from {low:g} to {high:g}, too far apart: write them on another scale")
    return _with_layout(task, range=(low, high))


def _with_answerability(task: Task, examples: Mapping[str, Sequence[Example]]) -> Task:
    without = [example for each in examples.values() for example in each if example.label is not None and not example.label.texts]
    if without and task.name == "squad1":
        raise UserError(f"{without[0].where} has no answer, and SQuAD 1.1 has one for each question: is it 2.0? task.name=squad2")
    return dataclasses.replace(task, unanswerable=task.unanswerable or bool(without))


_COMPLETED = {
    "class": _with_classes,
    "classes": _with_classes,
    "tags": _with_tags,
    "number": _with_range,
    "answer": _with_answerability,
}


def _with_layout(task: Task, **changes) -> Task:
    return dataclasses.replace(task, layout=dataclasses.replace(task.layout, **changes))


def _file(examples: Sequence[Example]) -> str:
    return examples[0].where.rsplit(":", 1)[0]
