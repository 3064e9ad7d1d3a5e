"""Counts of all documents, summed over the workers; how many parts that makes; the errors for a split without a row."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from electra_jax.cli import UserError
from electra_jax.data.prepare.job import Job
from electra_jax.data.prepare.options import PrepareOptions
from electra_jax.data.readers import kind_of, scheme_of
from electra_jax.data.readers.archives import ARCHIVES
from electra_jax.data.readers.corpus import Corpus, Report

PART_BYTES = 64 << 20


def found(job: Job, train_parts: int, reports: Iterable[Report], counts: Iterable[dict]) -> dict:
    """What all sources and chunks come to, and so how many parts each split has (`train_parts`, unless 0, for training).

    There are as many parts as keep the rows of one within 64 MiB. The number of rows is estimated: one for every `length - 2` tokens,
    and with pairs one more for every document.
    """
    report, documents, tokens = Report(), [0, 0], [0, 0]
    for item in reports:
        report.merge(item)
    for count in counts:
        documents = [a + b for a, b in zip(documents, count["documents"], strict=True)]
        tokens = [a + b for a, b in zip(tokens, count["tokens"], strict=True)]
    rows = [t // (job.length - 2) + (d if job.packing == "pairs" else 0) for d, t in zip(documents, tokens, strict=True)]
    parts = [min(99_999, max(1, -(-n * job.length * job.dtype.itemsize // PART_BYTES))) for n in rows]
    parts[0] = train_parts or parts[0]
    return {"documents": documents, "tokens": tokens, "parts": parts, "report": vars(report)}


def check_found(found: dict, options: PrepareOptions, corpus: Corpus, progress: bool) -> None:
    """Tells what was met while reading. UserError if a split has no document."""
    report = corpus.report
    report.merge(Report(**found["report"]))
    report.require_documents()
    if progress:
        for line in report.lines():
            print(f"note: {line}", file=sys.stderr)
    for split in range(2):
        if not found["documents"][split]:
            raise empty_split(options, corpus, sum(found["documents"]), split)


def require_rows(options: PrepareOptions, corpus: Corpus, documents: dict, packed: list[dict]) -> None:
    """UserError if a split has no row."""
    for split in range(2):
        if not packed[split]["rows"]:
            raise empty_split(options, corpus, sum(documents["documents"]), split)


def empty_split(options: PrepareOptions, corpus: Corpus, total: int, split: int) -> UserError:
    """The error to raise. It removes the unfinished work, from which the mended command, with its other options, could not go on."""
    shutil.rmtree(Path(options.output) / ".work", ignore_errors=True)
    paths = [source.path for source in corpus.sources]
    texts = any(not scheme_of(path) and kind_of(path)[0] in (".txt", *ARCHIVES) for path in paths)
    whole = options.documents == "file" and texts
    how = "" if not texts else " (each .txt is one)" if whole else " (blank lines part them in a .txt)"
    other = min(0.5, max(2 * options.heldout, round(5 / total, 2))) if split else options.heldout / 2
    mend = f"try --heldout={other:g}, or give more text" if total > 2 else "put blank lines between chapters, or give more text"
    return UserError(
        f"the {'held-out' if split else 'training'} split is empty: --heldout={options.heldout:g} of {total:,} document(s){how}: "
        f"{mend}{', or leave --documents=file out' if whole else ''}"
    )
