"""Predictions of a fine-tuned model: the same as training's own, in order, whatever comes in one portion; and what is refused."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

import electra_jax
from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.finetune import batches, readers
from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import TASKS
from electra_jax.finetune.training import open_work
from electra_jax.infer import files, inputs
from electra_jax.interop import formats
from electra_jax.interop.model import Model
from electra_jax.models import electra
from electra_jax.store import apart
from electra_jax.train.config import EvalConfig, ScheduleConfig, TrainConfig
from tests import tiny
from tests.launch import runs
from tests.tiny import WORDS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model with rotary positions, so that rows may be of any length, and its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_words(path, "##x", max_length=96, positions="rotary")
    return path


def finished(folder, source, task: TaskConfig, length: int = 16, **finetune):
    """What a run leaves in `folder`, untrained. Its weights are large, and what all rows have counts nothing: predictions differ."""
    recipe = FinetuneRecipe(
        init_from=str(source),
        schedule=ScheduleConfig(warmup_steps=0),
        train=TrainConfig(steps=1, batch_rows=16),
        eval=EvalConfig(batch_rows=16),
        task=task,
        finetune=FinetuneConfig(length=length, row_lengths=1, **finetune),
        given=frozenset(("train.steps",)),
    )
    work = open_work(recipe, folder)
    params = jax.tree.map(lambda x: np.asarray(x) * 5.0, jax.jit(work.parts.objective.init)(tiny.ROOT))
    params["embeddings"]["type"][:] = params["embeddings"]["word"][[work.tokenizer.cls_id, work.tokenizer.sep_id]] = 0.0
    for head in set(params) & {"classification", "token_classification"}:
        params[head]["out"]["kernel"] *= 0.1
    folder.mkdir()
    work.finish(types.SimpleNamespace(params=params, root=rng.key_words(tiny.ROOT)), folder)
    return folder


def sentence(r: random.Random, most: int = 30) -> str:
    return " ".join(r.choice(WORDS) for _ in range(r.randrange(1, most)))


def table(path, columns, rows, delimiter=",") -> None:
    path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in [columns, *rows]))


@pytest.fixture(scope="module")
def reviews(source, tmp_path_factory):
    """(a run on a table with its own names of columns, its dev file)."""
    folder, r = tmp_path_factory.mktemp("reviews"), random.Random(0)
    for name in ("train", "dev"):
        table(folder / f"{name}.csv", ["review", "good"], [(sentence(r), r.choice(["yes", "no"])) for _ in range(60)], ";")
    task = TaskConfig(path=str(folder), text_columns=("review",), label_column="good", delimiter=";")
    return finished(folder / "run", source, task, length=24), folder / "dev.csv"


@pytest.fixture(scope="module")
def model(reviews):
    return electra_jax.load_task(reviews[0])


def predicted(model, path, tmp_path, ending="jsonl", **options):
    done = files.predict_file(model, str(path), str(tmp_path / f"out.{ending}"), **options)
    text = (tmp_path / f"out.{ending}").read_text()
    return done, [json.loads(line) for line in text.splitlines()] if ending == "jsonl" else text.splitlines()


def own(run, name: str):
    return (run / "predictions" / name).read_text()


# --- As training predicts


def test_a_class(reviews, model, tmp_path):
    run, dev = reviews
    done, lines = predicted(model, dev, tmp_path, "tsv")
    assert [line.split("\t")[:2] for line in lines] == [line.split("\t") for line in own(run, "dev.tsv").splitlines()]
    assert {line.split("\t")[1] for line in lines[1:]} == {"yes", "no"} and done.rows == 60
    assert "of 60 texts were cut at their end to 24 tokens" in done.notes[-1] and len(done.notes) == 1
    told = int(done.notes[-1].split(": ")[1].split()[0])
    assert told == sum(len(line.split(";")[0].split()) > 22 for line in dev.read_text().splitlines()[1:]) > 0
    _, records = predicted(model, dev, tmp_path)
    assert all(each["probabilities"][each["label"]] == each["probability"] >= 0.5 for each in records)


def test_several_classes_and_a_pair(source, tmp_path):
    r = random.Random(1)
    labels = ["a", "b", "c"]
    for name in ("train", "dev"):
        rows = [{"x": sentence(r, 9), "y": sentence(r, 14), "label": r.sample(labels, r.randrange(4))} for _ in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = finished(tmp_path / "run", source, TaskConfig(path=str(tmp_path), kind="classes", text_columns=("x", "y")))
    model = electra_jax.load_task(run)
    _, lines = predicted(model, tmp_path / "dev.jsonl", tmp_path, "tsv")
    assert [line.split("\t")[:2] for line in lines] == [line.split("\t") for line in own(run, "dev.tsv").splitlines()]
    _, records = predicted(model, tmp_path / "dev.jsonl", tmp_path)
    assert all(each["labels"] == [label for label in labels if each["probabilities"][label] > 0.5] for each in records)
    assert len({tuple(each["labels"]) for each in records}) > 2
    pairs = [(row["x"], row["y"]) for row in rows]
    with pytest.raises(UserError, match=r"texts\[50\] is 'w1 w2', and the model was trained on pairs of texts, not on single texts"):
        list(model.predict([*pairs, "w1 w2"]))
    with pytest.raises(UserError, match="dev.jsonl is read with task.text_columns=x, and the model was trained on pairs"):
        predicted(model, tmp_path / "dev.jsonl", tmp_path, given={"text_columns": ("x",)})
    # A folder of transformers does not say which of them it is for.
    unknown = dataclasses.replace(model, task=dataclasses.replace(model.task, layout=dataclasses.replace(model.task.layout, format="")))
    with pytest.warns(UserWarning, match="texts were cut"):
        mixed = list(unknown.predict([*pairs, "w1 w2"]))
    assert [list(each.value) for each in mixed[:-1]] == [each["labels"] for each in records]
    assert mixed[-1].more == pytest.approx(next(unknown.predict(["w1 w2"])).more, abs=1e-6)
    (tmp_path / "pairs.txt").write_text("".join(f"{x}\t{y}\n" for x, y in pairs))
    assert predicted(model, tmp_path / "pairs.txt", tmp_path)[1] == records
    with pytest.raises(UserError, match=r"more.txt:2 has 1 texts, and a row 2, with a tab between"):
        (tmp_path / "more.txt").write_text("w1\tw2\nw3\n")
        predicted(model, tmp_path / "more.txt", tmp_path)


def test_a_number(source, tmp_path):
    r = random.Random(2)
    for name in ("train", "dev"):
        table(tmp_path / f"{name}.tsv", ["text", "label"], [(sentence(r), r.randrange(2, 9)) for _ in range(50)], "\t")
    run = finished(tmp_path / "run", source, TaskConfig(path=str(tmp_path), kind="number"))
    model = electra_jax.load_task(run)
    wanted = [float(line.split("\t")[1]) for line in own(run, "dev.tsv").splitlines()[1:]]
    _, records = predicted(model, tmp_path / "dev.tsv", tmp_path)
    values = [each["value"] for each in records]
    assert values == pytest.approx(wanted, abs=6e-4) and np.std(values) > 0.5


def test_tags(source, tmp_path):
    r = random.Random(3)
    for name in ("train", "dev"):
        words = [sentence(r).split() for _ in range(40)]
        lines = ["".join(f"{word} {r.choice(['B-X', 'B-Y', 'O'])}\n" for word in each) for each in words]
        (tmp_path / f"{name}.conll").write_text("\n".join(lines))
    run = finished(tmp_path / "run", source, TaskConfig(path=str(tmp_path), kind="tags", format="columns"))
    model = electra_jax.load_task(run)
    _, records = predicted(model, tmp_path / "dev.conll", tmp_path)
    wanted = [[line.split()[-1] for line in each.split("\n")] for each in own(run, "dev.conll").strip().split("\n\n")]
    assert [each["tags"] for each in records] == wanted and [each["words"] for each in records] == words
    assert len({tag for tags in wanted for tag in tags}) > 2
    (tmp_path / "dev.txt").write_text(
        "".join(word + "\n" for each in words for word in [*each, ""])
    )  # without tags: of CoNLL's columns too
    assert predicted(model, tmp_path / "dev.txt", tmp_path)[1] == records
    with pytest.warns(UserWarning, match="words past the end have the tag O"):
        found = list(model.predict([each if number % 2 else " ".join(each) for number, each in enumerate(words)]))
    assert [list(each.value) for each in found] == wanted
    (tmp_path / "broken.conll").write_text("w1 B-X\nw2 nonsense\n")  # labels are not read
    assert len(predicted(model, tmp_path / "broken.conll", tmp_path)[1][0]["tags"]) == 2


@pytest.mark.parametrize("head, threshold", [("joint_answer", 0.0), ("question_answering", -100.0)])
def test_answers(head, threshold, source, tmp_path):
    r, paragraphs = random.Random(4), []
    for number in range(24):
        words = [r.choice(WORDS) for _ in range(r.choice((60, 90)))]
        answers = [] if number % 3 == 0 else [{"text": words[0], "answer_start": 0}]
        question = {"id": f"q{number}", "question": sentence(r, 6), "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    for name in ("train", "dev"):
        (tmp_path / f"{name}-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    task = TaskConfig(name="squad2", path=str(tmp_path))
    run = finished(tmp_path / "run", source, task, length=72, head=head, no_answer_threshold=threshold)
    model = electra_jax.load_task(run)
    _, records = predicted(model, tmp_path / "dev-v2.0.json", tmp_path)
    assert {each["id"]: each["answer"] for each in records} == json.loads(own(run, "dev.json"))
    none, nbest = json.loads(own(run, "dev.null.json")), json.loads(own(run, "dev.nbest.json"))
    assert {each["id"]: each["no_answer_score"] for each in records} == pytest.approx(none, rel=1e-5, abs=1e-4)
    assert len({each["answer"] for each in records}) > 3 and "" in {each["answer"] for each in records}
    for each, paragraph in zip(records, paragraphs, strict=True):
        begin, end = each["characters"] or (0, 0)
        assert paragraph["context"][begin:end] == each["answer"] and (each["characters"] is None) == (each["answer"] == "")
        listed = [entry["probability"] for entry in nbest[each["id"]] if entry["text"] == each["answer"]]
        of_none = 1 / (1 + np.exp(-none[each["id"]]))  # which the joint head does not list
        assert each["probability"] == pytest.approx(listed[0] if listed else of_none, abs=1e-5)
    pairs = [(each["qas"][0]["question"], each["context"]) for each in paragraphs]
    found = list(model.predict(pairs))
    assert [each.value for each in found] == [each["answer"] for each in records]
    assert [each.probability for each in found] == pytest.approx([each["probability"] for each in records], abs=1e-5)
    with pytest.raises(UserError, match=r"texts\[0\] is 'w1': it must be \(question, context\)"):
        next(model.predict(["w1"]))


def test_a_folder_of_transformers(model, tmp_path):
    """It says no more than labels and the head: a class, unless problem_type says otherwise."""
    config = tiny.model(vocab_size=model.tokenizer.vocab_size)

    def init(key):
        head = electra.init_task(key, config, "sequence_classification", 3)
        return {**electra.init_params(key, config, {"discriminator": {}}), "sequence_classification": head}

    params = jax.tree.map(lambda x: np.asarray(x) * 5, jax.jit(init)(tiny.ROOT))
    formats.write(tmp_path / "out", Model(config, params, model.tokenizer, about={"labels": ["x", "y", "z"]}), "huggingface")
    folder = tmp_path / "out" / "discriminator"
    texts = ["w1 w2", "w30 w31 w7"]
    found = list(electra_jax.predict(folder, texts))
    batch = electra_jax.encode(texts, model.tokenizer, 32)
    shape = dataclasses.replace(config, dtype="float32")
    logits = jax.jit(lambda params: electra_jax.task_apply(params, shape, batch, "sequence_classification"))(params)
    np.testing.assert_allclose([list(each.more.values()) for each in found], jax.nn.softmax(logits), atol=1e-5)
    assert list(found[0].more) == ["x", "y", "z"]


def transformers_folder(path, model, head: str, num_labels: int, labels=None, **changes):
    """A folder of transformers with this head, drawn weights, and these changes of its config.json."""
    config = tiny.model(vocab_size=model.tokenizer.vocab_size)

    def init(key):
        return {**electra.init_params(key, config, {"discriminator": {}}), head: electra.init_task(key, config, head, num_labels)}

    params = jax.tree.map(lambda x: np.asarray(x) * 5, jax.jit(init)(tiny.ROOT))
    formats.write(path, Model(config, params, model.tokenizer, about={"labels": labels} if labels else {}), "huggingface")
    folder = path / "discriminator"
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))
    return folder


def test_a_head_of_one_output_gives_a_number(model, tmp_path):
    """As transformers takes it where problem_type says nothing: rerankers and models of similarity are published so."""
    folder = transformers_folder(tmp_path / "out", model, "sequence_classification", 1)
    assert "problem_type" not in json.loads((folder / "config.json").read_text())
    opened = electra_jax.load_task(folder)
    found = list(opened.predict([("w1", "w2 w3"), ("w30 w31", "w7")]))
    assert opened.task.kind == "number" and found[0].probability is None and found[0].value != pytest.approx(found[1].value, abs=1e-3)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"id2label": ["x", "y", "z"]}, r"id2label is \['x', 'y', 'z'\]: it must be an object"),
        ({"id2label": {"0": "x", "1": "x", "2": "y"}}, "its config gives the label 'x' to two outputs"),
        ({"problem_type": "regression"}, "predicts number from 1 outputs, and its head, sequence_classification, has 3: "),
        ({"electra_jax": {"kind": "tags"}}, "predicts tags from 3 outputs, and its head, sequence_classification, has 3: "),
        ({"electra_jax": {"kind": 3}}, "layout has been changed"),
        ({"electra_jax": {"kind": "number", "range": "x"}}, "layout has been changed"),
        ({"electra_jax": {"finetune": 3}}, "finetune is 3"),
        (
            {"electra_jax": {"finetune": {"length": 5000}}},
            "finetune.length is 5000: it must be at least 4, and at most the model's 32 positions",
        ),
        ({"electra_jax": {"finetune": {"length": 1}}}, "finetune.length is 1: it must be at least 4"),
        (
            {"electra_jax": {"layout": {"format": "csv", "kind": "class", "texts": ["t"], "labels": ["a", "b", "c"]}}},
            r"labels are x, y, z by id2label and a, b, c by electra_jax.layout.labels: mend one of them",
        ),
        ({"electra_jax": {"kind": "number", "layout": {"format": "csv", "kind": "number", "texts": ["t"]}}}, "layout has been changed"),
    ],
)
def test_a_config_that_does_not_fit_the_head(changes, said, model, tmp_path):
    folder = transformers_folder(tmp_path / "out", model, "sequence_classification", 3, ["x", "y", "z"], **changes)
    with pytest.raises(UserError, match=said):
        electra_jax.load_task(folder)


def test_there_and_back_through_transformers(reviews, model, tmp_path):
    """A folder that the published head lies beside predicts as the run does; it keeps labels, length and no path."""
    formats.convert(str(reviews[0]), str(tmp_path / "out"))
    folder = tmp_path / "out" / "discriminator"
    texts = [sentence(random.Random(number)) for number in range(40)]
    assert list(electra_jax.predict(folder, texts)) == list(model.predict(texts))
    fields = json.loads((folder / "config.json").read_text())
    assert fields["problem_type"] == "single_label_classification" and list(fields["label2id"]) == list(model.task.labels)
    assert str(reviews[0].parent) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    task = fields["electra_jax"]
    for changed in ({"layout": 3}, {"layout": {**task["layout"], "kind": "x"}}, {"layout": {**task["layout"], "labels": [1]}}):
        (folder / "config.json").write_text(json.dumps(fields | {"electra_jax": task | changed}))
        with pytest.raises(UserError, match="layout has been changed"):
            electra_jax.load_task(folder)
    (folder / "config.json").write_text(json.dumps(fields | {"electra_jax": task | {"finetune": {"length": "x"}}}))
    with pytest.raises(UserError, match="finetune.length is 'x'"):
        electra_jax.load_task(folder)


def test_words_past_the_end_of_a_task_that_has_no_outside(source, tmp_path):
    """They have no tag: one of the model's tags would be right by chance, and be scored so. The note names what stands in its place."""
    (tmp_path / "train.conll").write_text("w1 NOUN\nw2 VERB\nw3 ADJ\n\nw4 NOUN\n\n" * 9)
    (tmp_path / "dev.conll").write_text("w3 ADJ\n" * 9)
    task = TaskConfig(path=str(tmp_path), kind="tags", format="columns", tag_scheme="tokens")
    run = finished(tmp_path / "run", source, task, length=8)
    (score,) = json.loads((run / "results.json").read_text())["scores"]["dev"].values()
    assert score["accuracy"] <= 6 / 9
    with pytest.warns(UserWarning, match="words past the end have the tag _, with the probability 0"):
        (found,) = electra_jax.load_task(run).predict([["w1"] * 9])
    assert found.value[6:] == ("_",) * 3 and found.probability[6:] == (0.0,) * 3


# --- Order, portions, lengths


def test_order_and_portions_change_nothing(model):
    r = random.Random(5)
    texts = [sentence(r) for _ in range(100)]
    with pytest.warns(UserWarning, match="of 100 texts were cut"):
        whole = list(model.predict(texts))
    with pytest.warns(UserWarning):
        backwards = list(model.predict(texts[::-1], portion_rows=7))[::-1]
    assert [each.value for each in whole] == [each.value for each in backwards] and len({each.value for each in whole}) == 2
    assert [each.probability for each in whole] == pytest.approx([each.probability for each in backwards], abs=2e-6)
    assert len({round(each.probability, 5) for each in whole}) > 80
    alone = [next(model.predict([text])).probability for text in texts[:3]]
    assert alone == pytest.approx([each.probability for each in whole[:3]], abs=2e-6)


def test_texts_are_read_a_portion_at_a_time(model):
    read = []

    def texts():
        for number in range(100):
            read.append(number)
            yield "w1 w2"

    found = model.predict(texts(), portion_rows=8)
    next(found)
    assert len(read) == 8
    for _ in range(8):
        next(found)
    assert len(read) == 16


def test_what_was_cut_is_told_where_the_caller_takes_no_more(model):
    """zip asks its first list first, and so never comes to the predictions' end."""
    texts = ["w1 " * 40, "w2"]
    with pytest.warns(UserWarning, match="1 of 2 texts were cut"):
        assert len([text for text, _ in zip(texts, model.predict(texts), strict=False)]) == 2


def test_few_programs_whatever_the_portions(model, monkeypatch):
    lengths = []
    real = model.outputs

    def outputs(made):
        made = list(made)
        lengths.extend((batch.tokens.shape, valid.sum()) for batch, valid in made)
        return real(made)

    watched = dataclasses.replace(model, outputs=outputs)
    r = random.Random(6)
    texts = [sentence(r, 22) for _ in range(64)]
    list(watched.predict(texts, portion_rows=5))
    assert {shape for shape, _ in lengths} == {(rows, length) for rows, length in zip(model.batch_rows, model.lengths, strict=True)}
    assert sum(count for _, count in lengths) == 64


@pytest.mark.parametrize("longest", [1, 8, 12, 16, 17, 24, 64, 100, 128, 512])
def test_the_ladder_of_lengths(longest):
    found = batches.ladder(longest)
    assert found[-1] == longest and list(found) == sorted(set(found)) and len(found) <= 12
    assert all(each % 8 == 0 for each in found[:-1])
    assert all(below >= 2 / 3 * above for below, above in zip(found, found[1:], strict=False))
    assert found[0] <= 16


def test_a_second_run_gives_the_same_bytes(reviews, tmp_path):
    run, dev = reviews
    found = []
    for _ in range(2):
        predicted(electra_jax.load_task(run), dev, tmp_path, portion_rows=9)
        found.append((tmp_path / "out.jsonl").read_bytes())
    assert found[0] == found[1] and os.listdir(tmp_path) == ["out.jsonl"]


# --- Files


def test_a_tasks_own_files_and_others():
    """CoLA's dev set has no header and its test set has one; GLUE's tables quote nothing."""
    cola = TASKS["cola"]
    dev, test, mine = (inputs.layout_of(cola, f"x/{name}", {}) for name in ("dev.tsv", "test.tsv.gz", "mine.csv"))
    assert (dev.texts, dev.header) == (("3",), False) and (test.texts, test.header, test.id) == (("sentence",), True, "index")
    assert (mine.format, mine.texts, mine.header) == ("csv", ("text",), True)
    assert inputs.layout_of(TASKS["mrpc"], "x/mine.csv", {}).texts == ("#1 String", "#2 String")
    assert inputs.layout_of(TASKS["mrpc"], "x/mine.tsv", {"text_columns": ("a", "b")}).texts == ("a", "b")
    assert inputs.layout_of(TASKS["mrpc"], "-", {}).texts == ("first text", "second text")
    assert inputs.layout_of(TASKS["wnut17"], "x/emerging.test.annotated", {}).format == "columns"
    assert inputs.layout_of(TASKS["wnut17"], "x/mine.jsonl", {}).texts == ("words",)
    assert inputs.layout_of(TASKS["ud"], "x/mine.conllu", {}).texts == ("form",)
    assert inputs.layout_of(TASKS["squad1"], "x/mine.csv", {}).texts == ("question", "context")
    assert inputs.layout_of(cola, "x/mine.txt", {}).format == "lines"
    assert inputs.layout_of(cola, "x/test.tsv", {"bad_rows": "drop"}) == dataclasses.replace(test, drop=True)
    assert not inputs.layout_of(TASKS["qqp"], "x/test.tsv", {"bad_rows": "refuse"}).drop
    for layout in (dev, test, mine):
        assert not layout.labelled and not layout.label


def test_outputs_that_are_not_finite_are_no_predictions(reviews):
    model = electra_jax.load_task(reviews[0])

    def outputs(batches):
        for each in model.outputs(batches):
            yield {**each, "log_p": np.full_like(each["log_p"], np.nan)}

    with pytest.raises(UserError, match=f"{reviews[0]}: the model's outputs are not finite numbers: its training diverged"):
        list(dataclasses.replace(model, outputs=outputs).predict(["w1 w2"]))


def test_nothing_is_learned_from_plain_lines(tmp_path):
    (tmp_path / "a.txt").write_text("w1\n")
    with pytest.raises(UserError, match="lines of plain text have no labels"):
        readers.read(str(tmp_path / "a.txt"), Layout("lines", "class", ("text",), "label"))


def test_labels_are_not_read(reviews, model, tmp_path):
    _, dev = reviews
    lines = dev.read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join(["good;review;;", *(f";{line.split(';')[0]};;" for line in lines[1:])]) + "\n")
    assert predicted(model, tmp_path / "other.csv", tmp_path)[1] == predicted(model, dev, tmp_path)[1]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.csv", "text;good\nw1;yes\n", "a.csv:1 has no column 'review', but 'text', 'good'.*task.text_columns"),
        ("a.csv", "review\nw1\n  \n", "a.csv:3: 'review' is empty: remove the row, or keep and count such rows"),
        ("a.csv", "review;n\nw1;2\nw1\n", "a.csv:3 has 1 columns, and the first line 2: .*Mend the row$"),
        ("a.csv", "", "a.csv holds no example"),
        ("a.csv", 'review\n"w1\n', "a.csv:2: a quote is out of place"),
        (
            "a.csv",
            "review\rw1\r",
            r"a.csv:1: a carriage return \(\\r\) stands alone: end lines with .*, or put the column in double quotes$",
        ),
        ("a.csv", b"review\n\xff\n", "a.csv:2: byte 1 is 0xff, which is no UTF-8"),
        ("a.jsonl", '{"review": "w1"}\n{"review": "w', "a.jsonl:2 is not JSON .*is the file cut short"),
        ("a.jsonl", '{"review": 3}\n', "a.jsonl:1: 'review' is of type int, not text"),
        ("a.jsonl", '{"review": "w1", "id": 1.5}\n', "a.jsonl:1: 'id' is 1.5: it must be a text or a whole number"),
        ("a.txt", "w1\n\nw2\n", "a.txt:2: 'text' is empty: remove the row"),
        ("a.conll", "w1 O\n", "a.conll: a file of the format columns has words with tags, and this model predicts a class"),
        ("a.parquet", "x" * 40, "a.parquet is damaged or cut short"),
        ("a.docx", "w1", "a.docx: its ending tells no format .*--task.format"),
        ("a.csv.gz", "w1", "a.csv.gz cannot be read|a.csv.gz is damaged"),
    ],
)
def test_bad_input(model, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=said):
        files.predict_file(model, str(path), str(tmp_path / "out.jsonl"), given={"id_column": "id"} if "'id'" in said else {})
    assert sorted(os.listdir(tmp_path)) == [name]  # neither a part of the output nor what it was written to


def test_bad_places(model, tmp_path):
    (tmp_path / "a.csv").write_text("review\nw1\n")
    os.mkfifo(tmp_path / "pipe.csv")
    for source, target, said in (
        ("no.csv", "out.tsv", "no.csv: no such file"),
        ("", "out.tsv", "is a folder: name a file"),
        ("pipe.csv", "out.tsv", r"pipe.csv is no ordinary file: read a pipe as standard input \(--input=-\)"),
        ("a.csv", "a.csv", "tells no format: name a file .jsonl or .tsv"),
        ("a.csv", "no/out.tsv", "there is no folder"),
    ):
        with pytest.raises(UserError, match=said):
            files.predict_file(model, str(tmp_path / source), str(tmp_path / target))
    with pytest.raises(UserError, match="is the input itself"):
        files.predict_file(model, str(tmp_path / "a.csv"), str(tmp_path / "a.csv"), format="tsv")
    with pytest.raises(UserError, match="parquet cannot be read from a pipe"):
        files.predict_file(model, "-", str(tmp_path / "out.tsv"), given={"format": "parquet"})
    with pytest.raises(UserError, match=r"task.header is for csv, tsv, glue, and this file is jsonl"):
        files.predict_file(model, str(tmp_path / "a.csv"), str(tmp_path / "out.tsv"), given={"format": "jsonl", "header": False})
    assert files.predict_file(model, str(tmp_path / "a.csv"), str(tmp_path / "out.tsv"), given={"format": "auto"}).rows == 1
    files.predict_file(model, str(tmp_path / "a.csv"), "/dev/null", format="tsv")
    assert not os.path.isfile("/dev/null")


def test_empty_texts_are_kept_on_request(model, tmp_path):
    (tmp_path / "a.csv").write_text('review;n\nw1;\n"";\nw2;\n')
    done = files.predict_file(model, str(tmp_path / "a.csv"), str(tmp_path / "out.jsonl"), given={"bad_rows": "drop"})
    assert done.rows == 3 and len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    assert done.notes == [f"{tmp_path}/a.csv: 1 with an empty text"]


def test_bad_texts(model):
    for texts, said in (
        ("w1 w2", r"predict takes several texts: predict\(\[text\]\)"),
        ({"w1": "w2"}, r"texts are of type dict, .* predict\(list\(texts.values\(\)\)\)"),
        ({"w1", "w2"}, "texts are of type set, which has no order: predict"),
        (types.SimpleNamespace(columns=["text"]), r"texts are a table: name its column, predict\(texts\['text'\]\)"),
        (["w1", ""], r"texts\[1\]: 'text' is empty: remove the row$"),
        ([3], r"texts\[0\] is 3: it must be a text, or a pair of them"),
        ([("w1", "w2", "w3")], r"texts\[0\] is .*: it must be a text, or a pair"),
        ([("w1", None)], r"texts\[0\] is .*: it must be a text, or a pair"),
    ):
        with pytest.raises(UserError, match=said):
            list(model.predict(texts))


def test_other_models(source, reviews, model, tmp_path):
    with pytest.raises(
        UserError, match=r"no task's head: it has discriminator \(its RTD head\), generator \(its MLM head\). Fine-tune it: py"
    ):
        electra_jax.load_task(source)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"finetune": {}, "task": {}}')
    with pytest.raises(UserError, match="its fine-tuning is not complete"):
        electra_jax.load_task(tmp_path / "run")
    with pytest.raises(UserError, match="no such file or folder"):
        electra_jax.load_task(tmp_path / "nothing")
    shutil.copytree(reviews[0], tmp_path / "whole")
    of_seeds = {"params": {"embeddings": {"word": np.zeros((1, 2, 3), np.float32)}}}  # they lie beside the model
    apart.save(tmp_path / "whole" / "checkpoints", 1, of_seeds, {"config": {"finetune": {}, "task": {}}})
    assert electra_jax.load_task(tmp_path / "whole").task == model.task
    with pytest.raises(UserError, match=f"whole/checkpoints: .*of a fine-tuning, with all its seeds: name its workdir, {tmp_path}/whole$"):
        electra_jax.load_task(tmp_path / "whole" / "checkpoints")
    found = formats.read(str(reviews[0] / "model"))
    formats.write(tmp_path / "bare", dataclasses.replace(found, tokenizer=None), "electra_jax")
    with pytest.raises(UserError, match="no tokenizer in it"):
        electra_jax.load_task(tmp_path / "bare")
    other = WordPiece([*SPECIALS, "##y", *WORDS])
    formats.write(tmp_path / "other", found, "electra_jax")
    other.save(tmp_path / "other" / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer there is not the one that the run was trained with"):
        electra_jax.load_task(tmp_path / "other")


def test_a_run_in_a_bucket(reviews, model, gcs, bucket):
    """The model that it left, not the checkpoints of its seeds beside it."""
    texts = ["w1 w2 w3", "w30"]
    gcs.add(reviews[0], bucket, "runs/there")
    gcs.add(reviews[0] / "model" / "checkpoints", bucket, "runs/there/checkpoints")
    for path in (f"gs://{bucket}/runs/there", f"gs://{bucket}/runs/there/model"):
        assert list(electra_jax.predict(path, texts)) == list(model.predict(texts))
    for path in (f"gs://{bucket}/nothing", "gs://no-such-bucket/x"):
        with pytest.raises(UserError, match="there is no checkpoint in it"):
            electra_jax.load_task(path)


# --- The command


def command(*flags: str) -> list[str]:
    return [sys.executable, str(runs.ROOT / "launch" / "predict.py"), *flags]


def test_the_command_reads_standard_input(reviews, model, tmp_path):
    texts = ["w1 w2 w3", "w30", "w4 " * 40]
    env = runs.environment(tmp_path / "cache")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command(f"--model={reviews[0]}", "--portion_rows=2"), env=env, text=True, **pipes)
    guard = threading.Timer(60, process.kill)
    guard.start()
    process.stdin.write("\n".join([*texts[:2], ""]))
    process.stdin.flush()
    lines = [process.stdout.readline(), process.stdout.readline()]  # a portion is out before the next one is there
    out, err = process.communicate(texts[2])
    guard.cancel()
    assert process.returncode == 0, err
    records = [json.loads(line) for line in [*lines, *out.splitlines()]]
    with pytest.warns(UserWarning):
        wanted = list(model.predict(texts))
    assert [each["label"] for each in records] == [each.value for each in wanted] and [each["id"] for each in records] == ["0", "1", "2"]
    assert [each["probability"] for each in records] == pytest.approx([each.probability for each in wanted], abs=2e-6)
    note, last = err.strip().splitlines()
    assert note.startswith("note: standard input: 1 of 3 texts were cut") and last.startswith("done: 3 rows in")


def test_the_command_says_one_line(reviews, tmp_path):
    """A row that is bad in the second portion: the first is out already, on a pipe."""
    (tmp_path / "a.csv").write_text("mine,x\nw1,\nw2,\n,\n")
    flags = ("--task.text_columns=mine", "--task.delimiter=,", "--portion_rows=2", "--output_format=tsv")
    done = subprocess.run(
        command(f"--model={reviews[0]}", f"--input={tmp_path}/a.csv", *flags), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 3
    assert (
        done.stderr.strip()
        == f"predict.py: {tmp_path}/a.csv:4: 'mine' is empty: remove the row, or keep and count such rows (task.bad_rows=drop)"
    )


@pytest.mark.parametrize("closed, mend", [("stdin", "name a file (--input=FILE)"), ("stdout", "name a file (--output=FILE)")])
def test_a_closed_standard_stream(closed, mend, model, monkeypatch, tmp_path):
    """Python has None in its place, as under a service manager."""
    monkeypatch.setattr(sys, closed, None)
    (tmp_path / "a.txt").write_text("w1\n")
    source = "-" if closed == "stdin" else str(tmp_path / "a.txt")
    with pytest.raises(UserError, match=re.escape(f"is closed: {mend}")):
        files.predict_file(model, source, "-")


def test_the_command_without_a_standard_error(reviews, tmp_path):
    """What it would say there does not get among the predictions."""
    flags = command(f"--model={reviews[0]}", "--output_format=tsv")
    closed = ["bash", "-c", 'exec "$@" 2>&-', "bash", *flags]
    done = subprocess.run(closed, input="w1\n", stdout=subprocess.PIPE, text=True, timeout=120, env=runs.environment(tmp_path / "cache"))
    assert done.returncode == 0 and [line.split("\t")[0] for line in done.stdout.splitlines()] == ["id", "0"]


def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    target = tmp_path / "out.tsv"
    (tmp_path / ".out.tsv.0a.tmp").write_text("cut")
    with files.writing(str(target)) as first:
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
        with files.writing(str(target)) as second:
            second.write(b"second")
        assert target.read_bytes() == b"second"
        first.write(b"first")
    assert target.read_bytes() == b"first" and list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_ten_kills(reviews, tmp_path):
    """What was there stays, or the whole new file is there; the same command again gives the same bytes."""
    r = random.Random(7)
    table(tmp_path / "new.csv", ["review"], [[sentence(r)] for _ in range(20_000)])
    target, env = tmp_path / "out.jsonl", runs.environment(tmp_path / "cache")
    flags = command(f"--model={reviews[0]}", f"--input={tmp_path}/new.csv", f"--output={target}", "--portion_rows=256")
    subprocess.run(flags, env=env, check=True, capture_output=True)
    start = time.monotonic()
    subprocess.run(flags, env=env, check=True, capture_output=True)
    secs, wanted = time.monotonic() - start, target.read_bytes()
    killed = 0
    for moment in range(10):
        target.write_bytes(b"what was there")
        process = subprocess.Popen(flags, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(secs * (moment + 0.5) / 10)
        process.kill()
        killed += process.wait() != 0
        assert target.read_bytes() in (b"what was there", wanted)
    subprocess.run(flags, env=env, check=True, capture_output=True)
    assert target.read_bytes() == wanted and killed >= 5
    assert not list(tmp_path.glob(".*.tmp"))
