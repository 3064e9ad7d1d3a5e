"""Measures the pretraining step beside PyTorch transformers', interleaved, and prints the table of docs/speed.md.

    make bench          # installs PyTorch and transformers into .venv first
    python launch/bench.py --preset=small --rounds=9 --text=books.txt
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from absl import flags

from electra_jax import cli

PRESET = flags.DEFINE_enum("preset", "small", ["tiny", "small", "base"], "Which model.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Interleaved steps a side.", lower_bound=2)
COMPILED = flags.DEFINE_bool("compiled", True, "Measure torch.compile too (it needs a C++ compiler).")
TEXT = flags.DEFINE_string("text", None, "A .txt file: measures its preparation and feeding as well.")
DISPATCH = flags.DEFINE_bool("dispatch", False, "Only what each executor costs a call, on all devices.")
JSON = flags.DEFINE_string("json", None, "Also write the figures here.")


def main(_):
    from electra_jax import bench

    if DISPATCH.value:
        for name, millisecs in bench.measure_dispatch(PRESET.value, rounds=100).items():
            print(f"{name}: {millisecs:.2f} ms a call")
        return
    sides = list(bench.SIDES)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("PyTorch and transformers are not installed (pip install 'electra_jax[parity]'): ours alone")
        sides = sides[:1]
    elif not COMPILED.value:
        sides = [side for side in sides if "compile" not in side]
    rows = bench.measure(PRESET.value, sides, ROUNDS.value)
    print(f"{PRESET.value}, {bench.BATCH_ROWS} rows of {bench.LENGTH}, float32, {os.cpu_count()} CPU cores, {bench.cpu_name()}\n")
    print(bench.table(rows))
    if TEXT.value:
        with tempfile.TemporaryDirectory() as folder:
            prepared, alone, feed = bench.measure_data(pathlib.Path(TEXT.value), pathlib.Path(folder))
        share = bench.BATCH_ROWS * bench.LENGTH / 1e6 / feed / rows[0].cpu_secs
        print(f"\npreparation {prepared:.1f} MB a CPU-second; the Rust tokenizer alone {alone:.1f}")
        print(f"feeding shuffled rows of {bench.LENGTH}: {feed:.0f} M tokens a CPU-second, {share:.2%} of the step's")
    if JSON.value:
        with open(JSON.value, "w") as file:
            json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    cli.run(main)
