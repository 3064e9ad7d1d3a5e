"""Predicts the rows of a file, or of standard input, with a fine-tuned model.

    python launch/predict.py --model=runs/mine-task --input=new.csv --output=predictions.tsv
    echo "A fine film." | python launch/predict.py --model=runs/sst2            # one text per line; a tab within a pair

Inputs: .csv .tsv .jsonl .parquet, CoNLL columns, CoNLL-U, SQuAD's .json, also compressed; standard input and .txt have one row per line
(for a model of tags, .txt has CoNLL columns). Columns have their names from training, unless --task.text_columns=A,B gives others; labels
are not read. Outputs: .jsonl or .tsv, in the input's order.
Exit codes: 0 done, 2 something to mend (one line says what), 42 interrupted: run the same command again.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from electra_jax import interrupts

interrupts.catch(sigterm=True)
from absl import flags

from electra_jax import cli

MODEL = flags.DEFINE_string("model", None, "A fine-tuned run's workdir, its model/, or any model with a task's head.", required=True)
INPUT = flags.DEFINE_string("input", "-", "The file to predict; -: standard input.")
OUTPUT = flags.DEFINE_string("output", "-", "The file to write, .jsonl or .tsv; -: standard output.")
OUTPUT_FORMAT = flags.DEFINE_enum("output_format", None, ["jsonl", "tsv"], "Unless given, by the ending; for standard output jsonl.")
PORTION_ROWS = flags.DEFINE_integer("portion_rows", 4096, "Rows that are read, predicted and written at a time.", lower_bound=1)
BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 0, "Tokens per batch; 0: 1,024 on a CPU, else 32,768.", lower_bound=0)
GIVEN = {
    "format": flags.DEFINE_string("task.format", None, "Of the input: csv, tsv, jsonl, parquet, lines, columns, conllu, squad."),
    "text_columns": flags.DEFINE_list("task.text_columns", None, "The columns of texts; unless given, as in training."),
    "id_column": flags.DEFINE_string("task.id_column", None, "The column of the rows' names; unless given, numbers from 0."),
    "header": flags.DEFINE_bool("task.header", None, "The first line of a .csv or .tsv names its columns."),
    "delimiter": flags.DEFINE_string("task.delimiter", None, "Between the columns of a .csv or .tsv."),
    "quotes": flags.DEFINE_bool("task.quotes", None, "Columns may stand in double quotes."),
    "bad_rows": flags.DEFINE_enum("task.bad_rows", None, ["refuse", "drop"], "drop: rows with an empty text are predicted and counted."),
}


def main(_):
    from electra_jax.parallel import process

    process.prepare()  # before jax is imported
    process.require_devices()
    from electra_jax.infer import files, predict

    files.format_of(OUTPUT.value, OUTPUT_FORMAT.value or "")
    files.check_paths(INPUT.value, OUTPUT.value)
    given = {name: tuple(flag.value) if name == "text_columns" else flag.value for name, flag in GIVEN.items() if flag.value is not None}
    model = predict.load_task(MODEL.value, BATCH_TOKENS.value)
    options = dict(format=OUTPUT_FORMAT.value or "", portion_rows=PORTION_ROWS.value, given=given)
    done = files.predict_file(model, INPUT.value, OUTPUT.value, **options)
    print("\n".join([*(f"note: {note}" for note in done.notes), f"done: {done.rows:,} rows in {done.secs:.1f} s"]), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
