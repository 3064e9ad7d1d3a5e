"""A fine-tuned model on new texts, from Python.

    model = electra_jax.load_task("runs/cola")
    for prediction in model.predict(["The cat sat.", "Cat the sat."]):
        print(prediction.value, prediction.probability)

A prediction follows from its row and the model, not from the other rows: the lengths that rows are padded to follow from the model alone,
and no row attends to another. The place of a row in its batch can change the last bits of a sum, but no more. The same rows in the same
order give the same bits.
"""

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.finetune import batches, objective, rows
from electra_jax.finetune.config import FinetuneConfig, null_threshold
from electra_jax.finetune.examples import Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.rows import example
from electra_jax.finetune.rows import Prediction
from electra_jax.finetune.tasks import TASKS, Task
from electra_jax.infer import inputs
from electra_jax.interop import formats, names
from electra_jax.interop.model import Model
from electra_jax.models.attention import choice
from electra_jax.options import parse
from electra_jax.parallel import mesh as meshes
from electra_jax.train import evaluation

PORTION_ROWS = 4096
PORTION_CHARACTERS = 1 << 24  # a portion of long texts has fewer rows, so that memory is bounded
BATCH_TOKENS = {"cpu": 1024}  # more are no faster there, and leave more empty places in a portion's last batches (docs/speed.md)
ELSEWHERE_TOKENS = 32768
LENGTH = 512  # for a model that does not say how long its rows were
# The kind of task of a model that tells nothing but its head and its type of problem, such as a folder of transformers.
_KINDS = {"token_classification": "tags", "question_answering": "answer", "joint_answer": "answer"}
_PROBLEMS = {"regression": "number", "multi_label_classification": "classes"}
_TEXTS = {"tags": ("words",), "answer": ("question", "context")}


@dataclasses.dataclass(frozen=True)
class TaskModel:
    """A model with a task's head, ready to predict; made by `load_task`."""

    path: str
    task: Task
    config: FinetuneConfig
    tokenizer: Tokenizer
    lengths: tuple[int, ...]  # the lengths that rows are padded to, ascending; each is compiled when it is first met
    batch_rows: tuple[int, ...]  # the rows of a batch, for each length
    outputs: Callable[[Iterable], Iterator[dict[str, np.ndarray]]]  # batches -> the outputs of each

    def predict(self, texts: Iterable[Any], portion_rows: int = PORTION_ROWS) -> Iterator[Prediction]:
        """Yields one prediction per text, in order. Of `texts`, only `portion_rows` are in memory at a time.

        texts: each is a text, or a pair of texts. For tags it is a list of words, or a text to be split at white space; for answers a
          pair of question and context.

        Raises UserError if `texts` is a single text or has no order, and for an item that is empty or no text. At the end, warns if texts
        were cut because they were longer than the model's rows.
        """
        if isinstance(texts, str | bytes):
            raise UserError("predict takes several texts: predict([text])")
        if isinstance(texts, Mapping):
            raise UserError("texts are of type dict, whose keys would be predicted: predict(list(texts.values()))")
        if isinstance(texts, Set):
            raise UserError("texts are of type set, which has no order: predict(sorted(texts))")
        if hasattr(texts, "columns"):  # of pandas: its columns' names would be predicted
            raise UserError(f"texts are a table: name its column, predict(texts[{next(iter(texts.columns), 'text')!r}])")
        return self._predictions((_example(each, number, self.task) for number, each in enumerate(texts)), portion_rows)

    def _predictions(self, examples: Iterable[Example], portion_rows: int) -> Iterator[Prediction]:
        counts = Counter()
        try:
            for some in portions(examples, portion_rows):
                predictions, cut = self.of_examples(some)
                counts["rows"] += len(some)
                counts["cut"] += cut
                yield from predictions
        finally:  # even if the caller stops early: zip(texts, predictions) never asks for the end of the second
            if counts["cut"]:
                warnings.warn(self.cut_note(counts["cut"], counts["rows"]), stacklevel=2)

    def of_examples(self, examples: Sequence[Example]) -> tuple[list[Prediction], int]:
        """(one prediction per example, how many examples were cut). All rows are in memory at once."""
        widest = max(len(each.texts) for each in examples)
        if self.task.kind not in _TEXTS and widest > 1:  # if one is a pair, all are: an empty second text gives the row of a single text
            examples = [each._replace(texts=(*each.texts, "")[:2]) for each in examples]
        kind = rows.KINDS[self.task.kind]
        made = kind.rows(self.task, examples, self.tokenizer, self.config, self.config.length, False)
        found = self.outputs(rows.batched(made, self.task.kind, self.lengths, self.batch_rows, self.tokenizer.pad_id))
        outputs = objective.joined(found)
        if not objective.are_finite(outputs):
            raise UserError(f"{self.path}: the model's outputs are not finite numbers: its training diverged, or its files are damaged")
        predictions = kind.predict(self.task, examples, made, outputs, self.config, self.tokenizer)
        return predictions, int(np.count_nonzero(made.cut))

    def cut_note(self, cut: int, of: int) -> str:
        """What a person is told if texts were longer than the rows."""
        if self.task.kind == "answer":
            return f"{cut:,} of {of:,} questions were cut at their end, being too long for a row"
        lost = f"; words past the end have the tag {rows.outside(self.task)}, with the probability 0" if self.task.kind == "tags" else ""
        return f"{cut:,} of {of:,} texts were cut at their end to {self.config.length} tokens, [CLS] and [SEP] included{lost}"


def portions(examples: Iterable[Example], portion_rows: int) -> Iterator[list[Example]]:
    """Yields the examples in lists of `portion_rows`, or of fewer if they are long."""
    some, characters = [], 0
    for each in examples:
        some.append(each)
        characters += sum(map(len, each.texts))
        if len(some) >= portion_rows or characters >= PORTION_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _example(value: Any, number: int, task: Task) -> Example:
    """The example of an item of `texts`, by the rules for a row of a file."""
    where, kind, names = f"texts[{number}]", task.kind, _TEXTS.get(task.kind, ("text",))
    if kind != "tags":
        fields = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
        if kind != "answer" and len(fields) == 2:
            names = ("first text", "second text")
        if len(fields) != len(names) or not all(isinstance(each, str) for each in fields):
            wanted = "(question, context)" if kind == "answer" else "a text, or a pair of them"
            raise UserError(f"{where} is {_short(value)}: it must be {wanted}")
        inputs.check_texts(task, names, f"{where} is {_short(value)}")
        value = fields
    else:
        if not isinstance(value, str | list | tuple):
            raise UserError(f"{where} is {_short(value)}: it must be a list of words, or a text")
        value = (value,)
    return example(dict(zip(names, value, strict=True)), Layout("", kind, names, labelled=False), where, number, Counter())


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


# --- Opening


def predict(path: str | os.PathLike, texts: Iterable[Any]) -> Iterator[Prediction]:
    """load_task(path).predict(texts): to predict more than once, load once."""
    return load_task(path).predict(texts)


def load_task(path: str | os.PathLike, batch_tokens: int = 0) -> TaskModel:
    """The fine-tuned model of a workdir (its model/, the best seed's), or whatever `load` opens that has a task's head.

    batch_tokens: rows times length of a batch; 0: by the platform. The rows of a batch are divided among all devices of this process.

    Raises UserError if there is no model, no task's head, or no tokenizer that fits the model.
    """
    name = os.fspath(path)
    model = formats.read(name, with_slots=False)
    if model.task is None:
        heads = ", ".join(f"{each} ({_head(model, each)})" for each in model.networks)
        raise UserError(
            f"{name}: the model has no task's head: it has {heads}. Fine-tune it: "
            f"python launch/finetune.py --config=configs/finetune.py:own --config.init_from={name} --config.task.path=... --workdir=..."
        )
    if model.tokenizer is None:
        raise UserError(f"{name}: there is no tokenizer in it: put its vocab.txt there, or the tokenizer that it was prepared with")
    task, config = task_of(model), _config(model)
    mesh = meshes.make_mesh(devices=jax.local_devices())
    platform, network = meshes.Platform.of(mesh), model.networks[0]
    where = platform.name, config.length, [model.config.encoder(network)]
    attention = choice.choose("auto", *where)
    # Each row length compiles a program. With the layers as one loop it compiles in a third of the time, and is as fast (docs/speed.md).
    shape = dataclasses.replace(model.config, dtype=platform.dtype, attention=attention, scan_layers=True)
    goal = objective.make(shape, task.kind, config.head, len(task.labels), None, lambda outputs: {}, network=network)
    params = jax.device_put(model.params, meshes.replicated(mesh))
    outputs = evaluation.make_outputs(goal, mesh)
    lengths = batches.ladder(config.length, choice.row_multiple(attention, *where))
    tokens = batch_tokens or BATCH_TOKENS.get(platform.name, ELSEWHERE_TOKENS)
    batch_rows = tuple(max(tokens // length // mesh.size, 1) * mesh.size for length in lengths)
    return TaskModel(name, task, config, model.tokenizer, lengths, batch_rows, lambda batches: outputs(params, batches))


def _head(model: Model, network: str) -> str:
    return {"discriminator": "its RTD head", "generator": "its MLM head"}[network] if "head" in model.params[network] else "no head"


def task_of(model: Model) -> Task:
    """The task as `results.write` stored it; for other models, as far as the head tells. UserError if task and head do not fit."""
    stored, labels, where = model.about.get("task") or {}, tuple(model.about.get("labels") or ()), model.about.get("source")
    # As in transformers, a head with one output gives a number unless problem_type says otherwise.
    problem = str(stored.get("problem_type") or ("regression" if len(labels) == 1 else ""))
    kind = stored.get("kind") or _KINDS.get(model.task) or _PROBLEMS.get(problem, "class")
    of_spans = all(label == "O" or label[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for label in labels)
    found = {
        "format": "",
        "kind": kind,
        "texts": _TEXTS.get(str(kind), ("text",)),
        "labels": labels,
        "range": stored.get("range") or (0.0, 1.0),  # with (0, 1) the output itself is the value
        "scheme": "iob2" if of_spans else "tokens",
    }
    layout = _layout(stored.get("layout", found), where)
    _refuse_misfit(model, layout, labels, where)
    name = str(stored.get("name", ""))
    known = TASKS.get(name)
    unanswerable = stored.get("unanswerable", known.unanswerable if known else False)
    return Task(name, str(stored.get("title") or name), layout, known.files if known else {}, unanswerable=bool(unanswerable))


def _refuse_misfit(model: Model, layout: Layout, labels: Sequence[str], where: Any) -> None:
    """UserError if the config has two different lists of labels, or one label twice, or if the head has another number of outputs."""
    outputs = len(names.flat(model.params[model.task]).get("out/bias", (0, 0)))  # the joint head has no such layer
    of_labels = layout.kind in ("class", "classes", "tags")
    if of_labels and layout.labels != tuple(labels):
        two = f"{', '.join(labels)} by id2label and {', '.join(layout.labels)} by electra_jax.layout.labels"
        raise UserError(f"{where}: its labels are {two}: mend one of them")
    if double := [label for label, count in Counter(layout.labels).items() if count > 1]:
        raise UserError(f"{where}: its config gives the label {double[0]!r} to two outputs: rename one (id2label)")
    wanted = {"number": 1, "answer": 2}.get(layout.kind, len(layout.labels))
    if layout.kind != _KINDS.get(model.task, layout.kind) or (layout.kind in _TEXTS) != (model.task in _KINDS) or outputs != wanted:
        raise UserError(
            f"{where}: by its config it predicts {layout.kind} from {wanted} outputs, and its head, {model.task}, has {outputs}: "
            "copy its config anew"
        )


def _layout(fields: Any, where: Any) -> Layout:
    """The layout from the JSON values that `results.write` stored. UserError if someone has changed these so that they are unusable."""
    try:
        layout = Layout(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
        low, high = layout.range or (() if layout.kind == "number" else (0.0, 1.0))
        usable = layout.kind in rows.KINDS and all(isinstance(each, str) for each in (*layout.labels, *layout.texts)) and low < high
        usable = usable and 1 <= len(layout.texts) <= 2
    except (TypeError, ValueError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"{where}: what it says of its task's layout has been changed: copy its config anew")
    return layout


def _config(model: Model) -> FinetuneConfig:
    stored, where = (model.about.get("task") or {}).get("finetune") or {}, model.about.get("source")
    if not isinstance(stored, Mapping):
        raise UserError(f"{where}: its finetune is {stored!r}: it must be an object, as fine-tuning writes it: copy its config anew")
    found = parse(FinetuneConfig, {"length": min(LENGTH, model.config.max_length), **stored}, "finetune")
    learned = model.config.positions != "rotary"
    if found.length < 4 or learned and found.length > model.config.max_length:
        most = f", and at most the model's {model.config.max_length} positions" if learned else ""
        raise UserError(f"{where}: its finetune.length is {found.length}: it must be at least 4{most}")
    threshold = null_threshold(model.task) if found.no_answer_threshold is None else found.no_answer_threshold
    return dataclasses.replace(found, head=model.task, no_answer_threshold=threshold)
