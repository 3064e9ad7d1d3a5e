"""Finds and reads a task's examples as its config says, and collects notes about them for the user."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from electra_jax.cli import UserError
from electra_jax.data.prepare.split import document_hash, is_heldout
from electra_jax.data.readers import tfds
from electra_jax.data.readers.compressions import COMPRESSIONS
from electra_jax.finetune import tags
from electra_jax.finetune.config import WIDEST_RANGE, TaskConfig
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.readers import ENDINGS, ONE_KIND, format_of, read
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.tasks import OWN, TASKS, Task, Tfds

# The names, without endings, that a user's files may have if the config gives none.
_STEMS = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}
_TFDS = "tfds:"
_SPAN = re.compile("[BI]-")


class Opened(NamedTuple):
    task: Task  # with all labels, and the range of a number
    examples: dict[str, list[Example]]  # split -> in the order of the file
    counts: dict[str, dict[str, int]]  # split -> readers.Reading.counts
    paths: dict[str, str]  # split -> the file
    notes: list[str]  # a line each: what was dropped, what is missing


def task_of(config: TaskConfig) -> Task:
    """The task that the config names or describes, with the config's changes. Reads no file, but lists the folder of a user's own task."""
    given = {split: name for split in _STEMS if (name := getattr(config, split))}
    if config.name == OWN:
        task = _own(config, given)
        if (label := task.layout.label) in task.layout.texts:
            raise UserError(f"task.label_column is {label!r}, which is also among task.text_columns: take it out of one of them")
        return task
    task, changes = TASKS[config.name], {}
    if config.tag_scheme:
        changes["scheme"] = config.tag_scheme
    if config.bad_rows:
        changes["drop"] = config.bad_rows == "drop"
    if config.label_column:
        changes["label"] = config.label_column
    changes["lenient"] = config.lenient_tags
    _check_format(config, task.layout.format)

    def changed(layout: Layout) -> Layout:
        return dataclasses.replace(layout, **changes)

    theirs = task.tfds and Tfds(task.tfds.name, _instead(task.tfds.splits, given), changed(task.tfds.layout))
    return dataclasses.replace(
        task,
        layout=changed(task.layout),
        layouts={split: changed(layout) for split, layout in task.layouts.items()},
        files=_instead(task.files, {split: (name,) for split, name in given.items()}),
        tfds=theirs,
    )


def _instead(splits: Mapping, given: Mapping) -> dict:
    """`splits`, in which a train, dev or test set that the config gives replaces all of the task's own of that kind (MNLI has two dev
    sets)."""
    return {split: each for split, each in splits.items() if split.split("_")[0] not in given} | dict(given)


def _own(config: TaskConfig, given: Mapping[str, str]) -> Task:
    if not config.path:
        raise UserError(f"--config.task.path is missing: name the folder of your files, or one of {', '.join(TASKS)} (task.name)")
    if config.path.startswith(_TFDS):
        name = config.path.removeprefix(_TFDS)
        if not name:
            raise UserError(f"task.path is tfds: without a name, and task.name={OWN}: write tfds:NAME")
        there = list(tfds.open_builder(config.path, name).info.splits)
        found = {split: next((stem for stem in stems if stem in there), "") for split, stems in _STEMS.items()}
        splits = {split: name for split, name in ({"train": found["train"] or "train"} | found | given).items() if name}
        return Task(OWN, name, layout := own_layout(config, "tfds"), {}, tfds=Tfds(name, splits, layout))
    if os.path.isdir(config.path):
        names = os.listdir(config.path)
        files = {split: given.get(split) or _named(names, stems, config) for split, stems in _STEMS.items()}
    else:
        if not os.path.exists(config.path):
            raise UserError(f"{config.path}: there is no such file or folder: name your file, or the folder of your files (task.path)")
        name = os.path.basename(config.path)
        if given.get("train", name) != name:
            raise UserError(f"task.path names the file {name}, and task.train another: let task.path be their folder")
        files = {**given, "train": name}
    files = {split: name for split, name in files.items() if name}
    if "train" not in files:
        raise UserError(f"{config.path}: no file train.csv, .tsv, .jsonl, .parquet ... there: name yours (--config.task.train=...)")
    layouts = {split: own_layout(config, _format(config, name)) for split, name in files.items()}
    files = {split: (name,) for split, name in files.items()}
    return Task(OWN, os.path.basename(os.path.abspath(config.path)), layouts["train"], files, layouts=layouts)


def _named(names: Sequence[str], stems: Sequence[str], config: TaskConfig) -> str:
    """The file whose name, without its endings, is one of `stems`; "" if there is none. UserError if there are several."""
    found = [name for name in sorted(names) if name.split(".")[0] in stems and format_of(name)]
    if len(found) > 1:
        raise UserError(f"{config.path} has {', '.join(found)}: name the one that is meant (task.train, task.dev, task.test)")
    return found[0] if found else ""


def _format(config: TaskConfig, name: str) -> str:
    found = config.format if config.format != "auto" else format_of(name)
    if found is None:
        raise UserError(f"{name}: its ending tells no format ({', '.join(ENDINGS)}, also {', '.join(COMPRESSIONS)}): say task.format=...")
    return found


# Options that only some formats have a use for.
_OF_FORMATS = {
    "header": ("csv", "tsv", "glue"),
    "delimiter": ("csv", "tsv"),
    "quotes": ("csv", "tsv"),
    "start_column": ("csv", "tsv", "jsonl", "parquet", "tfds"),
    "id_column": ("csv", "tsv", "jsonl", "parquet", "tfds", "glue"),
    "text_columns": ("csv", "tsv", "jsonl", "parquet", "tfds", "glue", "columns", "conllu", "lines"),
    "bad_rows": ("csv", "tsv", "jsonl", "parquet", "tfds", "glue", "lines"),
}


def _check_format(config: TaskConfig, format: str) -> None:
    for field in dataclasses.fields(config):
        if getattr(config, field.name) != field.default and format not in _OF_FORMATS.get(field.name, (format,)):
            raise UserError(f"task.{field.name} is for {', '.join(_OF_FORMATS[field.name])}, and this file is {format}: leave it out")


def own_layout(config: TaskConfig, format: str) -> Layout:
    """The layout of a file of a user's own task."""
    _check_format(config, format)
    needs = ONE_KIND.get(format, config.kind)
    if needs != config.kind:
        lines = ", or of JSON lines task.format=jsonl" if format == "squad" else ""
        raise UserError(f"a file of the format {format} holds {needs}, and task.kind is {config.kind}: say task.kind={needs}{lines}")
    if format == "glue" and config.kind not in ("class", "number"):
        raise UserError(f"a file of the format glue holds classes or numbers, and task.kind is {config.kind}: say task.format=tsv")
    texts, label = {"class": (("text",), "label"), "tags": (("words",), "tags"), "answer": (("question", "context"), "answers")}.get(
        config.kind, (("text",), "label")
    )
    if format == "columns" or not config.header and format in ("csv", "tsv"):
        texts, label = ("0", "1")[: len(texts)], "-1"
    elif format == "conllu":
        texts, label = ("form",), "upos"
    return Layout(
        format,
        config.kind,
        config.text_columns or texts,
        config.label_column or label,
        start=config.start_column,
        id=config.id_column,
        labels=config.labels,
        range=config.label_range,
        separator=config.separator,
        header=config.header,
        delimiter=config.delimiter,
        quotes=config.quotes,
        scheme=config.tag_scheme or "auto",
        lenient=config.lenient_tags,
        drop=config.bad_rows == "drop",
    )


# --- Files


def find(task: Task, path: str) -> dict[str, str]:
    """{split: its file} for the files that are there, in `path` or in the task's folder within it. For `tfds:`, {split: the item to
    read}."""
    if path.startswith(_TFDS):
        if task.tfds is None:
            raise UserError(f"{task.title} is not in TFDS: name the folder of its files (task.path)")
        name = path.removeprefix(_TFDS) or task.tfds.name
        there = tfds.open_builder(path, name).info.splits  # none where it was not built, which reading it says
        splits = {split: theirs for split, theirs in task.tfds.splits.items() if not there or re.split(r"[\[+]", theirs)[0] in there}
        return {split: f"{_TFDS}{name}:{theirs}" for split, theirs in splits.items()}
    folders = [path, *(os.path.join(path, each) for each in task.folders)] if os.path.isdir(path) else [os.path.dirname(path)]
    for folder in folders:  # all of the task's files lie in one
        found = {}
        for split, names in task.files.items():
            candidates = [os.path.join(folder, name + ending) for name in names for ending in ("", *COMPRESSIONS)]
            if there := next(filter(os.path.exists, candidates), None):
                found[split] = there
        if found:
            return found
    return {}


def missing(config: TaskConfig, splits: Sequence[str] | None = None, flag: str = "--config.task.path") -> str:
    """One line that says which of the task's files are missing, in which folder, and where to get them, or for `tfds:` which data set was
    not built; "" if nothing is missing. Reads no file. splits: those whose files are needed; None: all of the task's. flag: by which the
    folder is named."""
    task = task_of(config)
    found = find(task, config.path) if config.path else {}
    if config.path.startswith(_TFDS):
        return _not_built(next(iter(found.values()), ""))
    names = [" or ".join(names) for split, names in task.files.items() if split not in found and (splits is None or split in splits)]
    if not names:
        return ""
    folder = os.path.dirname(config.path) or "." if os.path.isfile(config.path) else config.path or "the folder that task.path names"
    mend = f"put {'it' if len(names) == 1 else 'them'} there from {task.source}, name" if task.source else "name"
    other = f", or read the task from TFDS ({flag}={_TFDS})" if task.tfds else ""
    return f"{task.title}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not in {folder}: {mend} another place ({flag}){other}"


def _not_built(item: str) -> str:
    """TFDS's own message if no file of the data set exists, otherwise "". item: one of its splits, or ""."""
    if not item:
        return ""
    name, split, _ = tfds.parse(item)
    builder = tfds.open_builder(item, name)
    if builder.info.splits:
        return ""
    try:
        tfds.open_split(item, builder, name, split)
    except UserError as error:
        return str(error)
    return ""


def open_task(config: TaskConfig, splits: Sequence[str] | None = None) -> Opened:
    """Reads the task's examples.

    splits: those to read, all of which must be there. None: all that are there. A task that has a training set then needs it and its
      (first) dev set, and any other that the config names; if a user's own task has no dev file, a part of its training rows is held out.

    UserError names the missing files; or, if something in a file is wrong, the file, the line and how to mend it.
    """
    task = task_of(config)
    if not config.path:
        raise UserError(f"--config.task.path is missing: name the folder that holds {task.title}'s files")
    paths = find(task, config.path)
    known = list(task.tfds.splits if config.path.startswith(_TFDS) else task.files)
    first = [next((split for split in known if split.startswith(kind)), None) for kind in ("train", "dev")]
    named = [split for split in ("train", "dev", "test") if getattr(config, split)]
    needed = splits if splits is not None else list(dict.fromkeys([*(split for split in first if split), *named])) or known
    if unknown := [split for split in needed if split not in known]:
        raise UserError(f"{task.title} has no {unknown[0]} set: it has {', '.join(known)}")
    if absent := [split for split in needed if split not in paths]:
        raise UserError(
            missing(config, absent) or f"{config.path} has no split for {task.title}'s {absent[0]} set: name it (task.{absent[0]})"
        )
    notes = [line] if splits is None and (line := missing(config)) else []
    readings = {}
    for split in known if splits is None else splits:
        if split in paths:
            layout = task.layout_of(split)
            if config.path.startswith(_TFDS):
                layout = dataclasses.replace(task.tfds.layout, labelled=layout.labelled)
            readings[split] = read(paths[split], layout)
    examples = {split: _all_or_none(reading.examples, split, task.layout_of(split)) for split, reading in readings.items()}
    counts = {split: reading.counts for split, reading in readings.items()}
    for split in counts:
        told = {reason: count for reason, count in counts[split].items() if reason not in ("rows", "without a label")}
        notes += [f"{paths[split]}: {count:,} {reason}" for reason, count in told.items()]
    if splits is None:
        examples, lines = _with_dev(config, task, examples, paths)
        notes += lines
    for upload in task.uploads:
        if len(examples.get(upload.split, ())) not in (0, upload.rows):
            rows = len(examples[upload.split])
            notes.append(f"{paths[upload.split]} has {rows:,} rows, and GLUE's upload {upload.rows:,}: it is not the published test set")
    return Opened(_completed(task, examples), examples, counts, paths, notes)


def _with_dev(
    config: TaskConfig, task: Task, examples: dict[str, list[Example]], paths: Mapping[str, str]
) -> tuple[dict[str, list[Example]], list[str]]:
    """(the examples, with a dev set that is held out of the training rows if the config asks for it or there is no other; lines for a
    person)."""
    if "dev" in examples and config.dev_share != TaskConfig.dev_share:
        raise UserError(
            f"task.dev_share is for a task without a dev file, and {paths['dev']} is one: leave it out, or use task.dev_from_train"
        )
    lines = []
    if config.name == OWN and "dev" not in examples:
        train, dev = hold_out(examples["train"], config.dev_share, task.kind)
        examples = {**examples, "train": train, "dev": dev}
        lines.append(f"{paths['train']}: {len(dev):,} of its rows are held out as the dev set, for want of another (task.dev)")
    if config.dev_from_train:
        if "train" not in examples:
            raise UserError(f"{task.title} has no training set to hold a part of out: leave task.dev_from_train out")
        train, dev = hold_out(examples["train"], config.dev_from_train, task.kind, "dev_from_train")
        examples = {"train": train, "dev": dev}
        lines.append(f"{paths['train']}: {len(dev):,} of its rows are held out, and are the dev set (task.dev_from_train)")
    return examples, lines


# --- Labels


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


def _all_or_none(examples: list[Example], split: str, layout: Layout) -> list[Example]:
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


def _completed(task: Task, examples: Mapping[str, Sequence[Example]]) -> Task:
    """The task with the labels, tag scheme, range and answerability that follow from the examples."""
    changes, layout = {}, {}
    train = examples.get("train", ())
    file = train[0].where.rsplit(":", 1)[0] if train else ""
    if task.kind in ("class", "classes"):
        check_labels(examples, task.kind)
    if task.kind in ("class", "classes") and not task.labels:
        layout["labels"] = tuple(sorted({each for example in train for each in label_types(example, task.kind)}))
        number = len(layout["labels"])
        if train and not number:
            raise UserError(f"{file}: no row has a label: is {task.layout.label!r} their column (task.label_column)?")
        if number > max(20, len(train) // 2):
            raise UserError(
                f"{file} has {number:,} labels in {len(train):,} rows: is {task.layout.label!r} their column (task.label_column)? "
                "If they are right, list them (task.labels)"
            )
    separator = task.layout.separator
    if task.kind == "classes" and (both := [each for each in layout.get("labels", task.labels) if separator in each]):
        where = next((f"{example.where}: " for example in train if example.label and both[0] in example.label), "")
        raise UserError(
            f"{where}the label {both[0]!r} has {separator!r} in it, which stands between the labels of a row in predictions: "
            "choose another task.separator"
        )
    if task.kind == "class" and len(labels := {example.label for example in train}) == 1:
        raise UserError(f"{file} has the label {labels.pop()!r} alone: there is nothing to learn")
    if task.kind == "tags":
        check_labels(examples, task.kind)
        every = [example.label for each in examples.values() for example in each if example.label is not None]
        of_spans = task.layout.scheme != "tokens" and all(tag == "O" or _SPAN.match(tag) for tag in {tag for tags in every for tag in tags})
        layout["scheme"] = "iob2" if of_spans else "tokens"
        if not of_spans:
            changes["metrics"] = ("accuracy",)  # the others are of spans
        # The published code sorts the tags of all its files, BIOES where they are of spans (`tagging_tasks.py`, `_get_label_mapping`).
        layout["labels"] = tuple(sorted({tag for labels in every for tag in (tags.convert(labels, "bioes") if of_spans else labels)}))
        if train and len(layout["labels"]) == 1:
            raise UserError(f"{file} has the tag {layout['labels'][0]!r} alone: there is nothing to learn")
    if task.kind == "number" and not task.layout.range and train:
        low, high = min(example.label for example in train), max(example.label for example in train)
        if low == high:
            raise UserError(f"{file}: every number is {low:g}: there is nothing to learn")
        if high - low > WIDEST_RANGE:
            raise UserError(f"{file}: its numbers go from {low:g} to {high:g}, too far apart: write them on another scale")
        layout["range"] = (low, high)
    if task.kind == "answer":
        without = [example for each in examples.values() for example in each if example.label is not None and not example.label.texts]
        if without and task.name == "squad1":
            raise UserError(f"{without[0].where} has no answer, and SQuAD 1.1 has one for each question: is it 2.0? task.name=squad2")
        changes["unanswerable"] = task.unanswerable or bool(without)
    return dataclasses.replace(task, layout=dataclasses.replace(task.layout, **layout), **changes)


def hold_out(examples: Sequence[Example], share: float, kind: str, purpose: str = "") -> tuple[list[Example], list[Example]]:
    """(the rows that stay, the rows that are held out: about this share of the examples), each in the order of the file.

    A hash of a row's text decides (for an answer, of its context alone), so that equal texts are on one side, whatever else the file holds.
    A text stays if one of its labels would otherwise be missing among the rows that stay. `purpose` is part of what is hashed, so that the
    rows held out for one purpose are independent of those held out for another.
    """
    mend = "give a larger share (--config.task.dev_from_train)" if purpose else "name a dev file (--config.task.dev)"
    texts = [example.texts[1] if kind == "answer" else "\0".join(example.texts) for example in examples]
    chosen = {text for text in texts if is_heldout(document_hash(purpose + text), share)}
    seen = {each for example, text in zip(examples, texts, strict=True) if text not in chosen for each in label_types(example, kind)}
    chosen -= {text for example, text in zip(examples, texts, strict=True) if not seen.issuperset(label_types(example, kind))}
    kept = [example for example, text in zip(examples, texts, strict=True) if text not in chosen]
    held = [example for example, text in zip(examples, texts, strict=True) if text in chosen]
    if texts and not held and any(is_heldout(document_hash(purpose + text), share) for text in texts):
        raise UserError(
            "no row can be held out, because each of those chosen has a label that no other row has: is "
            f"task.label_column the labels' column? If it is, {mend}"
        )
    if not kept or not held:
        raise UserError(f"{len(examples)} rows are too few to hold out a share of {share} of them: {mend}")
    return kept, held
