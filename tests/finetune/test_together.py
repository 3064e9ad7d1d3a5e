"""Seeds that train together are the same runs as each alone, from the files of a task on: dropout off, in float64.

What the step does with several seeds, dropout and devices: tests/train/test_seeds.py.
"""

import dataclasses
import itertools
import random

import jax
import numpy as np
import pytest

from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.finetune import training
from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.interop import start
from electra_jax.train.config import EvalConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from tests import tiny
from tests.tiny import WORDS

pytestmark = pytest.mark.slow  # make kill; of the step alone tests/train/test_seeds.py is quick
STEPS, ROWS = 6, 8


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def files(tmp_path):
    r, tokenizer = random.Random(0), WordPiece([*SPECIALS, *WORDS])
    config = tiny.double(vocab_size=tokenizer.vocab_size, dropout=0.0, attention_dropout=0.0)
    tiny.save(tmp_path / "model", tokenizer, config)
    for name in ("train", "dev"):
        rows = [(" ".join(r.choices(WORDS, k=r.randrange(1, 22))), r.choice("ab")) for _ in range(45)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *map(",".join, rows)]) + "\n")
    return tmp_path


def trained(files, seed: int, seeds: int):
    """{seed: params} after STEPS steps, and the row lengths that they had."""
    recipe = FinetuneRecipe(
        preset="own",
        seed=seed,
        seeds=seeds,
        init_from=str(files / "model"),
        model=dataclasses.replace(tiny.double(), dtype="float64"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=0),
        train=TrainConfig(steps=STEPS, batch_rows=ROWS),
        eval=EvalConfig(batch_rows=16),
        task=TaskConfig(path=str(files)),
        finetune=FinetuneConfig(length=24, row_lengths=2),
        given=frozenset(("train.steps",)),
    )
    work = training.open_work(recipe, files / "scratch")
    parts = work.parts
    state = start.placed(parts.init(parts.root), work.begin(parts.abstract_state)[0])
    programs, lengths = parts.programs(), []
    for batch in itertools.islice(work.batches(0, np.arange(parts.batch_rows)), STEPS):
        program = programs.of(batch)
        state, _ = program.run(state, program.place(batch))
        lengths.append(batch.tokens.shape[1])
    return {number: jax.device_get(params) for number, params in zip(parts.seeds, parts.members(state), strict=True)}, lengths


def test_together_as_alone(files):
    together, lengths = trained(files, 3, 2)
    assert set(together) == {3, 4} and len(set(lengths)) == 2
    alone, its_lengths = trained(files, 4, 1)
    assert its_lengths == lengths

    def furthest(first, second) -> float:
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), first, second)))

    assert together[4]["embeddings"]["word"].dtype == np.float64
    assert furthest(together[4], alone[4]) < 1e-9 < 1e-3 < furthest(together[3], alone[4])
