"""Corpus -> rows: documents are hashed into buckets, packed bucket by bucket, shuffled part by part, written as ArrayRecord shards.

A pure function of corpus and options: how many workers, a restart or another machine change no byte. Each stage leaves files of
its own in `<output>/.work`, whole or not at all, and the same command again goes on where they end. The manifest comes last.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tqdm

from electra_jax.cli import UserError
from electra_jax.data import corpus as corpora
from electra_jax.data import records, tokenizer
from electra_jax.data.packing import DensePacker, PairPacker

SPLITS = ("train", "heldout")
TRAINED = ("wordpiece", "unigram", "bpe")
PACKERS = {"pairs": PairPacker, "dense": DensePacker}
CHUNKS, MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 500, 4 << 20, 64 << 20  # text tokenized at a time; no byte of the result depends on it
BUCKET_BYTES = 64 << 20  # of corpus a bucket, by default: what a worker holds while it packs
PART_BYTES = 128 << 20  # of corpus a shard, by default: held whole while it is shuffled


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how. All but `inputs` and `output` decide the bytes, with the corpus."""

    inputs: tuple[str, ...]  # files, folders, globs, tfds:NAME[:SPLIT[:FEATURE]]
    output: str
    tokenizer: str = "wordpiece"  # "wordpiece", "unigram" or "bpe" trains one; else the path of one
    vocab_size: int = 30522  # of a trained one
    lower_case: bool | None = None  # None: as the tokenizer's folder says; a trained WordPiece lower-cases
    strip_accents: bool | None = None
    length: int = 128
    packing: str = "pairs"
    heldout: float = 0.01  # share of documents
    documents: str = "auto"
    text_field: str = "text"
    max_document_bytes: int = corpora.MAX_DOCUMENT_BYTES
    seed: int = 0
    buckets: int = 0  # 0: one for each 64 MiB of corpus
    parts: int = 0  # shards of the training split; 0: one for each 128 MiB of corpus

    def __post_init__(self):
        if self.packing not in PACKERS:
            raise UserError(f"packing is {self.packing!r}: it must be one of {', '.join(PACKERS)}")
        if not 8 <= self.length <= 65_536:
            raise UserError(f"length is {self.length}: it must be from 8 to 65,536")
        if not 0.0 < self.heldout < 1.0:
            raise UserError(f"heldout is {self.heldout}: it must be between 0 and 1 (0.01 holds out one document in a hundred)")
        if min(self.buckets, self.parts) < 0:
            raise UserError("buckets and parts must not be negative (0 chooses by the corpus's bytes)")


def prepare(options: PrepareOptions, *, workers: int = 0, progress: bool = True) -> dict[str, Any]:
    """Prepares `options.output`, or goes on there; returns the manifest. `workers` 0: one a core.

    Raises UserError for what a person must mend. A finished folder of the same corpus and options is left as it is.
    """
    try:
        return _prepare(options, workers or os.cpu_count() or 1, progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"the disk of {options.output} is full: free some space, then run the same command again") from error
        raise


def _prepare(options: PrepareOptions, workers: int, progress: bool) -> dict[str, Any]:
    output = pathlib.Path(options.output)
    work = output / ".work"
    corpus = corpora.open_corpus(
        options.inputs, documents=options.documents, text_field=options.text_field, max_document_bytes=options.max_document_bytes
    )
    settings = _settings(options, corpus.num_bytes)
    identity = {"settings": settings, "sources": [[source.name, source.num_bytes] for source in corpus.sources]}
    done = _claim(output, identity)
    if done:
        _say(f"{output} is prepared already, from the same corpus with the same options")
        return done

    tokens = _tokenizer(options, corpus, work, progress)
    layout = Layout(settings["buckets"], settings["parts"], options, records.row_dtype(tokens.vocab_size).str)
    with _pool(workers, work / "tokenizer", layout) as run:
        digest = _tokenize(run, corpus, work / "chunks", progress)
        chunks = sorted((work / "chunks").glob("*.npz"))
        packs = [(split, bucket) for split in SPLITS for bucket in range(layout.buckets)]
        stats = _each(run, _pack, [(str(work), *pack, len(chunks)) for pack in packs], "packing", progress)
        parts = [(split, part) for split in SPLITS for part in range(layout.num_parts(split))]
        shards = _each(run, _shard, [(str(work), str(output), *part) for part in parts], "writing", progress)

    manifest = _manifest(options, identity, tokens, layout, corpus.report, digest, packs, stats, parts, shards)
    counts = sum(np.load(work / "parts" / f"train-{part:05d}.npy") for part in range(layout.num_parts("train")))
    _write(output / "token_counts.npy", lambda file: np.save(file, counts))
    tokens.save(output / "tokenizer")
    _write(output / records.MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode() + b"\n"))
    shutil.rmtree(work)
    for line in corpus.report.lines():
        _say(f"note: {line}")
    return manifest


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a document and a row go: hashes alone decide."""

    buckets: int
    parts: int
    options: PrepareOptions
    dtype: str

    def num_parts(self, split: str) -> int:
        return self.parts if split == "train" else max(1, round(self.parts * self.options.heldout))

    def of_document(self, text: str) -> tuple[str, int]:
        """(split, bucket) by the text's hash: the same document twice lands in the same place, and never in both splits."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return SPLITS[share < self.options.heldout], int.from_bytes(digest[8:], "big") % self.buckets

    def of_row(self, split: str, bucket: int, number: int) -> int:
        return self.seed("part", split, bucket, number) % self.num_parts(split)

    def seed(self, *what: str | int) -> int:
        text = json.dumps([self.options.seed, *what]).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _settings(options: PrepareOptions, num_bytes: int) -> dict[str, Any]:
    """All that decides the bytes beside the corpus, for the manifest and for telling a restart from another job."""
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("inputs", "output")}
    settings["buckets"] = options.buckets or min(4096, math.ceil(num_bytes / BUCKET_BYTES) or 1)
    settings["parts"] = options.parts or math.ceil(num_bytes / PART_BYTES) or 1
    if options.tokenizer not in TRAINED:
        given = tokenizer.load(options.tokenizer, lower_case=options.lower_case, strip_accents=options.strip_accents)
        settings["tokenizer"] = given.sha256
    return settings


def _claim(output: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Makes the folder ours, or returns the manifest of the finished job. Raises UserError where it holds anything else."""
    mark = output / ".work" / "job.json"
    mend = "choose another --output, or delete the folder"
    if (output / records.MANIFEST).exists():
        manifest = records.load_manifest(output)
        if manifest["identity"] != identity:
            raise UserError(f"{output} is prepared from another corpus or with other options ({_differences(manifest['identity'], identity)}): {mend}")
        shutil.rmtree(output / ".work", ignore_errors=True)  # a death between the manifest and this
        return manifest
    if mark.exists():
        before = json.loads(mark.read_text())
        if before != identity:
            raise UserError(f"{output} holds unfinished work on another corpus or with other options ({_differences(before, identity)}): {mend}")
        return None
    if output.exists() and any(path.name != ".work" for path in output.iterdir()):
        raise UserError(f"{output} is not empty and holds no preparation: {mend}")
    mark.parent.mkdir(parents=True, exist_ok=True)
    _write(mark, lambda file: file.write(json.dumps(identity).encode()))
    return None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in now["settings"] if before["settings"].get(name) != now["settings"][name]]
    changed = [f"{name}: {before['settings'].get(name)} -> {now['settings'][name]}" for name in names]
    return "; ".join(changed) or "other input files"


def _tokenizer(options: PrepareOptions, corpus: corpora.Corpus, work: pathlib.Path, progress: bool) -> tokenizer.Tokenizer:
    """The given tokenizer, or one trained on the documents that are not held out; written once, before any row."""
    folder = work / "tokenizer"
    if folder.exists():
        return tokenizer.load(folder)
    if options.tokenizer in TRAINED:
        layout = Layout(1, 1, options, "")
        texts = (document.text for document in corpus.documents() if layout.of_document(document.text)[0] == "train")
        texts = tqdm.tqdm(texts, "counting words", unit=" documents", disable=not progress, mininterval=_interval_secs())
        lower_case = options.lower_case
        if options.tokenizer == "wordpiece":
            lower_case = True if lower_case is None else lower_case
            tokens = tokenizer.train_wordpiece(texts, options.vocab_size, lower_case=lower_case, strip_accents=options.strip_accents)
        else:
            tokens = tokenizer.train_sentencepiece(texts, options.vocab_size, model_type=options.tokenizer, lower_case=bool(lower_case))
    else:
        tokens = tokenizer.load(options.tokenizer, lower_case=options.lower_case, strip_accents=options.strip_accents)
    temporary = work / "tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    tokens.save(temporary)
    os.replace(temporary, folder)
    return tokens


# Workers ------------------------------------------------------------------------------------------

_worker: tuple[tokenizer.Tokenizer, Layout]


def _start_worker(folder: str, layout: Layout) -> None:
    global _worker
    _worker = tokenizer.load(folder), layout


class _pool:
    """`with _pool(...) as run: run(function, arguments) -> Future`; one worker runs in a process of its own too."""

    def __init__(self, workers: int, folder: pathlib.Path, layout: Layout):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is parallel enough
        self._executor = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(str(folder), layout)
        )
        self.workers = workers

    def __enter__(self):
        return self

    def __call__(self, function: Callable, arguments: tuple) -> concurrent.futures.Future:
        return self._executor.submit(function, *arguments)

    def __exit__(self, kind, *_):
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)


def _tokenize(run: _pool, corpus: corpora.Corpus, folder: pathlib.Path, progress: bool) -> str:
    """Stage 1: documents in order -> chunk files. Returns the digest of the whole corpus."""
    folder.mkdir(exist_ok=True)
    chunk_bytes = min(max(corpus.num_bytes // CHUNKS, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
    digest, in_flight = hashlib.blake2b(digest_size=16), set()
    bar = tqdm.tqdm(
        desc="tokenizing", unit="B", unit_scale=True, total=_text_bytes(corpus), disable=not progress, mininterval=_interval_secs()
    )
    with bar:
        for number, texts in enumerate(_chunks(corpus.documents(), chunk_bytes)):
            for text in texts:
                digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
            path = folder / f"{number:07d}.npz"
            if not path.exists():
                in_flight.add(run(_tokenize_chunk, (str(path), texts)))
                if len(in_flight) > 2 * run.workers:  # bounds what is held of the corpus
                    finished, in_flight = concurrent.futures.wait(in_flight, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in finished:
                        future.result()
            bar.update(sum(map(len, texts)))
        for future in in_flight:
            future.result()
    return digest.hexdigest()


def _text_bytes(corpus: corpora.Corpus) -> float:
    """What is to be read, for the ETA: compressed text is about a quarter of itself."""
    packed = (".gz", ".xz", ".zst", ".zip", ".parquet")
    return sum(source.num_bytes * (4 if source.path.endswith(packed) else 1) for source in corpus.sources)


def _chunks(documents: Iterable[corpora.Document], chunk_bytes: int) -> Iterator[list[str]]:
    texts, size = [], 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)
        if size >= chunk_bytes:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _tokenize_chunk(path: str, texts: list[str]) -> None:
    """One chunk's documents, sorted by destination: for each its ids (flat), its lines' lengths and its documents' numbers of lines."""
    tokens, layout = _worker
    by_place: dict[tuple[str, int], list[str]] = {}
    for text in texts:
        by_place.setdefault(layout.of_document(text), []).append(text)
    arrays = {}
    for (split, bucket), documents in by_place.items():
        lines = [text.splitlines() for text in documents]
        ids = tokens.encode_batch([line for document in lines for line in document])
        name = f"{split}-{bucket}"
        arrays[f"{name}-ids"] = np.concatenate([*ids, np.zeros(0, np.int32)]).astype(layout.dtype)
        arrays[f"{name}-lines"] = np.array([len(line) for line in ids], np.int32)
        arrays[f"{name}-documents"] = np.array([len(document) for document in lines], np.int32)
    _write(pathlib.Path(path), lambda file: np.savez(file, **arrays))


def _pack(work: str, split: str, bucket: int, num_chunks: int) -> dict[str, int]:
    """Stage 2: one bucket's documents in order through a packer of its own -> its rows, sorted by part."""
    tokens, layout = _worker
    path = pathlib.Path(work) / "buckets" / f"{split}-{bucket:05d}.npz"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        options = layout.options
        random_draws = random.Random(layout.seed("pack", split, bucket))
        packer = PACKERS[options.packing](options.length, tokens.cls_id, tokens.sep_id, tokens.pad_id, random_draws)
        rows, num_documents = [], 0
        for number in range(num_chunks):
            for lines in _documents_of(pathlib.Path(work) / "chunks" / f"{number:07d}.npz", f"{split}-{bucket}"):
                rows.extend(row.astype(layout.dtype) for row in packer.add(lines))
                num_documents += 1
        rows.extend(row.astype(layout.dtype) for row in packer.flush())
        rows_NxL = np.stack(rows) if rows else np.zeros((0, options.length), layout.dtype)
        parts_N = np.array([layout.of_row(split, bucket, number) for number in range(len(rows))], np.int64)
        arrays = {f"part-{part}": rows_NxL[parts_N == part] for part in range(layout.num_parts(split))}
        stats = np.array([num_documents, len(rows), np.count_nonzero(rows_NxL != tokens.pad_id)], np.int64)
        _write(path, lambda file: np.savez(file, stats=stats, **arrays))
    with np.load(path) as saved:
        return dict(zip(("documents", "rows", "tokens"), map(int, saved["stats"]), strict=True))


def _documents_of(path: pathlib.Path, name: str) -> Iterator[list[np.ndarray]]:
    """The lines' token arrays of each document of one bucket in one chunk."""
    with np.load(path) as chunk:
        if f"{name}-ids" not in chunk:
            return
        ids, lines, documents = (chunk[f"{name}-{what}"] for what in ("ids", "lines", "documents"))
    ends = np.cumsum(lines)
    cut, at = np.split(ids, ends[:-1]) if len(lines) else [], 0
    for num_lines in documents:
        yield cut[at : at + num_lines]
        at += num_lines


def _shard(work: str, output: str, split: str, part: int) -> dict[str, Any]:
    """Stage 3: the rows of one part from all buckets, shuffled whole -> one shard."""
    tokens, layout = _worker
    done = pathlib.Path(work) / "parts" / f"{split}-{part:05d}.json"
    done.parent.mkdir(exist_ok=True)
    if not done.exists():
        buckets = (pathlib.Path(work) / "buckets" / f"{split}-{bucket:05d}.npz" for bucket in range(layout.buckets))
        pieces = []
        for path in buckets:
            with np.load(path) as saved:
                pieces.append(saved[f"part-{part}"])
        rows_NxL = np.concatenate(pieces)
        order = list(range(len(rows_NxL)))
        random.Random(layout.seed("shuffle", split, part)).shuffle(order)
        name = f"{split}-{part:05d}-of-{layout.num_parts(split):05d}.array_record"
        shard = {"rows": 0}
        if order:
            shard = records.write_shard(pathlib.Path(output) / name, rows_NxL[order])
        counts = np.bincount(rows_NxL.ravel(), minlength=tokens.vocab_size).astype(np.int64)
        _write(done.with_suffix(".npy"), lambda file: np.save(file, counts))
        _write(done, lambda file: file.write(json.dumps(shard).encode()))
    return json.loads(done.read_text())


def _each(run: _pool, function: Callable, arguments: list[tuple], what: str, progress: bool) -> list[Any]:
    """The results in order."""
    futures = [run(function, args) for args in arguments]
    bar = tqdm.tqdm(concurrent.futures.as_completed(futures), what, len(futures), disable=not progress, mininterval=_interval_secs())
    for future in bar:
        future.result()  # the first failure ends it
    return [future.result() for future in futures]


def _manifest(options, identity, tokens, layout, report, digest, packs, stats, parts, shards) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        mine = [stat for (of, _), stat in zip(packs, stats, strict=True) if of == split]
        splits[split] = {name: sum(stat[name] for stat in mine) for name in ("documents", "rows", "tokens")}
        splits[split]["shards"] = [shard for (of, _), shard in zip(parts, shards, strict=True) if of == split and shard["rows"]]
        if not splits[split]["rows"]:
            raise UserError(
                f"the {split} split is empty: {report.documents} documents and heldout={options.heldout}. Cut the text into more documents "
                "(blank lines in .txt, or --documents=file for a file each), or change --heldout"
            )
    return records.seal(
        {
            "format": records.FORMAT,
            "length": options.length,
            "packing": options.packing,
            "dtype": layout.dtype,
            "tokenizer": {
                name: getattr(tokens, name) for name in ("kind", "sha256", "vocab_size", "pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
            },
            "splits": splits,
            "corpus": {
                "digest": digest, "documents": report.documents, "text_bytes": report.text_bytes,
                "invalid_utf8_bytes": report.invalid_utf8_bytes, "empty_documents": report.empty_documents,
            },
            "identity": identity,
        }
    )  # fmt: skip


def _write(path: pathlib.Path, write: Callable) -> None:
    """Whole or not at all, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _interval_secs() -> float:
    return 0.1 if sys.stderr.isatty() else 10.0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def summary(output: str, manifest: dict[str, Any]) -> str:
    """What was made, and the command that trains on it."""
    train, heldout, corpus = manifest["splits"]["train"], manifest["splits"]["heldout"], manifest["corpus"]
    length, vocab_size = manifest["length"], manifest["tokenizer"]["vocab_size"]
    preset = "small" if length <= 128 else "base"
    return (
        f"{corpus['documents']:,} documents, {corpus['text_bytes'] / 1e6:.1f} MB of text, {corpus['invalid_utf8_bytes']:,} bytes not UTF-8\n"
        f"{train['rows']:,} training rows of {length}, {train['tokens']:,} tokens ({train['tokens'] / (train['rows'] * length):.1%} full); "
        f"{heldout['rows']:,} rows held out ({heldout['documents']:,} documents)\n"
        f"{output}: {len(train['shards'])} training shards, vocabulary of {vocab_size:,}\n"
        f"next: python launch/pretrain.py --config=configs/pretrain.py:{preset} --workdir=runs/{preset} --config.data.path={output} "
        f"--config.data.length={length} --config.model.vocab_size={vocab_size}"
    )
