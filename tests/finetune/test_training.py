"""Fine-tuning from a model in a folder to models, scores and predictions, by every kind of task."""

import csv
import dataclasses
import json
import math
import random

import jax
import numpy as np
import pytest

import electra_jax
from configs import finetune as configs
from electra_jax.cli import UserError
from electra_jax.finetune import completed, rates, results, rows, training
from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.examples import Example
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import TASKS
from electra_jax.finetune.training import finetune
from electra_jax.interop import formats
from electra_jax.parallel.config import ParallelConfig
from electra_jax.store.config import CheckpointConfig
from electra_jax.train.config import EvalConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from electra_jax.watch.config import LogConfig
from tests import tiny
from tests.tiny import WORDS
from tests.watch.test_report import Page


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model with learned positions and its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_words(path, "o'", "##clock", max_length=64)
    return path


def recipe(source, steps: int = 40, seeds: int = 2, task: TaskConfig | None = None, **finetune_fields) -> FinetuneRecipe:
    return FinetuneRecipe(
        preset="own",
        seeds=seeds,
        init_from=str(source),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=0),
        train=TrainConfig(steps=steps, batch_rows=16),
        log=LogConfig(every_steps=20, tensorboard=False),
        eval=EvalConfig(every_steps=0, max_rows=0),
        checkpoint=CheckpointConfig(every_steps=25, keep=1),
        task=task or TaskConfig(),
        finetune=FinetuneConfig(**{"length": 24, "row_lengths": 1, "layer_decay": 1.0, **finetune_fields}),
        given=frozenset(("train.steps",)),
    )


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """The first half of the words, or the second: the label says which."""
    r = random.Random(seed)
    found = []
    for _ in range(count):
        label = r.choice(("low", "high"))
        words = WORDS[:20] if label == "low" else WORDS[20:]
        found.append((" ".join(r.choice(words) for _ in range(r.randrange(2, 20))), label))
    return found


def test_outputs_that_are_not_finite_are_no_predictions(source, tmp_path):
    """Ten steps in a row that are not finite stop a run; one that diverges in fewer steps must not give scores either."""
    rows = "".join(f"{words},{label}\n" for words, label in texts(40, 0))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    numbers = rows.replace("low", "1").replace("high", "2")
    (tmp_path / "numbers.csv").write_text(f"text,label\n{numbers}")
    for name, kind in (("train.csv", "class"), ("numbers.csv", "number")):
        config = recipe(source, steps=4, seeds=1, task=TaskConfig(path=str(tmp_path / name), kind=kind))
        config = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e30))
        with pytest.raises(UserError, match="outputs .* are not finite numbers.*lower optimizer.learning_rate"):
            finetune(config, tmp_path / kind)


def check_sections(run, found) -> None:
    """The report of two seeds that were evaluated twice, and classes; `found` is results.json."""
    page = Page((run / "report.html").read_text())
    headings = [title for title in page.texts if title in ("Seeds", "Confusion matrix", "The worst mistakes", "Held-out rows")]
    assert headings == ["Seeds", "Confusion matrix", "The worst mistakes", "Held-out rows"]
    assert ("svg", "aria-label", "accuracy of each seed") in page.attributes
    best = found["scores"]["dev"][str(found["best_seed"])]["accuracy"]
    matrix = page.texts[page.texts.index("Confusion matrix") : page.texts.index("The worst mistakes")]
    assert sum(int(text) for text in matrix if text.isdigit()) == 51
    assert page.texts.count("gold ") == round(51 * (1 - best)) and "<b>w1</b> w2 w3 w4 w5" in page.texts
    assert {f"{best:.4f}", f"{found['summary']['dev']['accuracy']['deviation']:.4f}"} <= set(page.texts)


def test_a_table_of_ones_own_with_two_seeds(source, tmp_path, capsys):
    for name, count in (("train", 200), ("dev", 50), ("test", 20)):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"] if name != "test" else ["text"])
            table.writerows(row if name != "test" else row[:1] for row in texts(count, len(name)))
            if name == "dev":
                table.writerow(("<b>w1</b> w2 w3 w4 w5", "high"))  # a mistake that every model should make
    config = recipe(source, task=TaskConfig(path=str(tmp_path)), row_lengths=2)
    config = dataclasses.replace(config, eval=EvalConfig(every_steps=20, max_rows=0))
    result = finetune(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert "anew: classification" in said and "(median of 2 seeds; mean" in said
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    scores = {seed: values["accuracy"] for seed, values in found["scores"]["dev"].items()}
    assert set(scores) == {"0", "1"} and found["best_seed"] == max((0, 1), key=lambda seed: scores[str(seed)])
    assert found["summary"]["dev"]["accuracy"]["mean"] == pytest.approx(np.mean(list(scores.values())))
    assert result.metrics["eval/accuracy"] == pytest.approx(np.median(list(scores.values())))
    assert min(scores.values()) > 0.9
    check_sections(tmp_path / "run", found)
    lines = (tmp_path / "run" / "predictions" / "test.tsv").read_text().splitlines()
    assert lines[0] == "id\tprediction" and len(lines) == 21
    wanted = [label for _, label in texts(20, len("test"))]
    assert np.mean([line.split("\t")[1] == label for line, label in zip(lines[1:], wanted, strict=True)]) > 0.8

    model = formats.read(str(tmp_path / "run" / "model"))
    assert model.task == "classification" and model.about["labels"] == ["high", "low"] and model.about["task"]["kind"] == "class"
    batch = electra_jax.encode([" ".join(WORDS[:5]), " ".join(WORDS[30:35])], model.tokenizer, 24)
    logits = electra_jax.task_apply(jax.tree.map(np.asarray, model.params), dataclasses.replace(model.config), batch, "classification")
    assert np.argmax(logits, axis=1).tolist() == [1, 0]

    litter = [tmp_path / "run" / name for name in (".model.0a.tmp/checkpoints", ".results.json.0a.tmp", "predictions/.test.tsv.0a.tmp")]
    for path in litter:  # as a kill leaves it
        path.mkdir(parents=True) if path.name == "checkpoints" else path.touch()
    again = finetune(config, tmp_path / "run")  # complete: evaluated, and the same left
    assert not any(path.exists() for path in litter) and not list((tmp_path / "run").rglob(".*.tmp"))
    assert again.metrics == result.metrics and json.loads((tmp_path / "run" / "results.json").read_text()) == found
    with pytest.raises(UserError, match="seeds: 2 -> 3"):
        finetune(dataclasses.replace(config, seeds=3), tmp_path / "run")
    assert completed.ensure(config, tmp_path / "run") == found  # reads the model and the examples again
    (tmp_path / "test.csv").write_text("text\n" + "w1 w2\n" * 5)  # another test set: no more than its predictions are made
    assert completed.ensure(config, tmp_path / "run")["scores"] == found["scores"]
    assert len((tmp_path / "run" / "predictions" / "test.tsv").read_text().splitlines()) == 6
    (tmp_path / "test.csv").unlink()  # of a test set that is gone, the predictions go
    assert completed.ensure(config, tmp_path / "run")["scores"] == found["scores"]
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == ["dev.tsv"]
    with open(tmp_path / "dev.csv", "a") as file:
        file.write("w1 w2,low\n")
    with pytest.raises(UserError, match=f"the examples in {tmp_path} have changed since .*run was made of them"):
        completed.ensure(config, tmp_path / "run")


@pytest.mark.slow
def test_a_mesh_of_pmap(source, tmp_path):
    """The run's arrays come from a mesh that pmap makes, and it is complete nevertheless."""
    rows = "".join(f"{text},{label}\n" for text, label in texts(60, 0))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    config = recipe(source, steps=2, seeds=1, task=TaskConfig(path=str(tmp_path / "rows.csv")))
    config = dataclasses.replace(config, parallel=ParallelConfig(executor="pmap"))
    finetune(config, tmp_path / "run")
    assert formats.read(str(tmp_path / "run")).task == "classification"


def test_tags_and_what_was_cut_off(source, tmp_path):
    """A word of the second half is an entity of one word; sentences of more than 22 pieces lose their end."""
    r = random.Random(0)
    lines = []
    for _ in range(150):
        words = [r.choice(WORDS) for _ in range(r.randrange(3, 30))]
        lines += [f"{word} {'B-X' if WORDS.index(word) >= 20 else 'O'}" for word in words] + [""]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.conll").write_text("\n".join(lines) + "\n")
    task = TaskConfig(path=str(tmp_path), kind="tags", format="columns")
    result = finetune(recipe(source, steps=90, seeds=1, task=task), tmp_path / "run")
    assert 0.85 < result.metrics["eval/f1"] < 1.0  # what was cut off is O, and wrong
    predicted = (tmp_path / "run" / "predictions" / "dev.conll").read_text().split("\n\n")
    assert len(predicted) == 151 and all(len(line.split()) == 3 for line in predicted[0].split("\n"))
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert {"Confusion matrix", "X", "none"} <= set(page.texts) and "Seeds" not in page.texts


def test_what_is_cut_is_told(source, tmp_path):
    model = formats.read(str(source))
    (tmp_path / "train.csv").write_text("text,label\nw1 w2 w3 w4,a\nw1,b\n")
    (tmp_path / "dev.csv").write_text("text,label\nw1 w2,a\n")
    (tmp_path / "train.conll").write_text("w1 O\nw2 O\nw3 B-X\n")
    (tmp_path / "dev.conll").write_text("w1 O\nw2 O\nw3 B-X\nw4 O\n")
    for options, told in (
        ({"train": "train.csv", "dev": "dev.csv"}, ["train: 1 of 2 texts"]),
        ({"train": "train.conll", "dev": "dev.conll", "kind": "tags"}, ["train: 1 of 1 sentences", "dev: 1 of 1 sentences"]),
    ):
        task = TaskConfig(path=str(tmp_path), **options)
        assert training.read(task, FinetuneConfig(length=8), model.config, model.tokenizer).notes == []
        notes = training.read(task, FinetuneConfig(length=4), model.config, model.tokenizer).notes
        assert notes == [f"{each} were too long for rows of 4 tokens, and lost their end" for each in told]


@pytest.mark.parametrize("head", ["joint_answer", pytest.param("question_answering", marks=pytest.mark.slow)])
def test_answers(head, source, tmp_path):
    """The answer is the word o'clock, which stands in two thirds of the contexts."""
    r = random.Random(1)
    paragraphs = []
    for number in range(60):
        words = [r.choice(WORDS) for _ in range(12)]
        place, impossible = r.randrange(12), number % 3 == 0
        if not impossible:
            words[place] = "o'clock"
        context = " ".join(words)
        answers = [] if impossible else [{"text": "o'clock", "answer_start": context.index("o'clock")}]
        question = {"id": str(number), "question": "w1 w2", "answers": answers, "is_impossible": impossible}
        paragraphs.append({"context": context, "qas": [question]})
    for name in ("train", "dev"):
        (tmp_path / f"{name}-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    task = TaskConfig(name="squad2", path=str(tmp_path))
    config = recipe(source, steps=80, seeds=1, task=task, head=head, no_answer_threshold=0.0)
    config = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, length=68))
    with pytest.raises(UserError, match="finetune.length is 68 and the model has 64 positions"):
        finetune(config, tmp_path / head)
    assert not (tmp_path / head).exists()
    model = formats.read(str(source))
    longer = dataclasses.replace(model.config, max_length=80)
    tiny.save(tmp_path / "longer", model.tokenizer, longer)
    result = finetune(dataclasses.replace(config, init_from=str(tmp_path / "longer")), tmp_path / head)
    assert result.metrics["eval/HasAns_exact"] > 0.9 and result.metrics["eval/exact"] > 0.6
    answers = json.loads((tmp_path / head / "predictions" / "dev.json").read_text())
    assert len(answers) == 60 and "o'clock" in answers.values()
    page = Page((tmp_path / head / "report.html").read_text())
    assert ("The worst mistakes" in page.texts) == (result.metrics["eval/exact"] < 1.0)


@pytest.mark.parametrize("pooler_slot, last, first, of_embeddings", [(False, 0.8, 0.8**12, 0.8**13), (True, 0.8**2, 0.8**13, 0.8**14)])
def test_layer_wise_rates(pooler_slot, last, first, of_embeddings):
    """recipe of google-research/electra for small, 12 layers: the embeddings at 0.8**14 of the rate, the last layer at 0.64."""
    config = FinetuneConfig(layer_decay=0.8, pooler_slot=pooler_slot)
    (layers, factors), (embeddings, factor) = rates.by_layer(OptimizerConfig(), config, "discriminator", 12).rates
    assert factors[-1] == pytest.approx(last) and factors[0] == pytest.approx(first) and len(factors) == 12
    assert factor == pytest.approx(of_embeddings) and layers == "^discriminator/layers/" and "project" in embeddings


def test_rates_of_ones_own_take_precedence():
    """The first expression that matches a parameter is the one that counts."""
    mine = (("^embeddings/", 0.0),)
    assert rates.by_layer(OptimizerConfig(rates=mine), FinetuneConfig(), "discriminator", 2).rates[:1] == mine


def test_steps_epochs_and_warm_up(source):
    config = dataclasses.replace(recipe(source), given=frozenset()).of_rows(steps=780, length=128, head="classification")
    assert (config.train.steps, config.schedule.warmup_steps, config.finetune.length) == (780, 78, 128)
    assert config.finetune.no_answer_threshold == -2.75
    assert recipe(source).of_rows(780, 128, "question_answering").train.steps == 40
    assert config.of_rows(780, 128, "joint_answer").finetune.no_answer_threshold == -2.75
    open_ = dataclasses.replace(recipe(source), given=frozenset())
    assert open_.of_rows(780, 128, "question_answering").finetune.no_answer_threshold == 0.0
    shorter = dataclasses.replace(open_, schedule=ScheduleConfig(0, decay_steps=500))  # the warm-up is a share of the decay
    assert shorter.of_rows(780, 128, "classification").schedule.warmup_steps == 50


def test_what_guessing_the_commonest_class_gives():
    rows = {split: [Example("", ("",), label, "") for label in labels] for split, labels in (("train", "0110110"), ("dev", "0010"))}
    assert results.reference(TASKS["sst2"], rows["train"], rows["dev"]) == {"eval/naive": 0.25}
    assert results.reference(TASKS["cola"], rows["train"], rows["dev"]) == {}  # Matthews' correlation of a guess is 0


def test_seeds_that_leave_devices_idle_are_told_of(source, tmp_path):
    rows = "".join(f"{text},{label}\n" for text, label in texts(60, 0))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    of = {seeds: recipe(source, seeds=seeds, task=TaskConfig(path=str(tmp_path / "rows.csv"))) for seeds in (3, jax.device_count())}
    some, all_ = (training.open_work(each, tmp_path / "scratch").about["notes"] for each in of.values())
    assert some[-1] == f"3 of {jax.device_count()} devices train, each 1 of the seeds: with seeds={jax.device_count()} all would"
    assert not any("devices train" in line for line in all_)


def test_the_last_seed_is_one_too(source):
    assert dataclasses.replace(recipe(source), seed=2**32 - 2).seeds == 2
    with pytest.raises(UserError, match=r"seed is 4294967295: with seeds=2 it must be at most 2\*\*32 - 2"):
        dataclasses.replace(recipe(source), seed=2**32 - 1)


@pytest.mark.parametrize("field, value", [("epochs", math.inf), ("no_answer_threshold", math.nan)])
def test_what_is_no_number_is_refused(field, value):
    with pytest.raises(UserError, match=f"finetune.{field} is {value}: it must be a number"):
        FinetuneConfig(**{field: value})


@pytest.mark.parametrize("one, other", [("train.steps", "finetune.epochs"), ("schedule.warmup_steps", "finetune.warmup_share")])
def test_a_length_is_given_once(one, other):
    with pytest.raises(UserError, match=f"{one} and {other} say the same: leave one of them out"):
        FinetuneRecipe.parse(configs.get_config("cola"), (one, other))


def test_every_task_has_a_config():
    for task in configs.TASKS:
        assert FinetuneRecipe.parse(configs.get_config(task)).task.name == task
    faithful = FinetuneRecipe.parse(configs.get_config("squad2,faithful"))
    kept = {field.name for field in dataclasses.fields(FinetuneConfig) if getattr(faithful.finetune, field.name) != field.default}
    assert {"pooler_slot", "sum_over_batch", "answerable_by_question", "cut_by_word_count", "one_shuffle"} <= kept
    assert faithful.schedule.product and not faithful.optimizer.bias_correction


def test_what_is_left_open_has_its_type_when_it_is_given():
    config = configs.get_config("squad2")
    config.finetune.no_answer_threshold = -1.5
    config.finetune.both_orders = True
    assert FinetuneRecipe.parse(config).finetune.no_answer_threshold == -1.5
    with pytest.raises(TypeError):
        config.finetune.no_answer_threshold = "none"


def test_the_second_type_begins_as_the_first_where_pretraining_had_one(source):
    model = formats.read(str(source))
    train = rows.Rows([np.zeros(4, np.int32)], [np.array([0, 0, 1, 1], np.int32)], [np.int32(0)], None, (), np.zeros(1, np.int32))
    dense = dataclasses.replace(model, about={**model.about, "data": [{"packing": "dense"}, {"packing": "dense"}]})
    params, said = training._first_params(dense, False, train, TASKS["rte"])
    word, kind = params["embeddings"]["word"], params["embeddings"]["type"]
    np.testing.assert_array_equal(kind, np.repeat(model.params["embeddings"]["type"][:1], 2, axis=0))
    assert word is model.params["embeddings"]["word"] and "whose vector the second type begins with" in said[0]
    single = train._replace(types=[np.zeros(4, np.int32)])
    pairs = dataclasses.replace(model, about={**model.about, "data": [{"packing": "dense"}, {"packing": "pairs"}]})
    tuned = dataclasses.replace(dense, about={**dense.about, "task": {"kind": "class"}})
    for source_, rows_ in ((model, train), (pairs, train), (tuned, train), (dense, single)):
        assert training._first_params(source_, False, rows_, TASKS["rte"])[0] is source_.params
    assert training._first_params(dense, True, train, TASKS["rte"])[0] == {}


def test_from_a_fine_tuned_workdir(source, tmp_path, capsys):
    """As RTE begins with MNLI's model: the encoder is taken over, the head of another task is not, that of the same task is."""
    for name, suffix in (("two", ""), ("four", "er")):
        (tmp_path / name).mkdir()
        rows = [(text, label + suffix * (number % 2)) for number, (text, label) in enumerate(texts(200, 1))]
        (tmp_path / name / "train.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    first = recipe(source, steps=4, task=TaskConfig(path=str(tmp_path / "four")))
    finetune(first, tmp_path / "first")
    before = formats.read(tmp_path / "first").params
    assert before["classification"]["out"]["bias"].shape == (4,)

    def begun(recipe):
        work = training.open_work(recipe, tmp_path)
        return work.begin(work.parts.abstract_state)

    found, said = begun(recipe(tmp_path / "first", steps=1, task=TaskConfig(path=str(tmp_path / "two"))))
    assert said[1].endswith("23 of 25 arrays taken over; anew: classification")
    np.testing.assert_array_equal(found["params/embeddings/word"], before["embeddings"]["word"])
    found, said = begun(recipe(tmp_path / "first", steps=1, task=TaskConfig(path=str(tmp_path / "four"))))
    assert said[1].endswith("25 of 25 arrays taken over; anew: nothing")
    np.testing.assert_array_equal(found["params/classification/out/bias"], before["classification"]["out"]["bias"])
    (tmp_path / "first" / "model").rename(tmp_path / "away")
    with pytest.raises(UserError, match="its fine-tuning is not complete"):
        begun(recipe(tmp_path / "first", steps=1, task=TaskConfig(path=str(tmp_path / "two"))))


@pytest.mark.parametrize("length", [1, 3])
def test_a_row_holds_its_special_tokens(length):
    with pytest.raises(UserError, match=f"finetune.length is {length}: it must be at least 4"):
        FinetuneConfig(length=length)


def test_mistakes_are_one_line(source, tmp_path):
    (tmp_path / "mine.csv").write_text("text,label\nw1 w2,a\nw3 w4,b\n" * 30)
    good = TaskConfig(path=str(tmp_path / "mine.csv"))
    with pytest.raises(UserError, match="init_from is missing"):
        finetune(dataclasses.replace(recipe("", task=good), init_from=""), tmp_path / "run")
    other = dataclasses.replace(recipe(source, task=good), given=frozenset(("model.num_layers",)))
    with pytest.raises(UserError, match="model.num_layers follows from the model"):
        finetune(other, tmp_path / "run")
    (tmp_path / "mine.conll").write_text("w1 O\n\nw2 B-X\n\n" * 30)
    tagged = TaskConfig(path=str(tmp_path / "mine.conll"), dev="mine.conll", kind="tags")
    for head, task in (("token_classification", good), ("joint_answer", good), ("classification", tagged)):
        task = dataclasses.replace(task, dev=task.dev or "mine.csv")
        with pytest.raises(
            UserError, match=f"finetune.head is '{head}', and mine.* has the kind {task.kind}: choose from .*_classification"
        ):
            finetune(recipe(source, task=task, head=head), tmp_path / "run")
    with pytest.raises(UserError, match="finetune.both_orders is for pairs of texts, and mine.* has the kind tags: leave it out"):
        finetune(recipe(source, task=tagged, both_orders=True, steps=1, seeds=1), tmp_path / "run")
    some = dataclasses.replace(recipe(source, task=good), given=frozenset(("eval.max_rows",)), eval=EvalConfig(max_rows=10))
    with pytest.raises(UserError, match="eval.max_rows is for pretraining, and fine-tuning is scored on the whole dev set: leave it out"):
        finetune(some, tmp_path / "run")
    some = dataclasses.replace(recipe(source, task=good), given=frozenset(("eval.mask_rate",)), eval=EvalConfig(mask_rate=0.2))
    with pytest.raises(UserError, match="eval.mask_rate is for pretraining: leave it out"):
        finetune(some, tmp_path / "run")
    with pytest.raises(UserError, match="no such file|not in"):
        finetune(recipe(source, task=TaskConfig(name="cola", path=str(tmp_path))), tmp_path / "run")
    assert not (tmp_path / "run").exists()
