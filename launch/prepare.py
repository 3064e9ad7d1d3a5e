"""Turns a folder of text into rows of tokens to pretrain on. The same command again goes on where it stopped.

    python launch/prepare.py --input=books/ --output=data/books --tokenizer=wordpiece --vocab_size=30522
    python launch/prepare.py --input=wiki.jsonl.zst,books.tar.xz --output=data/both --tokenizer=vocab.txt --packing=dense --length=512

Text:  --input --documents --text_field --max_document_mib    Tokens: --tokenizer --vocab_size --lower_case --strip_accents
Rows:  --output --length --packing --heldout --seed           Work:   --workers --buckets --parts --runner --beam_options
On a cluster, the same shards (electra_jax/data/prepare/beam.py):
    python launch/prepare.py --input=/mnt/wiki --output=/mnt/rows --runner=FlinkRunner --beam_options=--flink_master=host:8081
Exit codes: 0 done, 2 something to mend (one line says what), 42 interrupted: the same command goes on.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch()
from absl import flags

from electra_jax import cli

INPUT = flags.DEFINE_multi_string("input", None, "Files, folders, globs or tfds:NAME[:SPLIT[:FEATURE]]; repeat or separate by commas.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to make.", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer", "wordpiece", "A tokenizer's folder or file, or one to train: wordpiece, unigram, bpe ...")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Pieces of a vocabulary to train; unless given, by the amount of text.")
LOWER_CASE = flags.DEFINE_bool("lower_case", None, "Lower the text; unless given, as the tokenizer says (trained wordpiece: yes).")
STRIP_ACCENTS = flags.DEFINE_bool("strip_accents", None, "Drop accents (WordPiece); unless given, as --lower_case.")
LENGTH = flags.DEFINE_integer("length", 128, "Tokens a row.")
PACKING = flags.DEFINE_string("packing", "dense", "dense: rows filled with documents; pairs: the paper's two-segment examples.")
HELDOUT = flags.DEFINE_float("heldout", None, "The share of documents to hold out; unless given, 0.01, and up to 0.1 below 20 MB of text.")
DOCUMENTS = flags.DEFINE_enum("documents", "auto", ["auto", "blank_lines", "file"], "What ends a document of .txt; auto: blank lines.")
TEXT_FIELD = flags.DEFINE_string("text_field", "text", "The field of .jsonl, column of .parquet or TFDS feature with the text.")
MAX_DOCUMENT_MIB = flags.DEFINE_integer("max_document_mib", 256, "A longer document is an error; it must fit in memory.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Decides packing and order.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: all cores. Changes no byte of the rows.")
BUCKETS = flags.DEFINE_integer("buckets", 0, "Groups of documents packed apart; 0: one for each 8 MiB of input, 4 to 256.")
PARTS = flags.DEFINE_integer("parts", 0, "Shards of training rows; 0: as many as keep each within 64 MiB.")
RUNNER = flags.DEFINE_string("runner", "local", "local, or a Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner ...")
BEAM_OPTIONS = flags.DEFINE_multi_string("beam_options", [], "An option of Beam or its runner, such as --project=x; may be repeated.")
# Flags that are options of the same name.
SAME = (OUTPUT, TOKENIZER, VOCAB_SIZE, LOWER_CASE, STRIP_ACCENTS, LENGTH, PACKING, HELDOUT, DOCUMENTS, TEXT_FIELD, SEED, BUCKETS, PARTS)


def main(_):
    from electra_jax.data.prepare import PrepareOptions, prepare, summary

    options = PrepareOptions(
        inputs=tuple(item for value in INPUT.value or [] for item in value.split(",") if item),
        max_document_bytes=MAX_DOCUMENT_MIB.value << 20,
        **{flag.name: flag.value for flag in SAME},
    )
    manifest = prepare(options, workers=WORKERS.value, runner=RUNNER.value, beam_options=BEAM_OPTIONS.value)
    print("\n".join(summary(manifest, options.output)))


if __name__ == "__main__":
    cli.run(main)
