"""Compiles a pretraining step for TPUs that are not there, and says whether it fits, what it moves and how long it may take.

    pip install '.[tpu]'        # libtpu, the TPU's compiler; no TPU is needed
    python launch/compile.py --config=configs/pretrain.py:base,flash --topology=v5e:4x4
    python launch/compile.py --config=configs/pretrain.py:large,flash --topology=v5e:4x4,v5p:2x2x4 --suggest
    python launch/compile.py --scale        # make scale: every preset, docs/scale.jsonl and the table of docs/scale.md

A compile takes minutes on a few cores; --effort=low gives about the same memory, and the collectives, in a fifth of the time.
Exit codes: 0 done and it fits, 2 something does not fit (and what to change) or is wrong.
"""

import json
import os
import pathlib
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, ROOT)
from electra_jax import interrupts

interrupts.catch()
from absl import flags

from electra_jax import cli
from electra_jax.recipe import Recipe

CONFIG = Recipe.flag("configs/pretrain.py:base,flash")
TOPOLOGY = flags.DEFINE_list("topology", ["v5e:4x4"], "TPU topologies: v5e:4x4, v5p:2x2x4, v6e:8x8, v4:2x2x4, 2*v5e:16x16 (slices) ...")
EFFORT = flags.DEFINE_enum("effort", "full", ["full", "low"], "The compiler's.")
SUGGEST = flags.DEFINE_bool("suggest", False, "Where it does not fit, try what may help and print the first change with which it does.")
JSON = flags.DEFINE_string("json", None, "Also append the results here, one JSON object a line.")
SCALE = flags.DEFINE_bool("scale", False, "Compile every preset for many topologies; what docs/scale.jsonl has already is skipped.")


def main(_):
    from electra_jax.offline import compile as offline
    from electra_jax.offline import scale, suggest

    if SCALE.value:
        scale.write_scale(pathlib.Path(ROOT, "configs", "pretrain.py"), pathlib.Path(ROOT, "docs"))
        return
    recipe, unfit = Recipe.parse(CONFIG.value), []
    if not TOPOLOGY.value:
        raise cli.UserError("--topology is empty: name one or more, such as --topology=v5e:4x4")
    with open(JSON.value or os.devnull, "a") as file:  # what cannot be written should be known before minutes of compiling
        for topology in TOPOLOGY.value:
            case = offline.Case(recipe, topology, EFFORT.value)
            result = offline.compile_for(case)
            print("\n".join(offline.lines(result)), flush=True)
            print(json.dumps(result), file=file, flush=True)
            if not result["fits"]:
                found = suggest.suggest(case, suggest.tell) if SUGGEST.value else None
                unfit.append(f"{topology}: {suggest.advice(case, result, found, SUGGEST.value)}")
    if unfit:
        raise cli.UserError("; ".join(unfit))


if __name__ == "__main__":
    cli.run(main, more_help=Recipe.help_lines)
