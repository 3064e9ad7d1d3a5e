"""Fine-tuning, on one page. The argument is a task, followed by variants. Every field can be overridden, and is typed and checked.

    python launch/finetune.py --config=configs/finetune.py:cola --workdir=runs/cola --config.init_from=runs/small --config.task.path=GLUE
    python launch/finetune.py --config=configs/finetune.py:own --workdir=runs/mine --config.init_from=runs/small \\
        --config.task.path=mine.csv --config.task.text_columns="('text',)" --config.seeds=5

Tasks: cola sst2 mrpc stsb qqp mnli qnli rte wnli ax (GLUE), squad1 squad2, conll2003 conll2000 wnut17 ud, and `own`: a table or a CoNLL
file of yours, which config.task describes. config.task.path is the folder of the task's files, or of several tasks' folders, or tfds:.

The settings are the published ones (google-research/electra `configure_finetuning.py`; paper, table 7): 32 rows per step; 3 epochs (RTE
and STS-B 10, SQuAD 2); a learning rate that rises over the first tenth of the steps and then falls linearly to 0; AdamW with a peak rate
of 3e-4 (small) and no weight decay; each layer's rate is .8 of that of the layer above. For base, set
--config.optimizer.learning_rate=1e-4; for large 5e-5 and --config.finetune.layer_decay=0.9.

Variants: `faithful` keeps the defects of the published code, which are mended by default. Each is a field (docs/finetuning.md lists them).
Where this code and the paper name different values, it also takes the code's: a rate of 1e-4 and a weight decay of 0.01.
"""

from ml_collections import ConfigDict

from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import OWN, TASKS
from electra_jax.options import parse_arg
from electra_jax.store.config import CheckpointConfig
from electra_jax.train.config import EvalConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from electra_jax.watch.config import LogConfig

VARIANTS = ("faithful",)
FAITHFUL = FinetuneConfig(
    row_lengths=1,
    pooler_slot=True,
    sum_over_batch=True,
    one_shuffle=True,
    answerable_by_question=True,
    match_lowered_answers=True,
    answers_by_words=True,
    cut_by_word_count=True,
    lower_tagged_words=True,
    tags_type=1,
    published_tag_scores=True,
)


def get_config(arg: str | None = None) -> ConfigDict:
    task, variants = parse_arg(arg, presets=(*TASKS, OWN), default=OWN, flags=VARIANTS)
    faithful = "faithful" in variants
    return FinetuneRecipe(
        preset=arg or OWN,
        optimizer=OptimizerConfig(
            learning_rate=1e-4 if faithful else 3e-4, weight_decay=0.01 if faithful else 0.0, bias_correction=not faithful
        ),
        schedule=ScheduleConfig(warmup_steps=0, product=faithful),
        train=TrainConfig(steps=1_000, batch_rows=32),
        log=LogConfig(every_steps=10),
        eval=EvalConfig(every_steps=0, max_rows=0),
        checkpoint=CheckpointConfig(every_steps=500, keep=1),
        task=TaskConfig(name=task),
        finetune=FAITHFUL if faithful else FinetuneConfig(),
    ).config()
