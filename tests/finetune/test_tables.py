"""Readers of a user's own table, and of files that are compressed or cannot be read."""

import dataclasses
import gzip
import json
import lzma
import math
import os

import pytest

from electra_jax.cli import UserError
from electra_jax.finetune import readers
from electra_jax.finetune.examples import Answers
from electra_jax.finetune.readers.layout import Layout
from tests.finetune.reading import CONTEXT, TABLE, pairs, put, read, refused


def test_csv_by_the_rules_of_the_csv_module(tmp_path):
    content = 'id,text,label\r\n7,"a, ""quoted""\r\ntext",good\r\n\r\n8,plain,bad\r\n9,"",bad\r\n'
    path = put(tmp_path, "train.csv", content)
    reading = read(path, id="id", drop=True)
    assert reading.examples == [
        ("7", ('a, "quoted"\r\ntext',), "good", f"{path}:2"),
        ("8", ("plain",), "bad", f"{path}:5"),
    ]
    assert reading.counts == {"rows": 3, "blank lines": 1, "dropped: an empty text": 1}
    refused(path, "train.csv:6: 'text' is empty: remove the row, or .*task.bad_rows=drop")
    long = put(tmp_path, "long.csv", f"text,label\n{'x' * 200_000},a\n")  # beyond csv's own limit
    assert len(read(long).examples[0].texts[0]) == 200_000
    other = put(tmp_path, "other.csv", "text;label\na, b;x\n")
    refused(other, ":1 has no column 'text', but 'text;label'", "task.delimiter=';'")
    assert pairs(read(other, delimiter=";")) == [(("a, b",), "x")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('text,label\na,x\n"b,y\nc,z\n', ":3: a quote is out of place"),
        ('text,label\n"b"c,y\n', ":2: a quote is out of place"),
        ("text,label\na,x\nb\n", ":3 has 1 columns, and the first line 2"),
        ("text,label\na,b,c\n", ":2 has 3 columns"),
        ("text,label\na,\n", ":2: 'label' is empty: give the row its label"),
        ("text,text,label\na,b,x\n", ":1 names the column 'text' twice"),
        ("texts,label\na,b\n", r":1 has no column 'text', but 'texts', 'label'; did you mean 'texts'\?.*task.text_columns"),
        ("text,class\na,b\n", ":1 has no column 'label', .*task.label_column"),
        ("fine,1\nbad,0\n", ":1 has no column .text., .*unless task.header=False says that it does not"),
        ("text,label\n", "holds no example"),
        ("", "holds no example"),
        (b"text,label\na,x\ncaf\xe9,y\n", ":3: byte 4 is 0xe9, which is no UTF-8: save the file as UTF-8"),
        ("text,label\na,x\n".encode("utf-16"), "is binary, not text: .*UTF-8"),
        ('text,label\n" \t",x\n', ":2: 'text' is empty"),
    ],
)
def test_bad_csv(tmp_path, content, says):
    refused(put(tmp_path, "train.csv", content), says)


def test_two_columns_that_were_named_as_one(tmp_path):
    """As launch/predict.py takes them; a column's name may have a comma, so that the name is not split here."""
    path = put(tmp_path, "train.csv", "premise,hypothesis,label\na,b,x\n")
    refused(
        path,
        "has no column 'premise,hypothesis', but .*: name two as \\('premise', 'hypothesis'\\) \\(task.text_columns\\)",
        texts=("premise,hypothesis",),
    )


def test_tsv_has_no_quotes_unless_told(tmp_path):
    path = put(tmp_path, "train.tsv", 'text\tlabel\n"a\tx\nb"\ty\n')
    assert pairs(read(path, format="tsv")) == [(('"a',), "x"), (('b"',), "y")]
    quoted = put(tmp_path, "quoted.tsv", 'text\tlabel\n"a\tb"\tx\n')
    assert pairs(read(quoted, format="tsv", quotes=True)) == [(("a\tb",), "x")]
    refused(quoted, ":2 has 3 columns", format="tsv")


def test_a_table_without_a_header(tmp_path):
    path = put(tmp_path, "train.csv", "x,hello,there\ny,good,bye\n")
    assert pairs(read(path, header=False, texts=("1", "-1"), label="0")) == [(("hello", "there"), "x"), (("good", "bye"), "y")]
    refused(path, ":1 has no column 3, but 0 to 2", header=False, texts=("3",), label="0")
    refused(path, ":1: a file without a header has columns 0 to 2, not '²'", header=False, texts=("1",), label="²")
    refused(path, ":1: a file without a header has columns 0 to 2, not 'text'", header=False)
    refused(
        path, ":1: 'x' is none of the labels a, b.*if that line is one, remove it", header=False, texts=("1",), label="0", labels=("a", "b")
    )


def test_a_table_without_a_header_or_labels(tmp_path):
    """Where the last column is a text, it is no label as well."""
    path = put(tmp_path, "test.csv", "a b\nc d\n")
    layout = dataclasses.replace(TABLE, texts=("0",), label="-1", header=False)
    assert [example.label for example in read(path, layout, labelled=False).examples] == [None, None]
    refused(path, ":1 has no column of labels beside its texts.*task.label_column", layout=layout)
    path = put(tmp_path, "test.csv", "a,b\nc,d\n")
    assert [example.label for example in read(path, layout, texts=("0", "1"), labelled=False).examples] == [None, None]


def test_labels_of_every_kind(tmp_path):
    rows = [
        {"text": "a", "one": 1, "yes": True, "several": ["x ", " y"], "number": 2, "cut": "x; y"},
        {"text": "b", "one": 0.0, "yes": False, "several": [], "number": "3.5", "cut": ""},
    ]
    path = put(tmp_path, "train.jsonl", "\n\n".join(map(json.dumps, rows)))

    def labels(kind, label, **changes):
        return [example.label for example in read(path, format="jsonl", kind=kind, label=label, **changes).examples]

    assert labels("class", "one") == ["1", "0"]
    assert labels("class", "yes") == ["true", "false"]
    assert [label for _, label in pairs(read(put(tmp_path, "a.csv", "text,label\na, x\nb,x\n")))] == ["x", "x"]
    assert read(put(tmp_path, "a.csv", "a, x\n"), header=False, texts=("0",), label="1", labels=("x", "y")).examples[0].label == "x"
    assert labels("classes", "several") == [("x", "y"), ()] == labels("classes", "cut", separator=";")
    assert labels("number", "number") == [2.0, 3.5]
    assert read(path, format="jsonl", label="one").counts == {"rows": 2, "blank lines": 1}
    for number in ("inf", "nan"):
        spoiled = put(tmp_path, "a.jsonl", json.dumps({"text": "a", "label": number}))
        refused(spoiled, ":1: 'label' is (inf, and must be finite|empty|nan, and must be finite)", format="jsonl", kind="number")
    for number in ("Infinity", "1" + "0" * 400):  # beyond what a float holds
        spoiled = put(tmp_path, "a.jsonl", f'{{"text": "a", "label": {number}}}')
        refused(spoiled, ":1: 'label' is (inf, and must be finite|10+, which is no number)", format="jsonl", kind="number")
    refused(path, ":1: the label 'y' is none of x, z", format="jsonl", kind="classes", label="several", labels=("x", "z"))
    refused(path, ":1: the label '1' is none of 0, 2", format="jsonl", label="one", labels=("0", "2"))
    refused(path, ":1 has no column 'body'.*task.text_columns", format="jsonl", texts=("body",))
    refused(path, ":1: 'one' is of type int, not text", format="jsonl", texts=("one",), label="yes")
    refused(put(tmp_path, "a.jsonl", '{"text": "a", "label": 1.5}\n'), ":1: 'label' is 1.5: .*task.kind=number", format="jsonl")
    refused(
        put(tmp_path, "a.jsonl", '{"text": "a", "label": "x;;y"}\n'),
        ":1: part 2 of 'label' is empty",
        format="jsonl",
        kind="classes",
        separator=";",
    )
    refused(put(tmp_path, "a.jsonl", '{"text": "a", "label": null}\n'), ":1: 'label' is empty", format="jsonl")
    refused(put(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n'), ":2 has no column 'label'", format="jsonl")
    refused(put(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "la'), ":2 is not JSON .*cut short", format="jsonl")
    refused(put(tmp_path, "a.jsonl", "[1]\n"), ":1 is not a JSON object", format="jsonl")
    twice = put(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "a", "text": "b", "label": "x"}\n')
    refused(twice, ":2 is not JSON .'text' stands twice in an object", format="jsonl")
    refused(put(tmp_path, "a.jsonl", '{"text": "a", "label": ["x"]}\n'), ":1: 'label' is of type list, .*task.label_column", format="jsonl")
    refused(put(tmp_path, "a.jsonl", '{"text": "\\ud83d", "label": "x"}\n'), ":1: 'text' has half of a surrogate pair", format="jsonl")


def test_a_test_set_may_have_labels_or_none(tmp_path):
    path = put(tmp_path, "test.csv", "text,label\na,x\nb,\n")
    reading = read(path, labelled=False)
    assert [example.label for example in reading.examples] == ["x", None] and reading.counts == {"rows": 2, "without a label": 1}
    bare = put(tmp_path, "test.csv", "text\na\nb\n")
    assert [example.label for example in read(bare, labelled=False).examples] == [None, None]


def test_tags_in_a_table(tmp_path):
    layout = Layout("jsonl", "tags", ("words",), "tags")
    rows = [{"words": ["New", "York", "is"], "tags": ["B-L", "I-L", "O"]}, {"words": "so is Rome", "tags": "O O B-L"}]
    path = put(tmp_path, "train.jsonl", "\n".join(map(json.dumps, rows)))
    assert pairs(read(path, layout)) == [(("New", "York", "is"), ("B-L", "I-L", "O")), (("so", "is", "Rome"), ("O", "O", "B-L"))]
    for row, says in (
        ({"words": ["a", "b"], "tags": ["O"]}, ":1 has 2 words and 1 tags"),
        ({"words": [], "tags": []}, ":1: there is no word"),
        ({"words": ["a", " "], "tags": ["O", "O"]}, ":1: part 2 of 'words' is empty"),
        ({"words": ["a", "b"], "tags": ["O", "I-L"]}, ":1, word 2: I-L follows O"),
    ):
        refused(put(tmp_path, "a.jsonl", json.dumps(row)), says, layout=layout, scheme="iob2")


def test_answers_in_a_table(tmp_path):
    layout = Layout("jsonl", "answer", ("question", "context"), "answers")

    def labels(*rows, **changes):
        path = put(tmp_path, "a.jsonl", "\n".join(json.dumps({"question": "Where?", "context": CONTEXT, **row}) for row in rows))
        return [example.label for example in read(path, layout, **changes).examples]

    nested = {"answers": {"text": ["Texas", "Houston"], "answer_start": [29, 20]}}
    assert labels(nested, {"answers": {"text": [], "answer_start": []}}) == [Answers(("Texas", "Houston"), (29, 20)), Answers((), ())]
    assert labels({"answers": "Texas"}, {"answers": ["Music"]}, {"answers": ""}) == [
        Answers(("Texas",), (29,)),
        Answers(("Music",), (56,)),
        Answers((), ()),
    ]
    assert labels({"answers": ["Houston"], "at": [36]}, {"answers": "Texas", "at": 29}, start="at")[0] == Answers(("Houston",), (36,))
    for row, says, changes in (
        ({"answers": "Houston"}, "stands 2 times .*task.start_column", {}),
        ({"answers": "Dallas"}, "stands 0 times .*mend the text", {}),
        ({"answers": "Texas", "at": 30}, "does not stand at character 30.*29 alone", {"start": "at"}),
        ({"answers": ["Texas", "Music"], "at": [29]}, "has 2 answers and 1 offsets", {"start": "at"}),
        ({"answers": "Texas", "at": "x"}, "offset is 'x'", {"start": "at"}),
        ({"answers": "Texas", "at": math.inf}, "offset is inf", {"start": "at"}),
        ({"answers": {"text": ["Texas"], "answer_start": [10**400]}}, "offset is 10+: it must be a whole number", {}),
        ({"answers": {"text": ["Texas"]}}, "has no text and answer_start", {}),
        ({"answers": "Texas"}, ":1 has no column 'at'.*task.start_column", {"start": "at"}),
    ):
        with pytest.raises(UserError, match=says):
            labels(row, **changes)
    path = put(tmp_path, "a.csv", f'question,context,answers,at\nWhere?,"{CONTEXT}",Texas,29\nWhy?,"{CONTEXT}",,\n')
    assert [example.label for example in read(path, layout, format="csv", start="at").examples] == [
        Answers(("Texas",), (29,)),
        Answers((), ()),
    ]


def test_parquet_that_pyarrow_cannot_read(tmp_path, monkeypatch):
    import pyarrow.parquet

    def refuse(*args, **options):
        raise pyarrow.ArrowNotImplementedError("Integers with less than 8 bits not implemented")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", refuse)
    refused(put(tmp_path, "a.parquet", b"PAR1"), "a.parquet is damaged, or .* pyarrow .*less than 8 bits", format="parquet")


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = str(tmp_path / "train.parquet")
    table = pyarrow.table(
        {"text": ["a", "b", None], "label": [1, 0, 1], "words": [["x"], ["y", "z"], []], "tags": [["B-A"], ["O", "O"], []]}
    )
    pyarrow.parquet.write_table(table, path)
    assert read(path, format="parquet", drop=True).examples == [("0", ("a",), "1", f"{path}: row 1"), ("1", ("b",), "0", f"{path}: row 2")]
    refused(path, ": row 3: 'text' is empty", format="parquet")
    layout = Layout("parquet", "tags", ("words",), "tags", drop=True)
    assert pairs(read(path, layout)) == [(("x",), ("B-A",)), (("y", "z"), ("O", "O"))]
    refused(path, " has no column 'body', but 'text', 'label'", format="parquet", texts=("body",))
    data = open(path, "rb").read()
    refused(put(tmp_path, "cut.parquet", data[:-20]), "is damaged or cut short", format="parquet")
    refused(put(tmp_path, "empty.parquet", b""), "is damaged or cut short", format="parquet")


# --- Files


def test_compressed_files_and_those_that_cannot_be_read(tmp_path):
    import pyarrow

    content = b"\xef\xbb\xbftext,label\nna\xc3\xafve,x\n"
    for ending, packed in (
        (".gz", gzip.compress(content)),
        (".xz", lzma.compress(content)),
        (".zst", pyarrow.compress(content, "zstd", asbytes=True)),
    ):
        path = put(tmp_path, f"train.csv{ending}", packed)
        assert pairs(read(path)) == [(("naïve",), "x")] and readers.format_of(path) == "csv"
        refused(put(tmp_path, f"cut.csv{ending}", packed[:-4]), "is damaged or cut short")
    refused(tmp_path / "none.csv", "No such file")
    refused(tmp_path, "is no ordinary file")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "is no ordinary file")
    assert readers.format_of("a.CONLL.gz") == "columns" and readers.format_of("a.docx") is None
