"""Text to shards beside the Rust tokenizer alone, and what feeding rows costs beside PyTorch's DataLoader."""

import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from benchmarks.processes import Side, measure
from benchmarks.tables import Table, number, times
from electra_jax import demo
from electra_jax.cli import UserError
from electra_jax.data import prepare
from electra_jax.data import tokenizers as tokenizer
from electra_jax.data.rows import loader, order
from electra_jax.limits import available_cores

Run = Callable[[], dict[str, float]]
VOCAB_SIZE, BATCH_ROWS, LENGTHS = 30_522, 32, (128, 512)
MIN_CHARACTERS, MIN_DOCUMENTS = 1_000_000, 100  # a fraction of a second's work, and some documents are held out
_HERE = "benchmarks.data:"


def check_text(given: str) -> None:
    """UserError where it is no file to measure with."""
    if not os.path.isfile(given):
        what = "a folder" if os.path.isdir(given) else "no such file"
        raise UserError(f"--text={given}: {what}: name one file of plain text")
    try:
        text = pathlib.Path(given).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--text={given} is no text in UTF-8: name one file of plain text") from error
    documents = sum(len(document.split()) > 20 for document in text.split("\n\n"))
    if len(text) < MIN_CHARACTERS or documents < MIN_DOCUMENTS:
        raise UserError(
            f"--text={given}: {len(text):,} characters in {documents} documents are too few to measure with: give a million in "
            f"{MIN_DOCUMENTS} or more, blank lines between them"
        )


def text_file(folder: pathlib.Path, given: str | None) -> pathlib.Path:
    """The text to measure with: the demo's, the King James Bible, 4.1 MB, unless another is given."""
    if given:
        return pathlib.Path(given)
    path = folder / "kjv.txt"
    if not path.exists():
        demo.write_corpus(path)
    return path


def vocabulary(folder: pathlib.Path, text: pathlib.Path) -> pathlib.Path:
    """A WordPiece vocabulary of the text, filled up to the presets' 30,522 with [unused0] ... as BERT's own is."""
    path = folder / "vocab.txt"
    if not path.exists():
        trained = tokenizer.train_wordpiece([text.read_text(encoding="utf-8", errors="replace")], VOCAB_SIZE).vocabulary
        unused = (f"[unused{i}]" for i in range(VOCAB_SIZE - len(trained)))
        path.write_text("\n".join([*trained, *unused]) + "\n", encoding="utf-8")
    return path


def prepared(folder: pathlib.Path, text: pathlib.Path, length: int) -> pathlib.Path:
    """The text's rows, densely packed."""
    output = folder / f"rows-{length}"
    if not output.exists():
        prepare.prepare(_options(str(text), str(output), str(vocabulary(folder, text)), length), progress=False)
    return output


def _options(text: str, output: str, vocabulary: str, length: int) -> prepare.PrepareOptions:
    return prepare.PrepareOptions(
        inputs=(text,), output=output, tokenizer=vocabulary, lower_case=True, length=length, packing="dense", heldout=0.05
    )


# --- Sides


def preparing(text: str, vocabulary: str, workers: int) -> Run:
    """A turn is the whole preparation: reading, tokenizing, packing, shuffling, writing."""

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            manifest = prepare.prepare(_options(text, f"{folder}/rows", vocabulary, 128), workers=workers, progress=False)
        return {"bytes": manifest["corpus"]["bytes"]}

    return run


def tokenizing(text: str, vocabulary: str) -> Run:
    """A turn is the Rust tokenizer's work on the text's lines; TOKENIZERS_PARALLELISM says on how many threads."""
    import tokenizers

    ids = {piece: number for number, piece in enumerate(tokenizer.load(vocabulary).vocabulary)}
    rust = tokenizers.BertWordPieceTokenizer(vocab=ids, lowercase=True)._tokenizer
    content = pathlib.Path(text).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in content.splitlines() if line]

    def run() -> dict[str, float]:
        rust.encode_batch_fast(lines, add_special_tokens=False)
        return {"bytes": os.path.getsize(text)}

    return run


def feeding(folder: str, batches: int = 500) -> Run:
    """A turn is so many shuffled batches of 32 rows, all that pretraining takes from the loader, on one core."""
    _one_core()
    stream = order.Stream([folder], None, seed=0)
    feed = loader.batches(stream, start_step=0, global_batch=BATCH_ROWS)

    def run() -> dict[str, float]:
        for _ in range(batches):
            next(feed)
        return {"tokens": batches * BATCH_ROWS * stream.length}

    return run


def torch_feeding(folder: str, batches: int = 50) -> Run:
    """A turn is so many batches of torch's DataLoader, in this process, over rows in memory: tokens, attention mask and types of each."""
    import torch

    _one_core()
    torch.set_num_threads(1)
    stream = order.Stream([folder], None, seed=0)
    tokens = stream.rows(np.arange(stream.num_rows)).astype(np.uint16)

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(tokens)

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(tokens[i].astype(np.int64))
            return {"input_ids": row, "attention_mask": (row > 0).long(), "token_type_ids": torch.zeros_like(row)}

    def endless():
        while True:
            yield from torch.utils.data.DataLoader(Rows(), batch_size=BATCH_ROWS, shuffle=True, drop_last=True)

    feed = endless()

    def run() -> dict[str, float]:
        for _ in range(batches):
            next(feed)
        return {"tokens": batches * BATCH_ROWS * stream.length}

    return run


def _one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


# --- Tables


def preparation_table(folder: pathlib.Path, text: pathlib.Path, rounds: int) -> Table:
    words, runs, lines = str(vocabulary(folder, text)), {}, []
    num_bytes = text.stat().st_size
    given = {"text": str(text), "vocabulary": words}
    for label, workers, parallel in (("one", 1, "false"), (f"all {available_cores()}", available_cores(), "true")):
        ours = Side(f"preparation, processes: {label}", _HERE + "preparing", {**given, "workers": workers})
        rust = Side(f"the Rust tokenizer alone, threads: {label}", _HERE + "tokenizing", given, {"TOKENIZERS_PARALLELISM": parallel})
        turns = measure([ours, rust], rounds)
        runs |= turns.samples
        for side in (ours.name, rust.name):
            lines.append(
                [
                    side,
                    number(turns.median(side, "wall")),
                    number(turns.rate(side, "bytes").median / 1e6),
                    number(turns.rate(side, "bytes", "cpu").median / 1e6),
                    *("1" if side == ours.name else times(turns.rates(ours.name, side, "bytes", secs)) for secs in ("wall", "cpu")),
                ]
            )
    return Table(
        "preparation",
        f"{num_bytes / 1e6:.1f} MB of English (`{text.name}`) to shuffled, densely packed rows of 128, WordPiece of 30,522; {rounds} "
        "rounds.",
        ("what", "wall s", "MB/s", "MB a CPU-second", "MB/s, preparation in x of it", "MB a CPU-second, the same"),
        lines,
        runs,
    )


def feeding_table(folder: pathlib.Path, text: pathlib.Path, rounds: int) -> Table:
    lines, runs = [], {}
    for length in LENGTHS:
        rows = str(prepared(folder, text, length))
        ours = Side("electra_jax", _HERE + "feeding", {"folder": rows})
        theirs = Side("torch DataLoader", _HERE + "torch_feeding", {"folder": rows}, needs=("torch",))
        runs[length] = turns = measure([ours, theirs], rounds, optional=[theirs.name])
        for side in turns.samples:
            ratio = "1" if side == ours.name else times(turns.rates(ours.name, side, "tokens", "cpu"))
            rates = (turns.rate(side, "tokens", secs).median / 1e6 for secs in ("wall", "cpu"))
            lines.append([side, str(length), *map(number, rates), ratio])
        lines += [[name, str(length), reason] for name, reason in turns.failed.items()]
    return Table(
        "feeding",
        f"Shuffled batches of {BATCH_ROWS} rows with segments, positions and types, on one core; {rounds} rounds.",
        ("side", "tokens a row", "M tokens/s", "M tokens a CPU-second", "ours in x theirs, a CPU-second"),
        lines,
        {str(length): turns.samples for length, turns in runs.items()},
    )
