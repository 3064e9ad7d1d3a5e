"""Scores texts with a model: how likely each is. The larger the score, the likelier the text.

    python launch/score.py --model=runs/demo/run --input=texts.txt --output=scores.jsonl       # a text per line
    python launch/score.py --model=runs/demo/run --kind=rtd --pairs=BLiMP.zip                  # accuracy on minimal pairs

Kinds: pll (a generator, or a model that fills masked tokens; one pass per token), rtd (a discriminator; one pass), electric (one pass).
--pairs takes BLiMP's zip, a folder or .tar of its .jsonl files: how often the right sentence scores higher, by paradigm and field.
Exit codes: 0 done, 2 something to mend (one line says what), 42 interrupted: run the same command again.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli

MODEL = flags.DEFINE_string("model", None, "A run's workdir, or any model with a pretraining head.", required=True)
KIND = flags.DEFINE_enum("kind", None, ["pll", "rtd", "electric"], "The score; unless given, the first that the model has a head for.")
INPUT = flags.DEFINE_string("input", "-", "A file with a text per line; -: standard input.")
OUTPUT = flags.DEFINE_string("output", "-", "The file to write, one JSON object per line; -: standard output.")
PER_TOKEN = flags.DEFINE_bool("per_token", False, "Write each token's part of the score, too.")
PAIRS = flags.DEFINE_string("pairs", None, "Minimal pairs to judge the model by, in the place of an input.")
BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 0, "Tokens per batch; 0: 1,024 per core, or 65,536 per GPU or TPU.", lower_bound=0)


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    process.take_cores_as_devices()
    process.require_devices()
    from electra_jax.infer import score_files, scores

    if PAIRS.value and INPUT.value != "-":
        raise cli.UserError("--pairs and --input: give one of them")
    score_files.check_output(OUTPUT.value, PAIRS.value or INPUT.value)
    scorer = scores.load_scorer(MODEL.value, KIND.value or "", BATCH_TOKENS.value)
    run = score_files.judge if PAIRS.value else score_files.score
    options = {} if PAIRS.value else {"per_token": PER_TOKEN.value}
    print(run(scorer, PAIRS.value or INPUT.value, OUTPUT.value, **options), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
