"""Compares objectives, optimizers or sizes at equal compute: a table and a figure.

    python launch/compare.py --config=configs/pretrain.py:tiny --config.data.path=data/mine --workdir=runs/compare --flops=2e13 --seeds=3 \\
        --entry=electra --entry='mlm 40%: mlm masking.rate=0.4' --pairs=BLiMP.zip --data=../shared/data --tasks=cola,sst2,conll2000

An entry is a variant of the config (an objective), fields of it, or both. Each is pretrained to the same budget of FLOPs with each seed,
scored on the pairs, and fine-tuned on tasks of configs/transfer.py. The same command, given again, goes on where it stopped. Exit codes: 0
done, 2 something to mend (one line says what), 42 stopped and saved: run it again.
"""

import os
import runpy
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli
from electra_jax.recipe import Recipe

CONFIG = Recipe.flag("configs/pretrain.py:tiny")
ENTRIES = flags.DEFINE_multi_string("entry", [], "NAME: VARIANT SECTION.FIELD=VALUE ...; give the flag once per entry.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs, table.md and figure.svg are.", required=True)
FLOPS = flags.DEFINE_list("flops", None, "The budget of a run, or several: each entry is trained to each.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds of pretraining, from --config.seed on.", lower_bound=1)
PAIRS = flags.DEFINE_string("pairs", None, "Minimal pairs: BLiMP's zip, or a folder of its files.")
TASKS = flags.DEFINE_list("tasks", [], "Tasks of configs/transfer.py to fine-tune on.")
DATA = flags.DEFINE_string("data", None, "The folder with the tasks' folders.")
FINETUNE = flags.DEFINE_string("finetune", "", "Fields of every task, 'SECTION.FIELD=VALUE ...', such as 'seeds=3 train.steps=300'.")
RATES = flags.DEFINE_list("rates", ["3e-4", "1e-3", "3e-3"], "Learning rates of fine-tuning to choose from, for each run and task.")


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    from configs import finetune, transfer
    from electra_jax.compare import command, entries
    from electra_jax.finetune.recipe import FinetuneRecipe

    file, _, argument = flags.FLAGS["config"].config_filename.partition(":")
    get_config, given = runpy.run_path(file)["get_config"], Recipe.values_of(CONFIG.value, sys.argv)
    tasks, of_tasks = transfer.get_tasks(DATA.value or ""), entries.fields_of(FINETUNE.value, "--finetune")

    def recipe_of(entry, fields):
        return Recipe.of(get_config(",".join([argument, *entry.variants])), {**given, **entry.fields, **fields})

    def task_recipe_of(name, fields):
        argument, values = tasks[name]
        return FinetuneRecipe.of(finetune.get_config(argument), {**values, **of_tasks, **fields})

    chosen, budgets = command.tasks(TASKS.value, tasks, DATA.value, RATES.value, task_recipe_of), command.budgets(FLOPS.value)
    print(command.compare(entries.parse_all(ENTRIES.value), recipe_of, WORKDIR.value, budgets, SEEDS.value, PAIRS.value, chosen), end="")


if __name__ == "__main__":
    cli.run(main, more_help=Recipe.help_lines)
