"""Measures us and the peers side by side, interleaved, on the device that is there, and writes the tables of docs/speed.md.

    make bench                                    # all of it, 20 to 40 minutes on a few cores
    python launch/bench.py --what=step --presets=small
    python launch/bench.py --text=books.txt --what=preparation,feeding --json=speed.json --docs=docs/speed.md

PyTorch, transformers and txtai are the peers: pip install 'electra_jax[bench]'; rows of those that are missing say so.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli

WHAT = flags.DEFINE_list(
    "what", [], "Of step, packed, preparation, feeding, startup, checkpoint, growth, parts, finetune, predict; unless given, all."
)
PRESETS = flags.DEFINE_list("presets", ["small", "small_pp", "base"], "Models of the step's tables.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each side; ratios are taken round by round.", lower_bound=1)
TEXT = flags.DEFINE_string("text", None, "A file of plain text for preparation and feeding; unless given, the demo's.")
JSON = flags.DEFINE_string("json", None, "Also write every turn's figures here.")
DOCS = flags.DEFINE_string("docs", None, "Rewrite the tables in this page, such as docs/speed.md, and the figure beside it.")
DISPATCH = flags.DEFINE_bool("dispatch", False, "Only what each executor costs a call, on all devices.")


def main(_):
    if not (ROOT / "benchmarks").is_dir():
        raise cli.UserError("benchmarks/ is a folder of the repository and no part of the package: run launch/bench.py in a checkout")
    from benchmarks import suite

    if DISPATCH.value:
        if others := [name for name in ("what", "presets", "rounds", "text", "json", "docs") if flags.FLAGS[name].present]:
            raise cli.UserError(f"--dispatch stands alone: leave out --{', --'.join(others)}")
        suite.print_dispatch(ROOT)
        return
    try:
        suite.run(
            ROOT,
            what=WHAT.value,
            presets=PRESETS.value,
            rounds=ROUNDS.value,
            text=TEXT.value,
            json_file=JSON.value,
            docs=DOCS.value,
        )
    except KeyboardInterrupt as error:
        raise cli.UserError("stopped: what was printed stays, also in --json and --docs; the same command starts anew") from error


if __name__ == "__main__":
    cli.run(main)
