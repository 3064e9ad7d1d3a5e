"""Tasks: their published settings, what a config makes of them, their files found and read, and the counts of the real ones."""

import dataclasses
import json
import lzma
import math
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from electra_jax.cli import UserError
from electra_jax.finetune import described, holdout, opening, outputs, readers, tags
from electra_jax.finetune.config import TaskConfig
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.rows import Prediction
from electra_jax.finetune.tasks import TASKS
from electra_jax.options import help_lines, names, parse


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return str(folder / name)


def own(path, **options):
    return TaskConfig(path=str(path), **options)


def refused(says, function, *arguments, **options):
    with pytest.raises(UserError, match=says) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)


# --- What is published


def test_published_settings():
    """google-research/electra configure_finetuning.py and classification_tasks.py; GLUE's upload."""
    assert list(TASKS) == (
        ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax", "squad1", "squad2"]
        + ["conll2003", "conll2000", "ud", "wnut17"]
    )
    assert {name: task.epochs for name, task in TASKS.items() if task.epochs != 3} == {"rte": 10, "stsb": 10, "squad1": 2, "squad2": 2}
    assert {name: task.length for name, task in TASKS.items() if task.length != 128} == {"squad1": 512, "squad2": 512, "conll2000": 256}
    assert [name for name, task in TASKS.items() if task.both_orders] == ["mrpc", "stsb"]
    assert TASKS["mnli"].labels == TASKS["ax"].labels == ("contradiction", "entailment", "neutral")
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert all(TASKS[name].labels == ("0", "1") for name in ("cola", "sst2", "mrpc", "qqp", "wnli"))
    assert TASKS["stsb"].kind == "number" and TASKS["stsb"].layout.range == (0.0, 5.0)
    headlines = {name: task.headline for name, task in TASKS.items() if task.headline != "accuracy"}
    spans = dict.fromkeys(("squad1", "squad2", "conll2003", "conll2000", "wnut17"), "f1")
    assert headlines == {"cola": "matthews", "stsb": "spearman", "ax": "matthews"} | spans
    assert TASKS["mrpc"].metrics == TASKS["qqp"].metrics == ("accuracy", "f1")
    assert set(TASKS["stsb"].metrics) == {"spearman", "pearson"} and set(TASKS["squad2"].metrics) == {"f1", "exact"}
    assert [name for name, task in TASKS.items() if task.unanswerable] == ["squad2"]


def test_glues_eleven_files():
    uploads = [upload for task in TASKS.values() for upload in task.uploads]
    assert {upload.file.removesuffix(".tsv"): upload.rows for upload in uploads} == {
        "AX": 1104,
        "CoLA": 1063,
        "MNLI-m": 9796,
        "MNLI-mm": 9847,
        "MRPC": 1725,
        "QNLI": 5463,
        "QQP": 390965,
        "RTE": 3000,
        "SST-2": 1821,
        "STS-B": 1379,
        "WNLI": 146,
    }
    assert all(upload.file.endswith(".tsv") for upload in uploads)
    for task in TASKS.values():
        assert {upload.split for upload in task.uploads} <= set(task.files)
        assert task.tfds is None or set(task.tfds.splits) <= set(task.files)


def test_an_upload_is_in_the_order_of_its_index(tmp_path):
    """TFDS shuffles a split's rows as it builds it; the idx of each is its place in GLUE's file."""
    predictions = [Prediction(value, 1.0) for value in ("0", "1", "1")]
    examples = [Example(id_, ("a",), None, "") for id_ in ("2", "0", "1")]
    outputs.write(tmp_path, TASKS["cola"], "test", examples, predictions)
    assert (tmp_path / "CoLA.tsv").read_text() == "index\tprediction\n0\t1\n1\t1\n2\t0\n"
    for ids in (("7", "8", "9"), ("0", "0", "1"), ("a", "b", "c")):  # no places: the rows' order is all that there is
        outputs.write(tmp_path, TASKS["cola"], "test", [Example(id_, ("a",), None, "") for id_ in ids], predictions)
        assert (tmp_path / "CoLA.tsv").read_text() == "index\tprediction\n0\t0\n1\t1\n2\t1\n"


def test_numbers_are_clipped_for_an_upload_alone(tmp_path):
    """A user's may be of any size, and what was scored is what is written."""
    ours = dataclasses.replace(TASKS["stsb"], uploads=(), layout=dataclasses.replace(TASKS["stsb"].layout, range=(0.001, 0.002)))
    examples, found = [Example(id_, ("a", "b"), None, "") for id_ in ("0", "1")], [Prediction(x, None) for x in (0.00123456, 5.5)]
    outputs.write(tmp_path, ours, "test", examples, found)
    assert (tmp_path / "test.tsv").read_text() == "id\tprediction\n0\t0.00123456\n1\t5.5\n"
    outputs.write(tmp_path, TASKS["stsb"], "test", examples, found)
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.001\n1\t5.000\n"


def test_white_space_breaks_no_line_of_predictions(tmp_path):
    task = dataclasses.replace(TASKS["sst2"], uploads=())
    outputs.write(tmp_path, task, "test", [Example("a\tb", ("a",), None, "")], [Prediction("so\nso", 1.0)])
    assert (tmp_path / "test.tsv").read_text() == "id\tprediction\na b\tso so\n"
    outputs.write(
        tmp_path, TASKS["ud"], "dev", [Example("a", ("10 000", "a\nb"), ("NUM", "X"), "")], [Prediction(("NUM", "X"), (1.0, 1.0))]
    )
    assert (tmp_path / "dev.conll").read_text() == "10_000 NUM NUM\na_b X X\n\n"


def test_white_space_in_words_and_tags_parts_no_columns(tmp_path):
    """conlleval refuses a line with another number of columns."""
    task = TASKS["ud"]
    outputs.write(tmp_path, task, "dev", [Example("0", ("2 000",), ("proper noun",), "")], [Prediction(("a\u00a0noun",), (1.0,))])
    assert (tmp_path / "dev.conll").read_text() == "2_000 proper_noun a_noun\n\n"


# --- A config


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "colla"}, "task.name is 'colla'.*did you mean 'cola'"),
        ({"kind": "klass"}, "task.kind.*did you mean 'class'"),
        ({"format": "xlsx"}, "task.format is 'xlsx'"),
        ({"tag_scheme": "bio", "kind": "tags"}, "task.tag_scheme"),
        ({"bad_rows": "skip"}, "task.bad_rows is 'skip'"),
        ({"dev_share": 1.0}, "task.dev_share is 1.0"),
        ({"text_columns": ("a", "b", "c")}, "task.text_columns.*it names 1 or 2"),
        ({"text_columns": ("a", "b"), "kind": "tags"}, "it names 1$"),
        ({"text_columns": ("a",), "kind": "answer"}, "it names 2$"),
        ({"text_columns": (1,)}, "a tuple of texts"),
        ({"labels": ("a", "a")}, "each label once"),
        ({"label_range": (5, 0), "kind": "number"}, "task.label_range"),
        ({"label_range": (0, 5)}, "task.label_range is for task.kind=number, and this is class"),
        ({"label_range": (0, math.inf), "kind": "number"}, "task.label_range"),
        ({"delimiter": ";;"}, "one character"),
        ({"delimiter": "\n"}, "one character, and no line end or quote"),
        ({"separator": "", "kind": "classes"}, "task.separator is empty"),
        ({"separator": ";"}, "task.separator is for task.kind=classes"),
        ({"labels": ("a",), "kind": "tags"}, "task.labels is for task.kind=class or classes"),
        ({"lenient_tags": True}, "task.lenient_tags is for task.kind=tags"),
        ({"start_column": "at"}, "task.start_column is for task.kind=answer"),
        ({"name": "cola", "kind": "number"}, "task.kind describes a task of yours .*cola has its own"),
        ({"name": "cola", "label_column": "x"}, "task.label_column describes a task of yours"),
        ({"name": "cola", "lenient_tags": True}, "task.lenient_tags is for task.kind=tags, and this is class"),
    ],
)
def test_a_config_is_checked(values, says):
    refused(says, parse, TaskConfig, values, "task")


def test_a_config_reads_as_the_others_do():
    assert parse(TaskConfig, {"text_columns": ["a", "b"]}, "task").text_columns == ("a", "b")
    assert len(help_lines(TaskConfig, "task")) == len(names(TaskConfig)) == len(dataclasses.fields(TaskConfig))


def test_a_named_task_with_other_files_and_columns(tmp_path):
    put(tmp_path, "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    put(tmp_path, "more.tsv.gz", "")
    put(tmp_path, "mine.tsv", "index\tsentence1\tsentence2\tlabel\n5\tc\td\tnot_entailment\n6\tc\te\tentailment\n")
    opened = opening.open_task(TaskConfig(name="rte", path=str(tmp_path), train="mine.tsv"))
    assert [example.id for example in opened.examples["train"]] == ["5", "6"] and opened.paths["train"].endswith("mine.tsv")
    task = described.task_of(TaskConfig(name="mnli", path=str(tmp_path), dev="x.tsv"))
    assert task.files["dev"] == ("x.tsv",) and not {"dev_matched", "dev_mismatched"} & set(task.files) and "test_matched" in task.files
    assert described.task_of(TaskConfig(name="ud", label_column="xpos")).layout.label == "xpos"
    task = described.task_of(TaskConfig(name="conll2003", lenient_tags=True, tag_scheme="iob1"))
    assert (task.layout.lenient, task.layout.scheme, task.tfds.layout.lenient) == (True, "iob1", True)
    assert not described.task_of(TaskConfig(name="qqp", bad_rows="refuse")).layout_of("train").drop
    assert described.task_of(TaskConfig(name="cola", bad_rows="drop")).layout_of("test").drop


# --- A task of a user's

REVIEWS = "text,label\n" + "".join(f"film {n} was {'good' if n % 3 else 'bad'},{'pos' if n % 3 else 'neg'}\n" for n in range(60))


def test_one_file_is_enough(tmp_path):
    path = put(tmp_path, "reviews.csv", REVIEWS)
    opened = opening.open_task(own(path, dev_share=0.25))
    assert opened.task.labels == ("neg", "pos") and opened.task.title == "reviews.csv" and opened.task.metrics == ("accuracy",)
    train, dev = opened.examples["train"], opened.examples["dev"]
    assert len(train) + len(dev) == 60 and 5 < len(dev) < 25
    assert opened.counts == {"train": {"rows": 60}} and f"{len(dev)} of its rows are held out" in opened.notes[0]
    again = put(tmp_path, "again.csv", REVIEWS.replace("\nfilm 3 ", "\nfilm 0 was bad,neg\nfilm 3 ", 1))  # another row moves none
    assert [each.texts for each in dev] == [each.texts for each in opening.open_task(own(again, dev_share=0.25)).examples["dev"]][
        : len(dev)
    ]


def test_equal_texts_are_held_out_together_and_no_label_is_lost():
    copies = [Example(str(n), (f"text {n // 4}", "b"), "x" if n < 399 else "rare", "") for n in range(400)]
    kept, held = holdout.hold_out(copies, 0.2, "class")
    assert not {each.texts for each in kept} & {each.texts for each in held if each.label == "x"} and 40 < len(held) < 120
    assert [int(each.id) for each in kept] == sorted(int(each.id) for each in kept)
    for n in range(40):  # wherever its text falls
        example = Example("r", (f"rare {n}", "b"), "one", "")
        assert example in holdout.hold_out([*copies, example], 0.5, "class")[0]
    questions = [Example(str(n), (f"question {n}", f"context {n // 4}"), Answers((), ()), "") for n in range(400)]
    kept, held = holdout.hold_out(questions, 0.2, "answer")
    assert held and not {each.texts[1] for each in kept} & {each.texts[1] for each in held}
    refused("too few to hold out", holdout.hold_out, copies[:1], 0.1, "class")


def test_settings_are_chosen_without_the_dev_set(tmp_path):
    """With dev_from_train neither the true dev set nor a test set is read into the run, and the split is another than dev_share's."""
    put(tmp_path, "train.csv", REVIEWS)
    put(tmp_path, "dev.csv", "text,label\nunseen,pos\n")
    opened = opening.open_task(own(tmp_path, dev_from_train=0.25))
    train, dev = opened.examples["train"], opened.examples["dev"]
    assert set(opened.examples) == {"train", "dev"} and len(train) + len(dev) == 60 and 5 < len(dev) < 25
    assert "unseen" not in {text for each in (*train, *dev) for text in each.texts}
    assert f"{len(dev)} of its rows are held out, and are the dev set" in opened.notes[-1]
    (tmp_path / "dev.csv").unlink()
    for_dev = opening.open_task(own(tmp_path, dev_share=0.25)).examples["dev"]
    rest = opening.open_task(own(tmp_path, dev_share=0.25, dev_from_train=0.25)).examples
    assert rest["dev"] and not {each.texts for each in for_dev} & {each.texts for each in (*rest["train"], *rest["dev"])}


def test_a_folder_of_files_by_their_usual_names(tmp_path):
    put(tmp_path, "train.csv", REVIEWS)
    put(tmp_path, "valid.jsonl", json.dumps({"text": "x", "label": "pos"}))
    put(tmp_path, "test.tsv", "text\nwhat now\n")
    opened = opening.open_task(own(tmp_path))
    assert {split: len(each) for split, each in opened.examples.items()} == {"train": 60, "dev": 1, "test": 1}
    assert opened.examples["test"][0].label is None
    put(tmp_path, "dev.csv", REVIEWS)
    refused("has dev.csv, valid.jsonl: name the one that is meant", opening.open_task, own(tmp_path))
    assert len(opening.open_task(own(tmp_path, dev="dev.csv")).examples["dev"]) == 60


def test_formats_and_kinds_of_a_users_files(tmp_path):
    path = put(tmp_path, "ner.conll", "Jo B-PER\nran O\n\nLi B-PER\nsat O\n")
    refused("holds tags, and task.kind is class: say task.kind=tags", opening.open_task, own(path))
    opened = opening.open_task(own(tmp_path, train="ner.conll", dev="ner.conll", kind="tags"))
    assert opened.task.labels == ("O", "S-PER") and opened.task.of_spans and opened.task.headline == "f1"
    path = put(tmp_path, "pos.txt", "1 Jo NNP\n2 ran VBD\n\n1 Li NNP\n")
    opened = opening.open_task(own(path, kind="tags", text_columns=("1",), label_column="2"), ["train"])
    assert opened.task.labels == ("NNP", "VBD") and not opened.task.of_spans
    assert opened.task.metrics == ("accuracy",)  # the only one that is measured where there are no spans
    path = put(tmp_path, "tagged.conll", "Jo B-PER\n\nLi I-PER\n")  # tags of words alone, whatever they look like
    opened = opening.open_task(own(path, kind="tags", tag_scheme="tokens"), ["train"])
    assert opened.task.labels == ("B-PER", "I-PER") and not opened.task.of_spans
    path = put(tmp_path, "rated.csv", "text,score\na,3\nb,9\n")
    opened = opening.open_task(own(path, kind="number", label_column="score"), ["train"])
    assert opened.task.layout.range == (3.0, 9.0)
    assert opening.open_task(own(path, kind="number", label_column="score", label_range=(0, 10)), ["train"]).task.layout.range == (0, 10)
    path = put(tmp_path, "topics.csv", "text,label\na,x|y\nb,\nc,z\n")
    opened = opening.open_task(own(path, kind="classes", separator="|"), ["train"])
    assert opened.task.labels == ("x", "y", "z") and opened.task.headline == "micro_f1"
    path = put(tmp_path, "cells.csv", 'text,label\na,"B-cell,T-cell"\nb,I-beam\n')  # classes, whatever tags look like
    assert opening.open_task(own(path, kind="classes"), ["train"]).task.labels == ("B-cell", "I-beam", "T-cell")
    path = put(tmp_path, "bare.tsv", "a\tb\tx\nc\td\ty\n")
    opened = opening.open_task(own(path, header=False, text_columns=("0", "1")), ["train"])
    assert [each.texts for each in opened.examples["train"]] == [("a", "b"), ("c", "d")] and opened.task.labels == ("x", "y")
    opened = opening.open_task(own(put(tmp_path, "data.tab", "text\tlabel\na\tx\nb\ty\n"), format="tsv", labels=("y", "x")), ["train"])
    assert opened.task.labels == ("y", "x")
    rows = [{"question": "Who?", "context": "Jo ran.", "answers": answer} for answer in ("Jo", "")]
    path = put(tmp_path, "qa.jsonl", "\n".join(map(json.dumps, rows)))
    assert opening.open_task(own(path, kind="answer"), ["train"]).task.unanswerable


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({}, {"path": ""}, "--config.task.path is missing"),
        ({}, {}, "no file train.csv, .tsv, .jsonl"),
        ({"train.csv": REVIEWS}, {"dev": "nothing.csv"}, "nothing.csv is not in .*: name another place"),
        ({"train.csv": REVIEWS}, {"test": "nothing.csv"}, "nothing.csv is not in .*: name another place"),
        ({"data.xlsx": ""}, {"train": "data.xlsx"}, "data.xlsx: its ending tells no format .*task.format"),
        ({"train.csv": "text,label\na,x\nb,x\n"}, {"dev": "train.csv"}, "train.csv has the label 'x' alone: there is nothing to learn"),
        (
            {"train.csv": "text,label\na,x\nb,x\n"},
            {"dev": "train.csv", "labels": ("x",)},
            "train.csv has the label 'x' alone: there is nothing to learn",
        ),
        ({"train.csv": "text,label\na,\nb,\n"}, {"dev": "train.csv", "kind": "classes"}, "train.csv: no row has a label: is 'label' their"),
        ({"train.csv": "text,label\na,1\nb,1\n"}, {"dev": "train.csv", "kind": "number"}, "train.csv: every number is 1"),
        (
            {"train.csv": "text,label,number\n" + "".join(f"a{i},x,{i}\n" for i in range(60))},
            {"label_column": "number", "dev": "train.csv"},
            "train.csv has 60 labels in 60 rows: is 'number' their column .*? If they are right, list them .task.labels",
        ),
        ({"train.csv": REVIEWS}, {"label_column": "text"}, "task.label_column is 'text', which is also among task.text_columns"),
        (
            {"train.csv": REVIEWS},
            {"text_columns": ("text", "label")},
            "task.label_column is 'label', which is also among task.text_columns",
        ),
        (
            {"train.csv": "text,label\n" + "".join(f"a{i},x{i}\n" for i in range(60))},
            {},
            "no row can be held out, because each of those chosen has a label that no other row has: is task.label_column the .*task.dev",
        ),
        (
            {"train.csv": "text,label\na,x\nb,y\nc,x\nd,y\n"},
            {"header": False, "dev": "train.csv"},
            "train.csv:1: no other row has its label 'label': if the line is a header, .*task.header=True.*otherwise list .*task.labels",
        ),
        (
            {"train.csv": 'text,label\na,"x,y"\nb,y\nc,x\nd,\n'},
            {"header": False, "dev": "train.csv", "kind": "classes"},
            "train.csv:1: no other row has its label 'label'",
        ),
        (
            {"train.csv": "text,label\na,caf\u00e9\nb,x\nc,cafe\u0301\n"},
            {"dev": "train.csv"},
            r"train.csv:4: the label 'cafe.u0301' looks like 'caf.xe9' of .*train.csv:2, and has other characters .*: write both alike",
        ),
        (
            {"train.conll": "a O\nb O\n\nc O\n"},
            {"dev": "train.conll", "kind": "tags"},
            "train.conll has the tag 'O' alone: there is nothing",
        ),
        (
            {"train.jsonl": '{"text": "a", "label": ["x, y", "z"]}\n{"text": "b", "label": []}\n'},
            {"dev": "train.jsonl", "kind": "classes"},
            "train.jsonl:1: the label 'x, y' has ',' in it, .*: choose another task.separator",
        ),
        ({}, {"path": "onw.csv"}, "onw.csv: there is no such file or folder: name your file"),
        ({"a.csv": REVIEWS}, {"path": "a.csv", "test": "b.csv"}, r"b.csv is not in \S*(?<!csv): name another place"),
        ({"train.parquet.gz": ""}, {"dev": "train.parquet.gz"}, "a .parquet file is compressed within, .*: decompress it"),
        (
            {"train.csv": "text,label\na,1e308\nb,-1e308\n"},
            {"dev": "train.csv", "kind": "number"},
            r"train.csv: its numbers go from -1e.308 to 1e.308, too far apart: write them on another scale",
        ),
        (
            {"train.csv": "text,label\na,1\nb,2\n"},
            {"dev": "train.csv", "kind": "number", "header": False},
            "train.csv:1: '-1' is 'label', which is no number: if the line is a header, say task.header=True",
        ),
        (
            {"train.conll": "word pos\na N\nb V\n\nc N\nd V\n"},
            {"dev": "train.conll", "kind": "tags"},
            "train.conll:1: no other word has its label 'pos': if the line is a header, delete it; otherwise .*task.tag_scheme=tokens",
        ),
        ({"train.json": "[]"}, {}, "the format squad holds answer, .*task.kind=answer, or of JSON lines task.format=jsonl"),
        (
            {"train.csv": REVIEWS, "dev.csv": REVIEWS},
            {"dev_share": 0.2},
            "task.dev_share is for a task without a dev file, and .*dev.csv is",
        ),
        (
            {"train.csv": REVIEWS, "b.csv": REVIEWS},
            {"path": "b.csv", "train": "train.csv"},
            "task.path names the file b.csv, and task.train",
        ),
        ({"train.jsonl": "{}"}, {"delimiter": ";"}, "task.delimiter is for csv, tsv, and this file is jsonl"),
        ({"train.conll": "a O"}, {"kind": "tags", "bad_rows": "drop"}, "task.bad_rows is for .*, and this file is columns"),
        ({"train.csv": REVIEWS, "dev.csv": "text,label\na,pos\nb,good\n"}, {}, "dev.csv:3: the dev set has the label 'good', which no row"),
        ({"train.csv": REVIEWS, "dev.csv": "text,label\na,good\n"}, {"labels": ("pos", "neg")}, "dev.csv:2: the label 'good' is none of"),
        (
            {"train.csv": REVIEWS, "dev.csv": "text,label\na,fair\n"},
            {"labels": ("pos", "neg", "fair")},
            "dev.csv:2: the dev set has the label 'fair', which no row",
        ),
        ({"train.conll": "a B-X\nb O\n", "dev.conll": "a O\n\nb B-Y\n"}, {"kind": "tags"}, "dev.conll:3: the dev set has the label 'Y'"),
    ],
)
def test_what_is_wrong_with_a_users_task(tmp_path, files, options, says):
    for name, content in files.items():
        put(tmp_path, name, content)
    path = str(tmp_path / options.pop("path")) if options.get("path") else options.pop("path", str(tmp_path))
    refused(says, opening.open_task, TaskConfig(path=path, **options))


def test_a_first_row_may_have_a_label_of_its_own(tmp_path):
    """In a file without a header, where it could be the header: if other labels occur once as well, or if all labels are listed."""
    path = put(tmp_path, "train.csv", "a,x\nb,y\nc,z\n")
    assert opening.open_task(own(path, header=False, dev="train.csv")).task.labels == ("x", "y", "z")
    path = put(tmp_path, "train.csv", "a,x\nb,y\nc,y\n")
    assert opening.open_task(own(path, header=False, dev="train.csv", labels=("x", "y"))).examples["train"][0].label == "x"


def test_rows_without_an_answer_or_a_class_are_told(tmp_path):
    """One empty cell makes SQuAD 2.0 of a task, with a threshold and other scores."""
    rows = [{"question": "Who?", "context": f"Jo ran {n}.", "answers": "Jo" if n else "", "label": ["x"] if n else []} for n in range(3)]
    path = put(tmp_path, "train.jsonl", "\n".join(map(json.dumps, rows)))
    for options, reason in (({"kind": "answer"}, "unanswerable"), ({"kind": "classes", "text_columns": ("context",)}, "without any class")):
        opened = opening.open_task(own(path, dev="train.jsonl", **options))
        assert opened.counts["train"][reason] == 1 and f"{path}: 1 {reason}" in opened.notes


def test_a_test_set_has_all_its_labels_or_none(tmp_path):
    """It is scored if it has them. Of several classes, and of answers, an empty cell beside others is a label."""
    put(tmp_path, "train.csv", "text,label\na,x\nb,y\n")
    put(tmp_path, "dev.csv", "text,label\na,x\n")
    for rows in ("a,x\nb,\n", "b,\na,x\n"):
        put(tmp_path, "test.csv", f"text,label\n{rows}")
        line = 2 + rows.split().index("b,")
        refused(
            f"test.csv:{line} has no label, and other rows of the test set have one: label all of them", opening.open_task, own(tmp_path)
        )
        labels = {each.texts[0]: each.label for each in opening.open_task(own(tmp_path, kind="classes")).examples["test"]}
        assert labels == {"a": ("x",), "b": ()}
    put(tmp_path, "test.csv", "text,label\na,\nb,\n")
    for kind in ("class", "classes"):
        assert [each.label for each in opening.open_task(own(tmp_path, kind=kind)).examples["test"]] == [None, None]
    rows = [{"question": "Who?", "context": "Jo ran.", "answers": answer} for answer in ("Jo", "")]
    for split in ("train", "dev", "test"):
        put(tmp_path / "qa", f"{split}.jsonl", "\n".join(map(json.dumps, rows)))
    opened = opening.open_task(own(tmp_path / "qa", kind="answer"))
    assert [each.label.texts for each in opened.examples["test"]] == [("Jo",), ()]
    qas = [{"id": "a", "question": "Who?", "answers": [{"text": "Jo", "answer_start": 0}]}, {"id": "b", "question": "Who?"}]
    put(tmp_path / "qa", "mixed.json", json.dumps({"data": [{"paragraphs": [{"context": "Jo ran.", "qas": qas}]}]}))
    refused("mixed.json: question b has no label", opening.open_task, own(tmp_path / "qa", kind="answer", test="mixed.json"))


def test_a_type_that_train_has_only_begun_is_no_new_label(tmp_path):
    """conll2000's test set has an I-LST, and its training set B-LST alone."""
    put(tmp_path, "train.conll", "a B-X\nb O\n")
    put(tmp_path, "dev.conll", "a B-X\nb I-X\n")
    assert opening.open_task(own(tmp_path, kind="tags")).task.labels == ("B-X", "E-X", "O", "S-X")


# --- Files


def test_missing_files_are_named(tmp_path):
    path = tmp_path / "glue"
    path.mkdir()
    refused(
        "MNLI: train.tsv, dev_matched.tsv are not in .*glue: put them there from gluebenchmark.com/tasks.*tfds:",
        opening.open_task,
        TaskConfig("mnli", str(path)),
    )
    row = "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n1\tc\td\tentailment\n"
    for split in ("train", "dev_matched", "dev_mismatched"):
        put(path / "MNLI", f"{split}.tsv", row)
    opened = opening.open_task(TaskConfig("mnli", str(path)))
    assert list(opened.examples) == ["train", "dev_matched", "dev_mismatched"]
    assert len(opened.notes) == 1 and "test_matched.tsv, test_mismatched.tsv, diagnostic.tsv or ../" in opened.notes[0]
    for place in ("AX/AX.tsv", "diagnostic/diagnostic.tsv", "MNLI/diagnostic.tsv"):  # as either download has it, and as published
        (path / place).parent.mkdir(exist_ok=True)
        put(path, place, "index\tsentence1\tsentence2\n0\ta\tb\n")
        opened = opening.open_task(TaskConfig("mnli", str(path)))
        assert opened.paths["test_diagnostic"].endswith(place.split("/")[-1]) and len(opened.examples["test_diagnostic"]) == 1
        (path / place).unlink()
    assert opening.missing(TaskConfig("mnli", str(path)), ["train"]) == ""
    refused("test_matched.tsv is not in", opening.open_task, TaskConfig("mnli", str(path)), ["test_matched"])
    refused("MNLI has no dev set: it has train, dev_matched", opening.open_task, TaskConfig("mnli", str(path)), ["dev"])
    refused("WNUT-17 is not in TFDS", opening.open_task, TaskConfig("wnut17", "tfds:"))
    refused("task.path is missing: .*CoLA", opening.open_task, TaskConfig("cola"))
    refused("AX: diagnostic.tsv or AX.tsv is not in", opening.open_task, TaskConfig("ax", str(path)))
    put(path / "mnli", "diagnostic.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n")  # where the published code wants it
    opened = opening.open_task(TaskConfig("ax", str(path)))
    assert list(opened.examples) == ["test"] and "has 1 rows, and GLUE's upload 1,104" in opened.notes[0]
    refused(
        "AX has no training set to hold a part of out.*dev_from_train", opening.open_task, TaskConfig("ax", str(path), dev_from_train=0.1)
    )


def test_all_files_of_a_task_lie_in_one_folder(tmp_path):
    row = "sentence\tlabel\n{0}\t0\n{0}\t1\n"
    put(tmp_path, "train.tsv", row.format("above"))
    for split in ("train", "dev"):
        put(tmp_path / "SST-2", f"{split}.tsv", row.format("below"))
    refused("SST-2: dev.tsv is not in", opening.open_task, TaskConfig("sst2", str(tmp_path)))
    assert opening.open_task(TaskConfig("sst2", str(tmp_path / "SST-2"))).examples["train"][0].texts == ("below",)


def test_squad1_has_an_answer_to_each_question(tmp_path):
    qas = [{"id": "a", "question": "Who?", "answers": [], "is_impossible": True}]
    content = json.dumps({"data": [{"paragraphs": [{"context": "Jo ran.", "qas": qas}]}]})
    for split in ("train", "dev"):
        put(tmp_path, f"{split}.json", content)
    refused("question a has no answer, and SQuAD 1.1 has one.*task.name=squad2", opening.open_task, TaskConfig("squad1", str(tmp_path)))
    assert opening.open_task(TaskConfig("squad2", str(tmp_path))).counts["dev"] == {"rows": 1, "unanswerable": 1}


def test_through_tfds(tmp_path):
    """A user's data set with the usual splits; the readers' tests have the published ones."""
    import numpy as np
    import tensorflow_datasets as tfds

    class UsersTask(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["b", "a"]), "n": np.int32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation")}

        def _generate_examples(self, split):
            for n in range(4):
                yield n, {"text": f"{split} {n}", "label": n % 2, "n": n}

    UsersTask(file_format="array_record", data_dir=tmp_path).download_and_prepare()
    tfds.core.add_data_dir(tmp_path)
    opened = opening.open_task(own("tfds:users_task"))
    assert {split: len(each) for split, each in opened.examples.items()} == {"train": 4, "dev": 4} and opened.task.labels == ("a", "b")
    opened = opening.open_task(own("tfds:users_task", train="train[:50%]", id_column="n"), ["train"])
    assert {each.texts[0][-1] for each in opened.examples["train"]} == {each.id for each in opened.examples["train"]}
    assert len(opened.examples["train"]) == 2
    refused("has no split for rte|has no column|RTE's", opening.open_task, TaskConfig("rte", "tfds:users_task"))
    refused("tfds:users_task has no split for MNLI's dev_matched set", opening.open_task, TaskConfig("mnli", "tfds:users_task"))
    refused("write tfds:NAME", opening.open_task, own("tfds:"))


# --- The real files


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        ("cola", 8551, 1043, 1063),
        ("sst2", 67349, 872, 1821),
        ("stsb", 5749, 1500, 1379),
        ("rte", 2490, 277, 3000),
        ("wnli", 635, 71, 146),
        ("squad1", 4802, 1211, 0),
        ("squad2", 9567, 2306, 0),
        ("conll2000", 8936, 2012, 0),
        ("ud", 12544, 2001, 0),
        ("wnut17", 3394, 1009, 0),
    ],
)
def test_the_real_files_whole(name, train, dev, test, shared_data):
    """Every row is there, and every rule of the readers holds on it."""
    opened = opening.open_task(TaskConfig(name, str(shared_data / "glue" if TASKS[name].uploads else shared_data)))
    assert [len(opened.examples.get(split, ())) for split in ("train", "dev", "test")] == [train, dev, test]
    assert not any("upload" in note for note in opened.notes)
    if TASKS[name].uploads:
        assert [example.id for example in opened.examples["test"]] == list(map(str, range(test)))
        assert all(example.label is None for example in opened.examples["test"])
    for split in ("train", "dev"):
        for example in opened.examples[split]:
            if opened.task.kind == "answer":
                assert all(example.texts[1][start:].startswith(text) for text, start in zip(*example.label, strict=True))
            elif opened.task.kind == "tags":
                assert len(example.label) == len(example.texts)
    if name == "squad2":
        assert opened.counts["dev"]["unanswerable"] == sum(not example.label.texts for example in opened.examples["dev"]) > 1000
    if name == "ud":
        assert len(opened.task.labels) == 17 and opened.counts["train"]["multiword tokens left out"] == 2614
    if name in ("conll2000", "wnut17"):
        assert len(opened.task.labels) == {"conll2000": 42, "wnut17": 25}[name]


def test_real_tags_survive_every_scheme(shared_data):
    """conll2000's test set as published, line by line: IOB2 to BIOES, to IOB1, and back."""
    lines = (shared_data / "conll2000" / "test.txt").read_text().split("\n")
    published = [line.split(" ")[2] if line else "" for line in lines]
    examples = opening.open_task(TaskConfig("conll2000", str(shared_data)), ["dev"]).examples["dev"]
    back = []
    for example in examples:
        assert published[len(back) : len(back) + len(example.label)] == list(example.label)
        for scheme in ("bioes", "iob1"):
            there = tags.convert(example.label, scheme)
            assert tags.first_break(there, scheme) is None and tags.convert(there, "iob2") == example.label
        back += [*example.label, ""]
    assert back == published[: len(back)] and set(published[len(back) :]) <= {""}


def test_reviews_as_a_users_own_table(shared_data, tmp_path):
    path = str(shared_data / "imdb" / "train.jsonl.xz")
    opened = opening.open_task(own(path, id_column="id"), ["train"])
    assert len(opened.examples["train"]) == 25_000 and opened.task.labels == ("0", "1")
    assert opened.examples["train"][0][:3] == ("9772", opened.examples["train"][0].texts, "1")
    with lzma.open(path) as file:
        lines = [next(file) for _ in range(300)]
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines)[:-40])
    refused("cut.jsonl:300 is not JSON", opening.open_task, own(tmp_path / "cut.jsonl"))


@pytest.mark.parametrize("name", ["cola", "stsb", "squad2", "conll2000", "wnut17"])
def test_real_files_spoiled(name, shared_data, tmp_path):
    """Bytes changed or cut anywhere: an error names the file in one line, or the examples are as many as are left."""
    task = TASKS[name]
    found = opening.find(task, str(shared_data / "glue" if task.uploads else shared_data))
    path = tmp_path / found["dev"].rsplit("/", 1)[1]
    shutil.copy(found["dev"], path)
    whole = path.read_bytes()[: 20_000 if task.kind != "answer" else None]
    for number, spoil in enumerate((b"\xff", b"\t", b"\n", b'"', b"\0")):
        at = len(whole) * (2 * number + 1) // 11
        path.write_bytes(whole[:at] + spoil + whole[at + 1 :])
        try:
            assert readers.read(str(path), task.layout_of("dev")).examples
        except UserError as error:
            assert re.match(re.escape(str(path)), str(error)) and "\n" not in str(error)


def test_reading_a_task_imports_no_jax():
    """absl reads a config before process.prepare() has told the C library how to keep memory, which must be before jax is there."""
    code = "import sys; import electra_jax.finetune.opening, electra_jax.finetune.readers.table, electra_jax.finetune.readers.tfds\n"
    code += "print([name for name in ('jax', 'flax', 'optax', 'orbax', 'grain', 'tensorflow') if name in sys.modules])"
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
