"""Converts models between our checkpoints, transformers' folders and Google's TF1 checkpoints; the formats are seen from what is there.

    python launch/convert.py --from=runs/mine --to=exported                # ours -> exported/discriminator, exported/generator
    python launch/convert.py --from=electra_small/ --to=imported           # Google's TF1 checkpoint -> ours, with Adam's slots if any
    python launch/convert.py --from=electra_small/ --to=hub --format=huggingface
    python launch/convert.py --from=disc_folder,gen_folder --to=imported   # two folders of transformers -> one model

Training on needs no conversion: launch/pretrain.py --config.init_from=PATH opens all of these.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli

FROM = flags.DEFINE_string("from", None, "A workdir, a step of it, a folder of transformers, a TF1 checkpoint; or A,B.", required=True)
TO = flags.DEFINE_string("to", None, "The folder to write: new, or empty.", required=True)
FORMAT = flags.DEFINE_enum("format", None, ["electra_jax", "huggingface"], "Of --to; by default huggingface from ours, else ours.")
NETWORK = flags.DEFINE_enum("network", None, ["discriminator", "generator"], "Only this one.")
SLOTS = flags.DEFINE_bool("slots", True, "Keep the optimizer's memory, where there is one and our own format is written.")
HEAD_SIZE = flags.DEFINE_integer("head_size", 64, "Of a TF1 checkpoint, which does not say.", lower_bound=1)


def main(_):
    from electra_jax.parallel import process

    process.prepare()
    process.require_devices()
    from electra_jax.interop import formats

    options = dict(format=FORMAT.value or "", network=NETWORK.value or "", head_size=HEAD_SIZE.value, with_slots=SLOTS.value)
    model = formats.convert(FROM.value, TO.value, **options)
    for note in model.notes:
        print(f"note: {note}")
    heads = [model.task] if model.task else []
    slots = ", with the optimizer's memory" if model.slots else ""
    print(f"wrote {TO.value}: {', '.join([*model.networks, *heads])}{slots}")


if __name__ == "__main__":
    cli.run(main)
