"""Finds and reads a task's examples as its config says, and collects notes about them for the user."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from electra_jax.cli import UserError
from electra_jax.data.readers import tfds
from electra_jax.data.readers.compressions import COMPRESSIONS
from electra_jax.finetune import labels
from electra_jax.finetune.config import TaskConfig
from electra_jax.finetune.described import TFDS, task_of
from electra_jax.finetune.examples import Example
from electra_jax.finetune.holdout import with_dev
from electra_jax.finetune.readers import read
from electra_jax.finetune.tasks import Task


class Opened(NamedTuple):
    task: Task  # with all labels, and the range of a number
    examples: dict[str, list[Example]]  # split -> in the order of the file
    counts: dict[str, dict[str, int]]  # split -> readers.Reading.counts
    paths: dict[str, str]  # split -> the file
    notes: list[str]  # a line each: what was dropped, what is missing


def find(task: Task, path: str) -> dict[str, str]:
    """{split: its file} for the files that are there, in `path` or in the task's folder within it. For `tfds:`, {split: the item to
    read}."""
    if path.startswith(TFDS):
        if task.tfds is None:
            raise UserError(f"{task.title} is not in TFDS: name the folder of its files (task.path)")
        name = path.removeprefix(TFDS) or task.tfds.name
        there = tfds.open_builder(path, name).info.splits  # none where it was not built, which reading it says
        splits = {split: theirs for split, theirs in task.tfds.splits.items() if not there or re.split(r"[\[+]", theirs)[0] in there}
        return {split: f"{TFDS}{name}:{theirs}" for split, theirs in splits.items()}
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
    if config.path.startswith(TFDS):
        return _not_built(next(iter(found.values()), ""))
    names = [" or ".join(names) for split, names in task.files.items() if split not in found and (splits is None or split in splits)]
    if not names:
        return ""
    folder = os.path.dirname(config.path) or "." if os.path.isfile(config.path) else config.path or "the folder that task.path names"
    mend = f"put {'it' if len(names) == 1 else 'them'} there from {task.source}, name" if task.source else "name"
    other = f", or read the task from TFDS ({flag}={TFDS})" if task.tfds else ""
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
    known = list(task.tfds.splits if config.path.startswith(TFDS) else task.files)
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
            if config.path.startswith(TFDS):
                layout = dataclasses.replace(task.tfds.layout, labelled=layout.labelled)
            readings[split] = read(paths[split], layout)
    examples = {split: labels.all_or_none(reading.examples, split, task.layout_of(split)) for split, reading in readings.items()}
    counts = {split: reading.counts for split, reading in readings.items()}
    for split in counts:
        told = {reason: count for reason, count in counts[split].items() if reason not in ("rows", "without a label")}
        notes += [f"{paths[split]}: {count:,} {reason}" for reason, count in told.items()]
    if splits is None:
        examples, lines = with_dev(config, task, examples, paths)
        notes += lines
    for upload in task.uploads:
        if len(examples.get(upload.split, ())) not in (0, upload.rows):
            rows = len(examples[upload.split])
            notes.append(f"{paths[upload.split]} has {rows:,} rows, and GLUE's upload {upload.rows:,}: it is not the published test set")
    return Opened(labels.completed(task, examples), examples, counts, paths, notes)
