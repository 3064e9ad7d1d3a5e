"""Each defect of the published code that `faithful` keeps, seen where it acts: in the batches, the step and the scores of a run.

What a rule does in every case is tested beside its function (test_features.py, test_answers.py, test_nbest.py, test_tag_metrics.py,
test_batches.py); here stands that its field of the config reaches it.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune as configs
from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.finetune import opening, tasks, training
from electra_jax.finetune import rows as task_rows
from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.examples import Example
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.rng import StepRng
from electra_jax.session import Work
from electra_jax.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from tests import tiny
from tests.tiny import WORDS

ROWS, UNK = 16, 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of one layer with a cased vocabulary, and the files of a task of each kind."""
    folder = tmp_path_factory.mktemp("faithful")
    tokenizer = WordPiece([*SPECIALS, "no", "(", ")", *WORDS], lower_case=False)
    config = tiny.model(vocab_size=tokenizer.vocab_size, max_length=80)
    tiny.save(folder / "model", tokenizer, config)
    for split in ("train", "dev"):
        for kind in ("class", "tags", "answer"):
            (folder / kind).mkdir(exist_ok=True)
        rows = [f"{' '.join(WORDS[: 1 + number % 20])},{'ab'[number % 2]}" for number in range(48)]
        (folder / "class" / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    sentences = [[(word, "O") for word in WORDS[:12]], [("W1", "B-X"), ("W2", "I-X"), ("w3", "I-X"), ("w4", "B-Y")]]
    write_tags(folder / "tags" / "train.conll", sentences)
    write_tags(folder / "tags" / "dev.conll", [[(word, "B-X" if place in (0, 25) else "O") for place, word in enumerate(WORDS[:30])]])
    (folder / "words").mkdir()
    write_tags(folder / "words" / "train.conll", [[("w1", "A"), ("w2", "N"), ("w3", "V")]])
    write_tags(folder / "words" / "dev.conll", [[(word, "N") for word in WORDS[:30]]])
    long = " ".join(["w1", "w2", *WORDS, *WORDS])
    questions = {
        "train-v2.0.json": [
            (long, "w1 w2", 0),  # two windows, the second without the answer
            (long, None, 0),
            ("w1 w2\xa0w3 w4", "w2\xa0w3", 3),  # the published words keep this space, and the answer's lose it
            ("w1 no-no w2", "no", 6),
        ],
        "dev-v2.0.json": [("w1 no-no w2", "no", 3)],
    }
    for name, asked in questions.items():
        (folder / "answer" / name).write_text(squad(asked))
    return folder


def write_tags(path, sentences) -> None:
    path.write_text("\n\n".join("\n".join(" ".join(pair) for pair in sentence) for sentence in sentences) + "\n")


def squad(asked) -> str:
    paragraphs = []
    for number, (context, answer, start) in enumerate(asked):
        answers = [{"text": answer, "answer_start": start}] if answer else []
        question = {"id": str(number), "question": "w5 w6", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": context, "qas": [question]})
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})


TASKS = {
    "class": TaskConfig(),
    "tags": TaskConfig(kind="tags", format="columns"),
    "words": TaskConfig(kind="tags", format="columns", tag_scheme="tokens"),
    "answer": TaskConfig(name="squad2"),
}


def opened(files, kind: str, seed: int = 0, seeds: int = 1, **fields) -> Work:
    """What a session runs, of a recipe with these fields of FinetuneConfig."""
    recipe = FinetuneRecipe(
        preset="own",
        seed=seed,
        seeds=seeds,
        init_from=str(files / "model"),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=0),
        train=TrainConfig(steps=3, batch_rows=ROWS),
        task=dataclasses.replace(TASKS[kind], path=str(files / kind)),
        finetune=FinetuneConfig(length={"answer": 68, "class": 32}.get(kind, 24), **fields),
        given=frozenset(("train.steps",)),
    )
    return training.open_work(recipe, files / "scratch")


def epoch(work: Work) -> list:
    steps = -(-work.num_rows // ROWS)
    return list(itertools.islice(work.batches(0, np.arange(work.parts.batch_rows)), steps))


def trained_rows(work: Work, field: str) -> list[np.ndarray]:
    """This field of all rows of an epoch, without padding where it has some."""
    found = []
    for batch in epoch(work):
        values, real = np.asarray(getattr(batch, field)), np.asarray(batch.segments) > 0
        found += [row[real[b]] if row.shape == real[b].shape else row for b, row in enumerate(values) if real[b, 0]]
    return found


def held_out_rows(work: Work, field: str) -> list[np.ndarray]:
    return [getattr(batch, field)[b][batch.segments[b] > 0] for batch, valid in work.heldout for b in np.flatnonzero(valid)]


def rate_of_embeddings(work: Work) -> float:
    """As a share of the head's, in the first update."""
    params = {"embeddings": {"word": jnp.ones(1)}, "classification": {"out": {"kernel": jnp.ones(1)}}}
    updates, _ = work.parts.rule.update(params, work.parts.rule.init(params), params, step=jnp.int32(0))
    return float(updates["embeddings"]["word"][0] / updates["classification"]["out"]["kernel"][0])


def denominator(work: Work) -> float:
    """What the step divides the loss by, or 1 where it is less."""
    rng = StepRng(tiny.ROOT, jnp.int32(0))
    return float(work.parts.objective.plan(epoch(work)[0], rng, True)[1]["task"])


def spans(work: Work) -> set:
    """Of the answers that are learned."""
    return {(int(start), int(end)) for start, end, _ in trained_rows(work, "labels")}


def orders_are_equal(work: Work) -> bool:
    """Of the two seeds."""
    return all(np.array_equal(*np.split(batch.tokens, 2)) for batch in epoch(work))


def rows_and_what_is_said(work: Work) -> tuple[int, int]:
    return work.num_rows, sum("1 training questions are left out" in note for note in work.about["notes"])


def longest(work: Work) -> tuple[int, int]:
    return max(map(len, trained_rows(work, "tokens"))), max(map(len, held_out_rows(work, "tokens")))


def types(work: Work) -> set[int]:
    return {int(each) for rows in (trained_rows(work, "types"), held_out_rows(work, "types")) for row in rows for each in row}


def lengths(work: Work) -> tuple[set, set]:
    return {batch.tokens.shape[1] for batch in epoch(work)}, {batch.tokens.shape[1] for batch, _ in work.heldout}


def exact_match(work: Work) -> float:
    """Of a model that answers with the first `no` and the hyphen behind it, which this vocabulary has not. The right answer is `no`."""
    [row] = held_out_rows(work, "tokens")
    first = 5  # behind [CLS] w5 w6 [SEP] w1
    assert row[first] == row[first + 2] != row[first + 1] == UNK
    outputs = {"start": np.array([[first]]), "start_log_p": np.zeros((1, 1)), "no_answer": np.array([-9.0])}
    outputs |= {"end": np.array([[[first + 1]]]), "end_log_p": np.zeros((1, 1, 1)), "row": np.array([0])}
    return work.parts.objective.measure([outputs])["exact"]


def recall(work: Work, *tags: str) -> float:
    """Of a model that gives the dev set's first words these tags, and all others O. Right are S-X of the first word and of the 26th, which
    is not in the row any more."""
    labels = opening.open_task(work.recipe.task).task.labels
    called = np.full((1, 24), labels.index("O"), np.int32)
    called[0, 1 : 1 + len(tags)] = [labels.index(tag) for tag in tags]
    return work.parts.objective.measure([{"row": np.array([0]), "called": called, "log_p": np.zeros((1, 24))}])["recall"]


class Pair(NamedTuple):
    kind: str
    published: Any  # the value that `faithful` gives the field
    seen: Callable[[Work], Any]
    mended_is: Any  # what is seen by default
    published_is: Any
    seeds: int = 1


PAIRS = {
    "pooler_slot": Pair("class", True, rate_of_embeddings, pytest.approx(0.8**2), pytest.approx(0.8**3)),
    "sum_over_batch": Pair("class", True, denominator, ROWS, 0.0),
    "one_shuffle": Pair("class", True, orders_are_equal, False, True, seeds=2),
    "answerable_by_question": Pair("answer", True, lambda work: int(sum(each[2] for each in trained_rows(work, "labels"))), 3, 2),
    "match_lowered_answers": Pair("answer", True, rows_and_what_is_said, (6, 0), (5, 1)),
    "answers_by_words": Pair(
        "answer",
        True,
        lambda work: (spans(work), exact_match(work)),
        ({(0, 0), (4, 5), (5, 6), (7, 7)}, 1.0),
        ({(0, 0), (4, 5), (5, 6), (5, 5)}, 0.0),
    ),
    "cut_by_word_count": Pair("tags", True, longest, (14, 24), (11, 2)),
    "lower_tagged_words": Pair("tags", True, lambda work: sum(int((row == UNK).sum()) for row in trained_rows(work, "tokens")), 2, 0),
    "tags_type": Pair("tags", 1, types, {0}, {1}),
    "published_tag_scores": Pair("tags", True, lambda work: (recall(work, "S-X"), recall(work, "S-X", "E-X")), (0.5, 0.5), (1.0, 0.0)),
    "row_lengths": Pair("class", 1, lengths, ({8, 16, 24}, {8, 16, 24}), ({32}, {32})),
}


def test_each_defect_has_its_pair_and_faithful_keeps_it():
    names = [field.name for field in dataclasses.fields(FinetuneConfig)]
    assert set(PAIRS) == {*names[names.index("pooler_slot") :], "row_lengths"}
    kept = FinetuneRecipe.parse(configs.get_config("cola,faithful")).finetune
    mended = FinetuneRecipe.parse(configs.get_config("cola")).finetune
    for name, pair in PAIRS.items():
        assert getattr(kept, name) == pair.published != getattr(mended, name), name


@pytest.mark.parametrize("name", PAIRS)
def test_a_field_reaches_what_it_is_of(name, files):
    pair = PAIRS[name]
    assert pair.seen(opened(files, pair.kind, seeds=pair.seeds)) == pair.mended_is
    assert pair.seen(opened(files, pair.kind, seeds=pair.seeds, **{name: pair.published})) == pair.published_is


@pytest.mark.parametrize(("published", "accuracy"), [(False, 21 / 30), (True, 21 / 22)])
def test_words_that_were_cut_off_are_wrong_or_count_for_nothing(published, accuracy, files):
    """Of tags that are of no spans: 22 of 30 words are in the row, and one of them is called otherwise."""
    work = opened(files, "words", published_tag_scores=published)
    labels = opening.open_task(work.recipe.task).task.labels
    called = np.full((1, 24), labels.index("N"), np.int32)
    called[0, 1] = labels.index("V")
    measured = work.parts.objective.measure([{"row": np.array([0]), "called": called, "log_p": np.zeros((1, 24))}])
    assert measured["accuracy"] == pytest.approx(accuracy)


def test_where_all_words_were_cut_off_the_score_is_zero():
    task, cut = tasks.TASKS["conll2000"], task_rows.Prediction(("O", "O"), (0.0, 0.0), ())
    example = Example("0", ("a", "b"), ("B-NP", "O"), "")
    found = task_rows.KINDS["tags"].score(task, [example], [cut], FinetuneConfig(published_tag_scores=True))
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.0}


@pytest.mark.parametrize("one_shuffle", [False, True])
def test_a_seeds_order_does_not_depend_on_which_train_with_it(one_shuffle, files):
    together = epoch(opened(files, "class", seed=3, seeds=2, one_shuffle=one_shuffle))
    for place, seed in enumerate((3, 4)):
        alone = epoch(opened(files, "class", seed=seed, one_shuffle=one_shuffle))
        for batch, its in zip(together, alone, strict=True):
            np.testing.assert_array_equal(batch.tokens[place * ROWS :][:ROWS], its.tokens)
