"""Pretrains ELECTRA on rows that launch/prepare.py made; the same command again goes on from the last checkpoint.

    python launch/pretrain.py --config=configs/pretrain.py:small --workdir=runs/small --config.data.path=data/mine

Both may lie in a bucket (pip install 'electra_jax[gcs]'): --workdir=gs://BUCKET/runs/small; several folders are a mixture: A,B.
The config file's own text lists the presets, what they cost and what to expect. Override any field: --config.train.batch_rows=64.
Several processes (hosts of a TPU pod, Slurm tasks) run the same command with --distributed, or, where no cluster says who is who,
with --coordinator=HOST:PORT --num_processes=N --process_id=0..N-1. launch/supervise.py before it starts it again after a loss.
Exit codes: 0 done, 2 something to mend (one line says what), 42 stopped and saved: run the same command again.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch()
from absl import flags

from electra_jax import cli
from electra_jax.parallel import cluster
from electra_jax.recipe import Recipe

CONFIG = Recipe.flag("configs/pretrain.py:small")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives: config, checkpoints, metrics, report.", required=True)
SCRATCH = flags.DEFINE_string("scratch", None, "Where local copies of gs:// folders lie; by default among the temporary files.")
connected = cluster.define_flags()


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    from electra_jax.parallel import multihost
    from electra_jax.pretrain import pretrain

    with connected():
        result = pretrain(Recipe.parse(CONFIG.value, Recipe.flags_of(sys.argv)), WORKDIR.value, SCRATCH.value)
        if multihost.is_lead():
            print(f"done: {result.steps:,} steps; {result.report} shows the curves. To use it (README, 'Models that are there already'):")
            print(f"  python launch/convert.py --from={WORKDIR.value} --to=exported     # for transformers; here: electra_jax.load")


if __name__ == "__main__":
    cli.run(main, more_help=Recipe.help_lines)
