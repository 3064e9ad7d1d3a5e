"""Fine-tunes a model on a task. The same command, given again, goes on from the last checkpoint.

    python launch/finetune.py --config=configs/finetune.py:sst2 --workdir=runs/sst2 --config.init_from=runs/small --config.task.path=GLUE

configs/finetune.py lists the tasks. A complete run leaves model/ (the best seed's), results.json, predictions/ and report.html in its
workdir. Exit codes: 0 done, 2 something to mend (one line says what), 42 stopped and saved: run the same command again.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch()
from absl import flags

from electra_jax import cli
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.parallel import cluster

CONFIG = FinetuneRecipe.flag("configs/finetune.py:own")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives: config, checkpoints, metrics, models, report.", required=True)
SCRATCH = flags.DEFINE_string("scratch", None, "Where local copies of gs:// folders lie; by default among the temporary files.")
connected = cluster.define_flags()


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    from electra_jax.finetune.training import finetune
    from electra_jax.parallel import multihost

    with connected():
        result = finetune(FinetuneRecipe.parse(CONFIG.value, FinetuneRecipe.flags_of(sys.argv)), WORKDIR.value, SCRATCH.value)
        if multihost.is_lead():
            print(f"done: {result.steps:,} steps; {result.report} shows the curves. To use it:")
            print(f"  python launch/predict.py --model={WORKDIR.value} --input=FILE --output=FILE")


if __name__ == "__main__":
    cli.run(main, more_help=FinetuneRecipe.help_lines)
