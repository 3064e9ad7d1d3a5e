"""Measures the pretraining step beside PyTorch transformers', interleaved, and prints the table of docs/speed.md.

    make bench          # installs PyTorch and transformers into .venv first
    python launch/bench.py --preset=small --rounds=9
"""

import dataclasses
import importlib.util
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from absl import flags

from electra_jax import cli

PRESET = flags.DEFINE_enum("preset", "small", ["tiny", "small", "base"], "Which model.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Interleaved steps a side.", lower_bound=2)
COMPILED = flags.DEFINE_bool("compiled", True, "Measure torch.compile too (it needs a C++ compiler).")
JSON = flags.DEFINE_string("json", None, "Also write the figures here.")


def main(_):
    from electra_jax import bench

    sides = list(bench.SIDES)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("PyTorch and transformers are not installed (pip install 'electra_jax[parity]'): ours alone")
        sides = sides[:1]
    elif not COMPILED.value:
        sides = [side for side in sides if "compile" not in side]
    rows = bench.measure(PRESET.value, sides, ROUNDS.value)
    print(f"{PRESET.value}, {bench.BATCH_ROWS} rows of {bench.LENGTH}, float32, {os.cpu_count()} CPU cores, {bench.cpu_name()}\n")
    print(bench.table(rows))
    if JSON.value:
        with open(JSON.value, "w") as file:
            json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    cli.run(main)
