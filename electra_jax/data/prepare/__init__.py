"""A corpus of text -> shuffled shards of token rows: a pure function of the corpus and the options.

How many workers there are, a `kill -9` at any moment and the same command again change no byte. Four stages; each writes files
that appear whole or not at all under OUTPUT/.work, and a restart does what is missing:

1. Documents are cut into chunks and tokenized. A hash of a document's text decides its split and its bucket.
2. Each (split, bucket) has its own packer and seed: its documents, in the corpus's order, become rows. A row's part is a hash.
3. Each part is gathered, shuffled whole with its own seed, and written as a shard.
4. token_counts.npy; manifest.json, the mark that all is done; .work is removed.

Memory is bounded whatever the corpus's size: a worker holds one chunk, one block of a bucket's rows, or one part.
On a cluster, the same stages run as an Apache Beam pipeline: beam.py.
"""

import dataclasses
import errno
import functools
import json
import logging
import shlex
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.prepare import stages
from electra_jax.data.prepare.claim import claimed
from electra_jax.data.prepare.stages import SPLITS, Job
from electra_jax.data.prepare.workers import Meter, Workers
from electra_jax.data.readers.corpus import MAX_DOCUMENT_BYTES, Corpus, Report, open_corpus
from electra_jax.data.readers.files import ARCHIVES, kind_of
from electra_jax.data.rows import records

TRAINED = ("wordpiece", "unigram", "bpe")
VOCABULARY_TEXT_BYTES = 1 << 30  # the vocabulary is trained on so much of the training documents
CHUNK_CHARS = 1 << 20  # at least, and 16 times as much at most: what is done between two kills


@dataclass(frozen=True)
class PrepareOptions:
    """All that decides the rows; `launch/prepare.py --help` says what each means."""

    inputs: tuple[str, ...]
    output: str
    tokenizer: str = "wordpiece"  # a path, or one of TRAINED
    vocab_size: int | None = None  # of a vocabulary to train; None: 30,522
    lower_case: bool | None = None  # None: what the tokenizer says; trained: WordPiece True, SentencePiece False
    strip_accents: bool | None = None  # None: as lower_case
    length: int = 128
    packing: str = "pairs"
    heldout: float = 0.01
    documents: str = "auto"
    text_field: str = "text"
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    seed: int = 0
    buckets: int = 0
    parts: int = 0

    def check(self) -> None:
        """UserError for a value that cannot be."""
        if self.packing not in stages.PACKERS:
            raise UserError(f"packing={self.packing!r}: choose {' or '.join(stages.PACKERS)}")
        if not 8 <= self.length <= 1 << 15:
            raise UserError(f"length={self.length}: rows hold 8 to {1 << 15:,} tokens")
        if not 0 < self.heldout < 1:
            raise UserError(f"heldout={self.heldout}: the held-out fraction lies between 0 and 1, such as 0.01")
        if self.seed < 0 or not 0 <= self.buckets <= 4096 or not 0 <= self.parts <= 99_999:
            raise UserError(f"seed={self.seed}, buckets={self.buckets}, parts={self.parts}: they are 0 or more; buckets at most 4,096")
        if self.vocab_size is not None and not 8 <= self.vocab_size <= 1 << 24:
            raise UserError(f"vocab_size={self.vocab_size}: a vocabulary has 8 to {1 << 24:,} pieces, such as 30522")
        if not self.output:
            raise UserError("no output: name the folder that is to hold the rows")
        if "," in self.output:
            raise UserError(f"output={self.output!r}: a comma would part it in --config.data.path: choose a name without one")


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
        stages_on = functools.partial(_on_processes, workers)
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
    given = None
    if options.tokenizer not in TRAINED:
        given = tokenizers.load(options.tokenizer, lower_case=options.lower_case, strip_accents=options.strip_accents)
        if options.vocab_size not in (None, given.vocab_size):
            raise UserError(f"vocab_size={options.vocab_size}, but {options.tokenizer} has {given.vocab_size:,}: leave vocab_size out")
    output, start = Path(options.output), time.monotonic()
    try:
        with claimed(output, options, corpus, given) as finished:
            manifest = _whole(output) if finished else _run(options, corpus, given, stages_on, progress)
            shutil.rmtree(output / ".work", ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{output}: the disk is full: free some space, then run the same command again") from error
        if error.errno in (None, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):  # not the output's fault
            raise
        raise UserError(f"{output} cannot be written: {error.strerror}: choose another --output") from error
    secs = time.monotonic() - start
    done = f"done in {secs:,.1f} s, {manifest['corpus']['bytes'] / 1e6 / secs:.1f} MB/s"
    if progress:
        print("already made by the same command: nothing to do" if finished else done, file=sys.stderr)
    return manifest


def _whole(output: Path) -> dict:
    """The manifest of finished rows. UserError if one of its files is missing or damaged, as far as is told without reading all rows."""
    for split in SPLITS:
        records.Split(output, split)
    records.load_token_counts(output)
    return records.load_manifest(output)


def summary(manifest: dict, output: str) -> list[str]:
    """What was made and what to run next, in lines for a person."""
    corpus, parts = manifest["corpus"], manifest["splits"]
    lines = [f"{corpus['documents']:,} documents, {corpus['bytes'] / 1e6:,.1f} MB of text in {output}"]
    for split, title in (("train", "training"), ("heldout", "held out")):
        s = parts[split]
        filled = s["tokens"] / max(1, s["rows"] * manifest["length"])
        dropped = f", {s['dropped_tokens']:,} tokens did not fit" if s["dropped_tokens"] else ""
        lines.append(
            f"  {title}: {s['documents']:,} documents, {s['rows']:,} rows of {manifest['length']}, {s['tokens']:,} tokens, "
            f"{filled:.1%} full{dropped}, {len(s['shards'])} shards"
        )
    tokenizer = manifest["tokenizer"]
    dropped, kept = parts["train"]["dropped_tokens"], parts["train"]["tokens"]
    if dropped > 0.2 * (dropped + kept):
        lines.append(f"  note: {dropped / (dropped + kept):.0%} of the training tokens were dropped; --packing=dense keeps them all")
    lines.append(f"  tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']:,} pieces")
    preset, length = ("small", 128) if manifest["length"] <= 128 else ("base", 512)
    command = f"next: python launch/pretrain.py --config=configs/pretrain.py:{preset} --workdir=runs/{preset}"
    command += f" --config.data.path={shlex.quote(output)}"
    if manifest["length"] != length:
        command += f" --config.data.length={manifest['length']}"
    if manifest["length"] > 512:
        command += f" --config.model.max_length={manifest['length']}"
    if tokenizer["vocab_size"] != 30_522:
        command += f" --config.model.vocab_size={tokenizer['vocab_size']}"
    return [*lines, command]


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


def _run(options: PrepareOptions, corpus: Corpus, given, stages_on: Callable, progress: bool) -> dict:
    output = Path(options.output)
    _remove_torn_files(output)
    tokenizer = _tokenizer(options, corpus, given, progress)
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
        buckets=(buckets, _share(buckets, options.heldout)),
    )
    (job.work / "parts").mkdir(parents=True, exist_ok=True)
    job, documents, packed = stages_on(job, options, corpus, progress)
    return _finish(job, options, corpus, tokenizer, documents, packed)


def _on_processes(workers: int, job: Job, options: PrepareOptions, corpus: Corpus, progress: bool) -> tuple[Job, dict, list[dict]]:
    """Stages 1 to 3: the job with its numbers of parts, what was read, and what was packed of each split."""
    for folder in ("chunks", "rows"):
        (job.work / folder).mkdir(exist_ok=True)
    with Workers(workers, corpus.num_bytes) as pool:
        documents = _tokenize(job, options, corpus, pool, progress)
        job = dataclasses.replace(job, parts=tuple(documents["parts"]))
        packed = _pack(job, documents, pool, progress)
        _require_rows(options, corpus, documents, packed)
        tasks = [(job, split, part) for split in range(2) for part in range(job.parts[split])]
        with Meter("writing", len(tasks), "shards", progress) as meter:
            for _ in pool.each(stages.write_part, tasks):
                meter.add(1)
    return job, documents, packed


def _on_beam(beam, pipeline, job: Job, options: PrepareOptions, corpus: Corpus, progress: bool) -> tuple[Job, dict, list[dict]]:
    """The same as one pipeline on the runner that it was opened for."""
    units = _units(corpus, job.chunk_chars)
    if progress:
        print(f"beam: units of sources: {len(units):,}, buckets: {sum(job.buckets):,}", file=sys.stderr, flush=True)
    documents, packed = beam.run(pipeline, job, units, options.parts)
    _check_found(documents, options, corpus, progress)
    _require_rows(options, corpus, documents, packed)
    return dataclasses.replace(job, parts=tuple(documents["parts"])), documents, packed


def _remove_torn_files(output: Path) -> None:
    """What a process that was killed while it wrote has left; those in .work go with it."""
    for path in [*output.glob(".*.tmp"), *(output / "tokenizer").glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def _share(buckets: int, fraction: float) -> int:
    return max(1, round(buckets * fraction))


def _tokenizer(options: PrepareOptions, corpus: Corpus, given, progress: bool) -> tokenizers.Tokenizer:
    """The tokenizer that lies beside the rows; at first, the one given, or one trained on the training documents."""
    folder = Path(options.output) / "tokenizer"
    if (folder / tokenizers.CONFIG).exists():  # written last
        return tokenizers.load(folder)
    if given is None:
        size = options.vocab_size or 30_522
        with Meter("vocabulary", min(_text_bytes(corpus), VOCABULARY_TEXT_BYTES), "B", progress) as meter:
            texts = _training_texts(options, corpus, meter)
            if options.tokenizer == "wordpiece":
                lower_case = options.lower_case is not False
                given = tokenizers.train_wordpiece(texts, size, lower_case=lower_case, strip_accents=options.strip_accents)
            else:
                lower_case = bool(options.lower_case)
                given = tokenizers.train_sentencepiece(texts, size, model_type=options.tokenizer, lower_case=lower_case)
    given.save(folder)
    return given


def _training_texts(options: PrepareOptions, corpus: Corpus, meter: Meter) -> Iterator[str]:
    """Documents of the training split, sources in the order of a hash, until there is text enough."""
    left, total = VOCABULARY_TEXT_BYTES, 0
    for source in sorted(corpus.sources, key=lambda source: stages.text_hash(source.name.encode())):
        for document in corpus.read(source):
            data = document.text.encode()
            total += 1
            if not stages.is_heldout(stages.text_hash(data), options.heldout):
                yield document.text
                left -= len(data)
                meter.add(len(data))
                if left <= 0:
                    return
    if total and left == VOCABULARY_TEXT_BYTES:
        raise _empty_split(options, corpus, total, 0)


def _text_bytes(corpus: Corpus) -> int:
    """A guess, for the progress bar: compressed text grows about 3.5 times."""
    packed = (".gz", ".xz", ".zst", ".tgz", ".txz", ".zip", ".parquet")
    return sum(int(source.num_bytes * (3.5 if source.path.endswith(packed) else 1)) for source in corpus.sources)


def _units(corpus: Corpus, chunk_chars: int) -> list[Corpus]:
    """Sources that are read together: one large one, or neighbours that make a chunk."""
    units, size = [[]], 0
    for source in corpus.sources:
        if units[-1] and size + source.num_bytes > chunk_chars:
            units.append([])
            size = 0
        units[-1].append(source)
        size += source.num_bytes
    return [dataclasses.replace(corpus, sources=sources, ignored=[]) for sources in units]


def _tokenize(job: Job, options: PrepareOptions, corpus: Corpus, pool: Workers, progress: bool) -> dict:
    """Stage 1; what it found: documents and tokens of each split, numbers of chunks and parts, the reading's report."""
    done = job.work / "documents.json"
    if done.exists():
        return json.loads(done.read_bytes())
    units = _units(corpus, job.chunk_chars)
    missing = [number for number in range(len(units)) if not job.unit_path(number).exists()]
    with Meter("tokenizing", _text_bytes(corpus), "B", progress) as meter:
        if len(units) >= 4 * min(pool.workers, 8):  # enough for each worker to read for itself
            for size in pool.each(stages.tokenize_unit, ((job, number, units[number]) for number in missing)):
                meter.add(size)
        else:
            for number in missing:
                report, count = Report(), [0]
                for size in pool.each(stages.tokenize_chunk, _chunk_tasks(job, number, units[number], report, count)):
                    meter.add(size)
                stages.finish_unit(job, number, count[0], report)
    read = [json.loads(job.unit_path(number).read_bytes()) for number in range(len(units))]
    counts = (stages.meta(job.chunk_path(number, chunk)) for number, unit in enumerate(read) for chunk in range(unit["chunks"]))
    found = stages.found(job, options.parts, [Report(**unit["report"]) for unit in read], counts)
    _check_found(found, options, corpus, progress)
    found["chunks"] = [unit["chunks"] for unit in read]
    stages.write_json(done, found)
    return found


def _check_found(found: dict, options: PrepareOptions, corpus: Corpus, progress: bool) -> None:
    """Tells what was met while reading. UserError if a split has no document."""
    report = corpus.report
    report.merge(Report(**found["report"]))
    report.require_documents()
    if progress:
        for line in report.lines():
            print(f"note: {line}", file=sys.stderr)
    for split in range(2):
        if not found["documents"][split]:
            raise _empty_split(options, corpus, sum(found["documents"]), split)


def _chunk_tasks(job: Job, unit: int, corpus: Corpus, report: Report, count: list[int]) -> Iterator[tuple]:
    for texts in stages.chunks_of(job, corpus, report):
        yield job, job.chunk_path(unit, count[0]), texts
        count[0] += 1


def _pack(job: Job, documents: dict, pool: Workers, progress: bool) -> list[dict]:
    """Stage 2; the rows and dropped tokens of each split. The chunks are no longer needed then."""
    done = job.work / "rows.json"
    if not done.exists():
        chunks = [job.chunk_path(unit, chunk) for unit, count in enumerate(documents["chunks"]) for chunk in range(count)]
        tasks = [(job, split, bucket, chunks) for split in range(2) for bucket in range(job.buckets[split])]
        with Meter("packing", len(tasks), "buckets", progress) as meter:
            for _ in pool.each(stages.pack_bucket, tasks):
                meter.add(1)
        found = []
        for split in range(2):
            buckets = [stages.meta(job.rows_path(split, bucket)) for bucket in range(job.buckets[split])]
            found.append({name: sum(bucket[name] for bucket in buckets) for name in ("rows", "dropped_tokens")})
        stages.write_json(done, found)
    shutil.rmtree(job.work / "chunks", ignore_errors=True)
    return json.loads(done.read_bytes())


def _require_rows(options: PrepareOptions, corpus: Corpus, documents: dict, packed: list[dict]) -> None:
    for split in range(2):
        if not packed[split]["rows"]:
            raise _empty_split(options, corpus, sum(documents["documents"]), split)


def _empty_split(options: PrepareOptions, corpus: Corpus, total: int, split: int) -> UserError:
    shutil.rmtree(Path(options.output) / ".work", ignore_errors=True)  # it would end here again, and is in the way of the mended command
    paths = [source.path for source in corpus.sources]
    texts = any(not path.startswith("tfds:") and kind_of(path)[0] in (".txt", *ARCHIVES) for path in paths)
    whole = options.documents == "file" and texts
    how = "" if not texts else " (each .txt is one)" if whole else " (a .txt is cut at blank lines)"
    return UserError(
        f"the {'held-out' if split else 'training'} split is empty: --heldout={options.heldout} of {total:,} documents{how}: "
        f"{'lower' if split == 0 else 'raise'} --heldout, give more text{', or use --documents=blank_lines' if whole else ''}"
    )


def _finish(job: Job, options: PrepareOptions, corpus: Corpus, tokenizer, documents: dict, packed: list[dict]) -> dict:
    """Stage 4."""
    output = Path(options.output)
    counts_V = sum(stages.part_counts(job, 0, part) for part in range(job.parts[0]))
    with records.whole_file(output / records.TOKEN_COUNTS) as temporary, open(temporary, "wb") as file:
        np.save(file, counts_V)
    splits = {}
    for split, name in enumerate(SPLITS):
        shards = [stages.meta(job.shard_info_path(split, part)) for part in range(job.parts[split])]
        splits[name] = {
            "rows": packed[split]["rows"],
            "tokens": sum(shard.pop("tokens") for shard in shards),
            "dropped_tokens": packed[split]["dropped_tokens"],
            "documents": documents["documents"][split],
            "shards": shards,
        }
    report = documents["report"]
    decides = dataclasses.asdict(options)
    for name in ("inputs", "output", "tokenizer", "vocab_size", "lower_case", "strip_accents", "length", "packing"):
        decides.pop(name)
    decides |= {"buckets": list(job.buckets), "parts": list(job.parts)}
    ids = ("kind", "sha256", "vocab_size", "pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
    manifest = {
        "format": records.FORMAT,
        "length": job.length,
        "packing": job.packing,
        "dtype": job.dtype.name,
        "tokenizer": {name: getattr(tokenizer, name) for name in ids} | {"options": tokenizer.options},
        "splits": splits,
        "token_counts_crc32": zlib.crc32((output / records.TOKEN_COUNTS).read_bytes()),
        "options": decides,
        "corpus": {
            "sources": len(corpus.sources),
            "documents": report["documents"],
            "bytes": report["text_bytes"],
            **{name: report[name] for name in ("invalid_utf8_bytes", "invalid_utf8_files", "empty_documents", "empty_files")},
        },
    }
    _remove_torn_files(output)
    records.save_manifest(output, manifest)
    return records.load_manifest(output)
