"""Turns text into shuffled, fixed-length token rows for pretraining. The same command again goes on after any death.

    python launch/prepare.py --input=books/ --output=data/books --tokenizer=wordpiece --vocab_size=30522
    python launch/prepare.py --input='news-*.jsonl.zst' --output=data/news --tokenizer=data/books/tokenizer --packing=dense --length=512

Inputs: files, folders or globs of .txt (a blank line between documents), .jsonl, .parquet, each also .gz, .xz or .zst and in .tar or
.zip archives, or tfds:NAME[:SPLIT[:FEATURE]]. The result depends on text and options alone, not on the number of workers.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from absl import flags

from electra_jax import cli

flags.DEFINE_multi_string("input", None, "Text: a file, folder, glob or tfds:NAME:SPLIT:FEATURE. May be repeated.", required=True)
flags.DEFINE_string("output", None, "The folder to write.", required=True)
flags.DEFINE_string("tokenizer", "wordpiece", "wordpiece, unigram or bpe trains one; else a folder, vocab.txt, tokenizer.json or .model.")
flags.DEFINE_integer("vocab_size", 30_522, "Of a tokenizer that is trained.")
flags.DEFINE_bool("lower_case", None, "Lower-case the text. Default: the tokenizer's own; yes for a trained WordPiece.")
flags.DEFINE_bool("strip_accents", None, "Strip accents. Default: as lower_case.")
flags.DEFINE_integer("length", 128, "Tokens a row.")
flags.DEFINE_enum("packing", "pairs", ["pairs", "dense"], "pairs: the paper's two-segment examples. dense: no token dropped.")
flags.DEFINE_float("heldout", 0.01, "Share of documents held out for evaluation.")
flags.DEFINE_enum("documents", "auto", ["auto", "blank_lines", "file"], "What is a document in .txt. auto: blank_lines.")
flags.DEFINE_string("text_field", "text", "The field of .jsonl and .parquet that holds the text.")
flags.DEFINE_integer("max_document_mib", 256, "A longer document is refused.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of packing and shuffling.")
flags.DEFINE_integer("buckets", 0, "Pieces to pack one by one. 0: one for each 64 MiB of corpus.")
flags.DEFINE_integer("parts", 0, "Shards of the training split. 0: one for each 128 MiB of corpus.")
flags.DEFINE_integer("workers", 0, "Processes. 0: one a core. Changes no byte of the result.", lower_bound=0)


def main(_):
    from electra_jax.data import prepare

    f = flags.FLAGS
    same = (
        "output tokenizer vocab_size lower_case strip_accents length packing heldout documents text_field seed buckets parts"
    ).split()
    options = prepare.PrepareOptions(
        inputs=tuple(f.input), max_document_bytes=f.max_document_mib << 20, **{name: f[name].value for name in same}
    )
    manifest = prepare.prepare(options, workers=f.workers)
    print(prepare.summary(options.output, manifest))


if __name__ == "__main__":
    cli.run(main)
