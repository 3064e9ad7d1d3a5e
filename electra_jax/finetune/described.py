"""The task that a config names or describes: which files it has and how each is laid out."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from electra_jax.cli import UserError
from electra_jax.data.readers import tfds
from electra_jax.data.readers.compressions import COMPRESSIONS
from electra_jax.finetune.config import TaskConfig
from electra_jax.finetune.readers import ENDINGS, ONE_KIND, format_of
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.tasks import OWN, TASKS, Task, Tfds

TFDS = "tfds:"  # with which task.path begins where a task is read from TFDS
# The names, without endings, that a user's files may have if the config gives none.
_STEMS = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}


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
    if config.path.startswith(TFDS):
        name = config.path.removeprefix(TFDS)
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
