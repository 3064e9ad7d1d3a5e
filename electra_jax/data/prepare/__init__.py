"""A corpus of text -> shuffled shards of token rows: a pure function of the corpus and the options.

Neither the number of workers, nor a `kill -9` at any moment and the same command again, changes a byte. There are four stages; each
writes files that appear whole or not at all under OUTPUT/.work, and a restart does what is missing:

1. Documents are cut into chunks and tokenized. A hash of a document's text decides its split and its bucket.
2. Each (split, bucket) has its own packer and seed: its documents, in the corpus's order, become rows. A row's part is a hash.
3. Each part is gathered, shuffled whole with its own seed, and written as a shard.
4. token_counts.npy is written and, as the mark that all is done, manifest.json; .work is removed.

Memory is bounded whatever the corpus's size: a worker holds one chunk, one block of a bucket's rows, or one part. The stages' work is in
stages.py. local.py runs it on processes of this machine, and beam.py, with the same bytes, on a cluster with Apache Beam.
"""

import dataclasses
import errno
import functools
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from electra_jax.cli import UserError
from electra_jax.data.prepare import local
from electra_jax.data.prepare.claim import claimed
from electra_jax.data.prepare.job import Job
from electra_jax.data.prepare.manifest import finish, finished, remove_torn_files, summary
from electra_jax.data.prepare.options import PrepareOptions
from electra_jax.data.prepare.split import default_share
from electra_jax.data.prepare.totals import check_found, require_rows
from electra_jax.data.prepare.vocabulary import given_tokenizer, saved_tokenizer
from electra_jax.data.readers.corpus import Corpus, open_corpus
from electra_jax.data.tokenizers import Tokenizer

__all__ = ["PrepareOptions", "prepare", "summary"]

CHUNK_CHARS = 1 << 20  # of a chunk at least, and 16 times as many at most; a kill loses the chunks that are being tokenized


def prepare(
    options: PrepareOptions, *, workers: int = 0, runner: str = "local", beam_options: Sequence[str] = (), progress: bool = True
) -> dict:
    """Prepares the rows, or goes on where the same command stopped; returns the manifest.

    Args:
      workers: processes that tokenize, pack and write; 0: all cores, but no more than a small corpus keeps busy.
      runner: "local", these processes; else the Apache Beam runner that runs the stages: beam.py says what it needs.
      beam_options: flags of that runner, such as "--project=mine". Neither they nor the runner change a byte.
      progress: a progress bar on stderr; lines now and then where stderr is no terminal.

    UserError: bad options or input; a folder that holds something else; a full disk; a split without a row.
    """
    options.check()
    if workers < 0:
        raise UserError(f"workers={workers}: give a number of processes, or 0 for all cores")
    if runner == "local":
        if beam_options:
            raise UserError(f"beam_options={beam_options[0]}: they are for a Beam runner, such as --runner=DirectRunner")
        stages_on = functools.partial(local.run, workers)
    else:
        if workers:
            raise UserError(f"workers={workers} is for --runner=local; {runner} has an option of its own: give it as --beam_options")
        stages_on = functools.partial(_on_beam, *_open_beam(runner, beam_options))
    corpus = open_corpus(
        options.inputs,
        documents=options.documents,
        text_field=options.text_field,
        max_document_bytes=options.max_document_bytes,
        leave_out=options.output,
    )
    if options.heldout is None:
        options = dataclasses.replace(options, heldout=default_share(corpus.text_bytes))
    given = given_tokenizer(options)
    output, start = Path(options.output), time.monotonic()
    try:
        with claimed(output, options, corpus, given) as is_finished:
            manifest = finished(output) if is_finished else _run(options, corpus, given, stages_on, progress)
            shutil.rmtree(output / ".work", ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{output}: the disk is full: free some space, then run the same command again") from error
        if error.errno in (None, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):  # not for lack of a place to write
            raise
        raise UserError(f"{output} cannot be written: {error.strerror}: choose another --output") from error
    secs = time.monotonic() - start
    done = f"done in {secs:,.1f} s, {manifest['corpus']['bytes'] / 1e6 / secs:.1f} MB/s"
    if progress:
        print("already made by the same command: nothing to do" if is_finished else done, file=sys.stderr)
    return manifest


def _run(options: PrepareOptions, corpus: Corpus, given: Tokenizer | None, stages_on: Callable, progress: bool) -> dict:
    output = Path(options.output)
    remove_torn_files(output)
    tokenizer = saved_tokenizer(options, corpus, given, progress)
    buckets = options.buckets or min(256, max(4, -(-corpus.num_bytes // (8 << 20))))
    job = Job(
        output=str(output),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
        length=options.length,
        packing=options.packing,
        heldout=options.heldout,
        seed=options.seed,
        chunk_chars=min(16 << 20, max(CHUNK_CHARS, corpus.num_bytes // 256)),
        buckets=(buckets, max(1, round(buckets * options.heldout))),
    )
    (job.work / "parts").mkdir(parents=True, exist_ok=True)
    job, documents, packed = stages_on(job, options, corpus, progress)
    return finish(job, options, corpus, tokenizer, documents, packed)


def _on_beam(beam, pipeline, job: Job, options: PrepareOptions, corpus: Corpus, progress: bool) -> tuple[Job, dict, list[dict]]:
    """The same as local.run, as one pipeline on the runner that it was opened for."""
    units = local.units(corpus, job.chunk_chars)
    if progress:
        print(f"beam: units of sources: {len(units):,}, buckets: {sum(job.buckets):,}", file=sys.stderr, flush=True)
    documents, packed = beam.run(pipeline, job, units, options.parts)
    check_found(documents, options, corpus, progress)
    require_rows(options, corpus, documents, packed)
    return dataclasses.replace(job, parts=tuple(documents["parts"])), documents, packed


def _open_beam(runner: str, flags: Sequence[str]):
    """(beam.py, its empty pipeline). UserError if Apache Beam is not here, or refuses."""
    logging.disable(logging.WARNING)  # Beam warns of what only its users of Google's cloud must install
    try:
        from electra_jax.data.prepare import beam

        return beam, beam.open_pipeline(runner, flags)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise UserError(f"--runner={runner} needs Apache Beam: pip install 'electra_jax[beam]', or leave --runner out") from None
    finally:
        logging.disable(logging.NOTSET)
