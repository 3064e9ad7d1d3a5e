"""Predictions of a split, in the formats that official scorers and upload sites take.

class, number    the file that GLUE's site takes (gluebenchmark.com: `index<TAB>prediction`, by index), or else SPLIT.tsv with the rows' IDs
classes          SPLIT.tsv, the labels joined by the task's separator
tags             SPLIT.conll: word, gold tag if the file has one, predicted tag (white space in them is _); a blank line after each
                 sentence
answer           SPLIT.json: {question ID: text}, and SPLIT.nbest.json; if some questions have no answer (SQuAD 2.0), also
                 SPLIT.null.json: {question ID: no-answer score}
"""

import json
import pathlib
import re
import zipfile
from collections.abc import Iterable, Sequence

from electra_jax.files import whole_file, write_whole
from electra_jax.finetune.examples import Example
from electra_jax.finetune.tasks import Task


def write(folder: pathlib.Path, task: Task, split: str, examples: Sequence[Example], predictions: Sequence) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(examples, predictions, strict=True))
    if task.kind == "tags":
        lines = []
        for example, each in pairs:
            columns = [example.texts, *([example.label] if example.label is not None else []), each.value]
            lines += [" ".join(re.sub(r"\s", "_", field) for field in fields) for fields in zip(*columns, strict=True)] + [""]
        write_whole(folder / f"{split}.conll", "\n".join(lines) + "\n")
    elif task.kind == "answer":
        write_whole(folder / f"{split}.json", _json({example.id: each.value for example, each in pairs}))
        nbest = {example.id: [entry._asdict() for entry in each.more.nbest] for example, each in pairs}
        write_whole(folder / f"{split}.nbest.json", _json(nbest))
        if task.unanswerable:
            write_whole(folder / f"{split}.null.json", _json({example.id: each.more.null_score for example, each in pairs}))
    else:
        uploads = {upload.split: upload for upload in task.uploads}
        upload = uploads.get(split)
        header = ("index" if upload else "id", "prediction")
        ids = _places(examples) if upload else [example.id for example in examples]
        rows = [(_one_line(str(id_)), _one_line(_text(task, each.value))) for id_, each in zip(ids, predictions, strict=True)]
        if upload:
            rows.sort(key=lambda row: int(row[0]))
        text = "".join("\t".join(row) + "\n" for row in [header, *rows])
        write_whole(folder / (upload.file if upload else f"{split}.tsv"), text)


def _places(examples: Sequence[Example]) -> list[int]:
    """The place of each row in GLUE's test file: its ID if the IDs are 0, 1, 2 ..., because TFDS shuffles the rows; otherwise its place
    here."""
    numbers = [int(example.id) if example.id.isdecimal() else -1 for example in examples]
    return numbers if sorted(numbers) == list(range(len(examples))) else list(range(len(examples)))


def _text(task: Task, value) -> str:
    if task.kind == "number":
        if not task.uploads:
            return f"{value:.6g}"  # what float32 can tell
        low, high = task.layout.range
        return f"{min(max(value, low), high):.3f}"
    return task.layout.separator.join(value) if task.kind == "classes" else value


def _one_line(text: str) -> str:
    return " ".join(text.replace("\t", "\n").splitlines())


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def zip_files(paths: Iterable[pathlib.Path], target: pathlib.Path) -> None:
    """One archive of these files without their folders, as GLUE's site asks for (`zip -j -D`)."""
    with whole_file(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(paths):
            # Without the files' times, so that equal predictions make equal archives.
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
