"""Runs a command and starts it again whenever the same command goes on: preempted, a peer lost, a hang ended, out of memory.

    python launch/supervise.py -- python launch/pretrain.py --config=configs/pretrain.py:small --workdir=runs/small

SIGTERM or Ctrl-C is passed on: the command saves, and both end with 42. Exit codes: 0 done, 2 something to mend,
42 told to stop, or --starts starts in a row brought no new checkpoint, 1 a defect. Nothing but 42 is started again.
"""

import os
import shlex
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch()
from absl import flags

from electra_jax import cli

STARTS = flags.DEFINE_integer("starts", 3, "Give up after so many starts in a row without a new checkpoint.", lower_bound=1)
ONCE = flags.DEFINE_bool("once", False, "Start it once only; its end is still explained.")
WAIT_SECS = flags.DEFINE_float("wait_secs", 5.0, "Seconds before a new start; doubles with each that was in vain.", lower_bound=0)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the command, quoted for a shell, and run nothing.")


def main(command: list[str]) -> None:
    from electra_jax import supervise

    wrapper = supervise.Wrapper(command, starts=STARTS.value, once=ONCE.value, wait_secs=WAIT_SECS.value)
    if DRY_RUN.value:
        print(shlex.join(command))
        return
    sys.exit(wrapper.run())


if __name__ == "__main__":
    words = sys.argv
    split = words.index("--") if "--" in words else len(words)
    own = [word.replace("--dry-run", "--dry_run") for word in words[:split]]
    cli.run(lambda _: main(words[split + 1 :]), own)
