"""What a model is worth: fine-tunes it on the tasks of configs/transfer.py, each at the best of several rates; prints a table.

    python launch/transfer.py --name=tiny --checkpoint=runs/tiny --data=../shared/data --workdir=runs/transfer --rates=3e-4,1e-3,3e-3
    python launch/transfer.py --name='random tiny' --checkpoint=runs/tiny ... --config.finetune.from_scratch --config.finetune.layer_decay=1

The rate is chosen on a tenth of the training rows, with one seed. The same command, given again, goes on where it stopped. Exit codes:
0 done, 2 something to mend (one line says what), 42 stopped and saved: run the same command again.
"""

import os
import pathlib
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli, options
from electra_jax.finetune.recipe import FinetuneRecipe

CONFIG = FinetuneRecipe.flag("configs/finetune.py:own")
NAME = flags.DEFINE_string("name", None, "What the table calls the model.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The model: whatever init_from takes.", required=True)
DATA = flags.DEFINE_string("data", None, "The folder with the tasks' folders.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs are made.", required=True)
ROWS = flags.DEFINE_string("rows", None, "The file with the table's rows; unless given, rows.jsonl in the workdir.")
RATES = flags.DEFINE_list("rates", ["1e-4", "3e-4", "1e-3"], "Learning rates to choose from, by task.")
TASKS = flags.DEFINE_list("tasks", [], "The tasks to run; unless given, all of configs/transfer.py.")


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    from configs.finetune import get_config
    from configs.transfer import get_tasks
    from electra_jax.finetune import transfer

    if (preset := CONFIG.value.preset) != "own":
        raise cli.UserError(f"--config=configs/finetune.py:{preset}: the tasks are those of configs/transfer.py: override fields instead")
    tasks, given = get_tasks(DATA.value), FinetuneRecipe.values_of(CONFIG.value, sys.argv)
    for name in TASKS.value:
        options.one_of("--tasks", name, tasks)

    def recipe_of(name, fields):
        argument, values = tasks[name]
        return FinetuneRecipe.of(get_config(argument), {"init_from": CHECKPOINT.value, **values, **given, **fields})

    workdir = pathlib.Path(WORKDIR.value)
    rows = pathlib.Path(ROWS.value) if ROWS.value else workdir / "rows.jsonl"
    rates = transfer.rates_of(RATES.value)
    for row in transfer.run(recipe_of, workdir, rows, model=NAME.value, tasks=TASKS.value or list(tasks), rates=rates):
        print(f"{row['model']}, {row['title']}: {row['metric']} {row['median']:.3f}, rate {row['rate']:g}", file=sys.stderr, flush=True)
    print(transfer.table(transfer.read(rows)), end="")


if __name__ == "__main__":
    cli.run(main, more_help=FinetuneRecipe.help_lines)
