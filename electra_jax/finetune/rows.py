"""Examples -> rows of tokens -> padded batches; and the way back: a head's outputs -> predictions -> scores.

KINDS has one record per kind of task: how its rows are made and labelled, what its outputs predict, and what its metrics compare.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.data.tokenizers import Tokenizer
from electra_jax.finetune import answers, batches, features, metrics, nbest, tags
from electra_jax.finetune.config import FinetuneConfig
from electra_jax.finetune.examples import Example
from electra_jax.finetune.objective import Labelled
from electra_jax.finetune.tasks import Task


class Rows(NamedTuple):
    """N rows, each of its own length n. A question about a context may have several rows, its windows."""

    tokens: Sequence[np.ndarray]  # int32 [n]
    types: Sequence[np.ndarray]  # int32 [n]
    labels: Sequence[Any]  # of each row, as objective.Labelled describes them for its kind
    made: Any  # the TagRows or Windows that the rows come from, which predictions need; else None
    dropped: Sequence[str]  # Example.where of the training examples that gave no row
    cut: Sequence[int]  # for each example, what did not fit: tokens; for tags words; for an answer tokens of the question


class Prediction(NamedTuple):
    """What a model predicts for one example."""

    value: Any  # as Example.label: a class, classes, a number, tags of all words; but an answer is its text, "" for none
    probability: Any  # of the value, "no answer" included; one for each of its classes or tags; None for a number
    more: Any = None  # classes: {label: probability}; tags: the model's own, of the words that fit; an answer: nbest.Decoded


class Kind(NamedTuple):
    heads: tuple[str, ...]  # keys of models.heads.TASKS that the kind can have, the published one first
    num_labels: Callable[[Task], int]
    rows: Callable[[Task, Sequence[Example], Tokenizer, FinetuneConfig, int, bool], Rows]  # ..., length, training
    predict: Callable[[Task, Sequence[Example], Rows, Mapping[str, np.ndarray], FinetuneConfig, Tokenizer], list[Prediction]]
    score: Callable[[Task, Sequence[Example], Sequence[Prediction], FinetuneConfig], dict[str, float]]


def pad(rows: Rows, kind: str, numbers: np.ndarray, length: int, pad_id: int, place: np.ndarray) -> Labelled:
    """A batch of the rows with these numbers (-1: an empty row), padded to `length`. place: int32 [B], which becomes Batch.row."""
    B = len(numbers)
    tokens, segments, types = np.full((B, length), pad_id, np.int32), np.zeros((B, length), np.int32), np.zeros((B, length), np.int32)
    labels = [np.zeros_like(rows.labels[0])] * B
    for b, number in enumerate(numbers):
        if number >= 0:
            n = len(rows.tokens[number])
            tokens[b, :n], types[b, :n], segments[b, :n] = rows.tokens[number], rows.types[number], 1
            labels[b] = rows.labels[number]
    if kind == "tags":
        found = np.full((B, length), features.NO_LABEL, np.int32)
        for b, number in enumerate(numbers):
            if number >= 0:
                found[b, : len(labels[b])] = labels[b]
    else:
        found = np.stack(labels)
    positions = np.arange(length, dtype=np.int32)[None] * segments
    return Labelled(tokens, segments, positions, types, place.astype(np.int32), found)


def batched(rows: Rows, kind: str, lengths: Sequence[int], batch_rows: Sequence[int], pad_id: int) -> Iterator[tuple[Labelled, np.ndarray]]:
    """Yields all rows as (batch, bool [B]: which of its rows are real). A batch of lengths[i] tokens has batch_rows[i] rows. Batch.row is
    a row's number among all rows, by which `objective.joined` puts the outputs back in order."""
    lengths_N = np.array([len(tokens) for tokens in rows.tokens])
    for length, size, numbers in zip(lengths, batch_rows, batches.groups(lengths_N, lengths), strict=True):
        for start in range(0, len(numbers), size):
            some = np.full(size, -1, np.int64)
            some[: len(numbers[start : start + size])] = numbers[start : start + size]
            yield pad(rows, kind, some, length, pad_id, some), some >= 0


# --- One or several classes, a number


def _text_rows(label: Callable[[Task, Example], Any]) -> Callable:
    def rows(task: Task, examples: Sequence[Example], tokenizer: Tokenizer, config: FinetuneConfig, length: int, training: bool) -> Rows:
        if training and (task.both_orders if config.both_orders is None else config.both_orders):
            examples = features.both_orders(examples)
        made = features.encode_texts(examples, tokenizer, length=length)
        return Rows(made.tokens, made.types, [label(task, example) for example in examples], None, (), made.cut)

    return rows


def _class_label(task: Task, example: Example) -> np.ndarray:
    return np.int32(task.labels.index(example.label) if example.label is not None else 0)


def _classes_label(task: Task, example: Example) -> np.ndarray:
    return np.array([label in (example.label or ()) for label in task.labels], np.int32)


def _number_label(task: Task, example: Example) -> np.ndarray:
    """The number as a share of its range, as published for STS-B: `classification_tasks.py`, (label - 0) / 5."""
    low, high = task.layout.range
    return np.float32(((example.label if example.label is not None else low) - low) / (high - low))


def _predict_class(task, examples, rows, outputs, config, tokenizer) -> list[Prediction]:
    p_NxC = np.exp(outputs["log_p"].astype(np.float64))
    best_N = p_NxC.argmax(axis=1)
    return [
        Prediction(task.labels[best], float(p_C[best]), dict(zip(task.labels, p_C.tolist(), strict=True)))
        for best, p_C in zip(best_N, p_NxC, strict=True)
    ]


def _predict_classes(task, examples, rows, outputs, config, tokenizer) -> list[Prediction]:
    found = []
    for p_C in np.exp(outputs["log_p"].astype(np.float64)).tolist():
        chosen = [(label, p) for label, p in zip(task.labels, p_C, strict=True) if p > 0.5]
        found.append(Prediction(tuple(label for label, _ in chosen), tuple(p for _, p in chosen), dict(zip(task.labels, p_C, strict=True))))
    return found


def _predict_number(task, examples, rows, outputs, config, tokenizer) -> list[Prediction]:
    low, high = task.layout.range
    return [Prediction(low + (high - low) * value, None) for value in outputs["value"].astype(np.float64).tolist()]


def _score_values(number_of: Callable[[Task, Any], Any]) -> Callable:
    def score(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], config: FinetuneConfig) -> dict[str, float]:
        gold = np.array([number_of(task, example.label) for example in examples])
        return metrics.measure(task.metrics, gold, np.array([number_of(task, each.value) for each in predictions]))

    return score


# --- Tags


def _tag_rows(task: Task, examples: Sequence[Example], tokenizer: Tokenizer, config: FinetuneConfig, length: int, training: bool) -> Rows:
    made = features.encode_tags(
        examples,
        tokenizer,
        length=length,
        type_id=config.tags_type,
        by_word_count=config.cut_by_word_count,
        published_case=config.lower_tagged_words,
    )
    number = {label: i for i, label in enumerate(task.labels)}
    labels = [np.array([number[tag] for tag in _as_trained(task, example)], np.int32) for example in examples]
    return Rows(made.tokens, made.types, features.labels_of_pieces(made, labels), made, (), made.cut)


def _as_trained(task: Task, example: Example) -> Sequence[str]:
    if example.label is None:
        return [task.labels[0]] * len(example.texts)
    return tags.convert(example.label, "bioes") if task.of_spans else example.label


def outside(task: Task) -> str:
    """What words that did not get into the row have instead of a tag: O, or "_" (as in CoNLL-U) where O is none of the task's tags. One of
    its tags would be right by chance."""
    return "O" if task.of_spans or "O" in task.labels else "_"


def _predict_tags(task, examples, rows, outputs, config, tokenizer) -> list[Prediction]:
    found = []
    for firsts, example, called_L, log_p_L in zip(rows.made.firsts, examples, outputs["called"], outputs["log_p"], strict=True):
        cut = len(example.texts) - len(firsts)
        kept = tuple(task.labels[label] for label in called_L[firsts])
        called = (*kept, *[outside(task)] * cut)
        found.append(
            Prediction(
                tags.convert(called, "iob2") if task.of_spans else called,
                (*np.exp(log_p_L[firsts].astype(np.float64)).tolist(), *[0.0] * cut),
                kept,
            )
        )
    return found


def _score_tags(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], config: FinetuneConfig) -> dict[str, float]:
    if config.published_tag_scores:  # it scores only words that fit, in the model's own tag scheme
        called = [each.more for each in predictions]
        if not any(called):  # all words were cut off, and there is nothing to score
            return dict.fromkeys(task.metrics, 0.0)
        gold = [_as_trained(task, example)[: len(kept)] for example, kept in zip(examples, called, strict=True)]
        return metrics.measure(("published_chunks" if task.of_spans else "tags",), gold, called)
    gold, called = [example.label for example in examples], [each.value for each in predictions]
    return metrics.measure(("chunks" if task.of_spans else "tags",), gold, called)


# --- Answers


def _answer_rows(
    task: Task, examples: Sequence[Example], tokenizer: Tokenizer, config: FinetuneConfig, length: int, training: bool
) -> Rows:
    made = answers.make_windows(
        examples,
        tokenizer,
        length=length,
        training=training,
        match_lowered=config.match_lowered_answers,
        spans_by_words=config.answers_by_words,
        labels_by_question=config.answerable_by_question,
    )
    labels = [np.array([window.start, window.end, window.impossible], np.int32) for window in made.rows]
    return Rows([window.tokens for window in made.rows], [window.types for window in made.rows], labels, made, made.dropped, made.cut)


def _predict_answers(task, examples, rows, outputs, config, tokenizer) -> list[Prediction]:
    text_of = nbest.published_text(tokenizer) if config.answers_by_words else nbest.exact_text
    if config.head == "joint_answer":
        joint = nbest.JointOutputs(outputs["start_log_p"], outputs["start"], outputs["end_log_p"], outputs["end"], outputs["no_answer"])
        decoded = nbest.decode_joint(rows.made.rows, joint, text_of)
    else:
        logits = outputs["start_logits"], outputs["end_logits"]
        decoded = nbest.decode_independent(rows.made.rows, *logits, text_of, null=task.unanswerable)
    texts = [nbest.with_null(each, config.no_answer_threshold) if task.unanswerable else each.text for each in decoded]
    return [Prediction(text, nbest.probability_of(text, each), each) for text, each in zip(texts, decoded, strict=True)]


def _score_answers(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], config: FinetuneConfig) -> dict[str, float]:
    gold = {example.id: example.label.texts for example in examples}
    texts = {example.id: each.more.text for example, each in zip(examples, predictions, strict=True)}
    if not task.unanswerable:
        return metrics.measure(("squad1",), gold, texts)
    none = {example.id: each.more.null_score for example, each in zip(examples, predictions, strict=True)}
    return metrics.measure(("squad2",), gold, texts, no_answer=none, threshold=config.no_answer_threshold)


_OF_TEXT = ("classification", "sequence_classification")
KINDS: Mapping[str, Kind] = {
    "class": Kind(
        _OF_TEXT,
        lambda task: len(task.labels),
        _text_rows(_class_label),
        _predict_class,
        _score_values(lambda task, label: task.labels.index(label)),
    ),
    "classes": Kind(
        _OF_TEXT,
        lambda task: len(task.labels),
        _text_rows(_classes_label),
        _predict_classes,
        _score_values(lambda task, labels: [label in labels for label in task.labels]),
    ),
    "number": Kind(_OF_TEXT, lambda task: 1, _text_rows(_number_label), _predict_number, _score_values(lambda task, value: value)),
    "tags": Kind(("token_classification",), lambda task: len(task.labels), _tag_rows, _predict_tags, _score_tags),
    "answer": Kind(("joint_answer", "question_answering"), lambda task: 2, _answer_rows, _predict_answers, _score_answers),
}
