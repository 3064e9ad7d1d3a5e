"""GLUE as the paper shows it: fine-tunes a model on every task whose files are at hand; prints the medians beside the published ones.

    python launch/glue.py --checkpoint=runs/small --path=GLUE --workdir=runs/small-glue --seeds=5
    python launch/glue.py --checkpoint=runs/small --path=GLUE --workdir=runs/rte --tasks=cola,rte --config.optimizer.learning_rate=1e-4

Overrides (--config.SECTION.NAME=VALUE) and variants (--config=configs/finetune.py:own,faithful) hold for every task. The same command,
given again, goes on where it stopped. Exit codes: 0 done, 2 something to mend (one line says what), 42 stopped and saved: run it again.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli
from electra_jax.finetune.recipe import FinetuneRecipe

CONFIG = FinetuneRecipe.flag("configs/finetune.py:own")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The model to fine-tune: whatever init_from takes.", required=True)
PATH = flags.DEFINE_string("path", None, "The folder with a folder for each task (CoLA, SST-2 ...), or tfds:.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where a folder for each task's run is made, and the table.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds of each task train together.", lower_bound=1)
TASKS = flags.DEFINE_list("tasks", [], "The tasks to run, which the table and the uploads then have alone; unless given, all of GLUE.")


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    from configs.finetune import get_config
    from electra_jax.finetune import glue

    values = FinetuneRecipe.values_of(CONFIG.value, sys.argv)
    ours = {"init_from": CHECKPOINT, "seeds": SEEDS, "task.path": PATH}
    if double := [field for field in ours if field in values]:
        raise cli.UserError(f"--config.{double[0]} is --{ours[double[0]].name} here: say that")
    values |= {field: flag.value for field, flag in ours.items()}
    preset, *variants = CONFIG.value.preset.split(",")
    if preset != "own":
        raise cli.UserError(f"--config=configs/finetune.py:{preset}: --tasks={preset} says what is run: write own in its place")
    rows = []

    def recipe_of(name):
        return FinetuneRecipe.of(get_config(",".join([name, *variants])), values)

    for row in glue.run(recipe_of, WORKDIR.value, TASKS.value or glue.NAMES):
        rows.append(row)
        print(row.missing or f"{row.name}: {row.metric} {row.summary['median']:.3f}", file=sys.stderr, flush=True)
    print(glue.table(rows) + "\n" + "\n".join(glue.finish(WORKDIR.value, rows)))


if __name__ == "__main__":
    cli.run(main, more_help=FinetuneRecipe.help_lines)
