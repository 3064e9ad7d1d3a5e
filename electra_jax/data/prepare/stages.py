"""What preparation does in its worker processes: tokenize a chunk of documents, pack a bucket, write a part.

What each gives depends on the corpus and the options alone. `tokenize_chunk`, `pack_bucket` and `write_part` keep it in a file
that appears whole or not at all; `tokenize`, `pack` and `write_rows`, which they call, know nothing of the files between
the stages: the Beam pipeline hands their values on itself.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.prepare import packing, spill
from electra_jax.data.readers.corpus import Corpus, Report
from electra_jax.data.rows import order, records

SPLITS = ("train", "heldout")
PACKERS = {"pairs": packing.PairPacker, "dense": packing.DensePacker}
META = -1  # the key of a spill's own counts, in JSON
BLOCK_BYTES = 32 << 20  # of rows, that a packer collects before it spills them
PART_BYTES = 64 << 20
LINE_CHARS = 1 << 16  # tokenizing takes 12 times a text's size: a longer line is tokenized in pieces
_PACK, _PART, _SHUFFLE = range(3)  # what a hash is for


@dataclass(frozen=True)
class Job:
    """What the stages need to know; picklable."""

    output: str
    tokenizer_sha256: str
    vocab_size: int
    cls_id: int
    sep_id: int
    pad_id: int
    length: int
    packing: str
    heldout: float
    seed: int
    chunk_chars: int
    buckets: tuple[int, int]  # of each split
    parts: tuple[int, int] = (0, 0)

    @property
    def work(self) -> Path:
        return Path(self.output) / ".work"

    @property
    def dtype(self) -> np.dtype:
        return records.row_dtype(self.vocab_size)

    def chunk_path(self, unit: int, chunk: int) -> Path:
        return self.work / "chunks" / f"{unit:06d}-{chunk:06d}.spill"

    def unit_path(self, unit: int) -> Path:
        return self.work / "chunks" / f"{unit:06d}.json"

    def rows_path(self, split: int, bucket: int) -> Path:
        return self.work / "rows" / f"{SPLITS[split]}-{bucket:05d}.spill"

    def shard_path(self, split: int, part: int) -> Path:
        return Path(self.output) / f"{SPLITS[split]}-{part:05d}-of-{self.parts[split]:05d}.array_record"

    def shard_info_path(self, split: int, part: int) -> Path:
        return self.work / "parts" / f"{SPLITS[split]}-{part:05d}.spill"

    def group(self, digest: bytes) -> int:
        """Split and bucket as one number, from the text's hash: equal texts stay together, the held-out share is exact."""
        split = int(is_heldout(digest, self.heldout))
        return split * self.buckets[0] + int.from_bytes(digest[8:], "big") % self.buckets[split]

    def split_and_bucket(self, group: int) -> tuple[int, int]:
        split = int(group >= self.buckets[0])
        return split, group - split * self.buckets[0]


def text_hash(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def is_heldout(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.load(folder)
    if tokenizer.sha256 != sha256:
        raise UserError(f"{folder} changed while rows were made: choose another --output, or delete this one")
    return tokenizer


def write_json(path: Path, value) -> None:
    with records.whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def meta(path: Path) -> dict:
    return json.loads(next(spill.read(path, META)))


def _meta_section(value: dict) -> tuple[int, list[np.ndarray]]:
    return META, [np.frombuffer(json.dumps(value).encode(), np.uint8)]


def chunks_of(job: Job, corpus: Corpus, report: Report) -> Iterator[list[str]]:
    """The documents of the corpus in order, cut into chunks of about `chunk_chars` characters."""
    texts, size = [], 0
    for source in corpus.sources:
        for document in corpus.read(source, report):
            texts.append(document.text)
            size += len(document.text)
            if size >= job.chunk_chars:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def tokenize_unit(job: Job, unit: int, corpus: Corpus) -> int:
    """Reads some sources and tokenizes them; returns their bytes of text."""
    report, count = Report(), 0
    for count, texts in enumerate(chunks_of(job, corpus, report), 1):
        tokenize_chunk(job, job.chunk_path(unit, count - 1), texts)
    finish_unit(job, unit, count, report)
    return report.text_bytes


def finish_unit(job: Job, unit: int, chunks: int, report: Report) -> None:
    write_json(job.unit_path(unit), {"chunks": chunks, "report": vars(report)})


def tokenize_chunk(job: Job, path: Path, texts: Sequence[str]) -> int:
    """Writes the documents' token ids by split and bucket; returns the bytes of text."""
    if not path.exists():
        sections, counts = tokenize(job, texts)
        spill.write(path, [*sections, _meta_section(counts)])
    return sum(len(text.encode()) for text in texts)


def tokenize(job: Job, texts: Sequence[str]) -> tuple[list[tuple[int, list[np.ndarray]]], dict]:
    """(A section for each group that has documents, in the order of the texts; documents and tokens of each split).

    A section: int64 (documents, lines, tokens), int32 lines of each document, int32 tokens of each line, the ids.
    """
    lines, first_line, groups = [], [0], []
    for text in texts:
        groups.append(job.group(text_hash(text.encode())))
        lines += [line for line in text.split("\n") if line and not line.isspace()]
        first_line.append(len(lines))
    ids = _encode(_tokenizer(Path(job.output) / "tokenizer", job.tokenizer_sha256), lines)
    by_group: dict[int, tuple[list[int], list[np.ndarray]]] = {}
    counts = {"documents": [0, 0], "tokens": [0, 0]}
    for number, group in enumerate(groups):
        of_document = [line for line in ids[first_line[number] : first_line[number + 1]] if len(line)]
        if of_document:
            line_counts, group_lines = by_group.setdefault(group, ([], []))
            line_counts.append(len(of_document))
            group_lines += of_document
    sections = []
    for group, (line_counts, group_lines) in sorted(by_group.items()):
        flat, split = np.concatenate(group_lines).astype(job.dtype), int(group >= job.buckets[0])
        counts["documents"][split] += len(line_counts)
        counts["tokens"][split] += len(flat)
        sizes = np.array([len(line_counts), len(group_lines), len(flat)], "<i8")
        lengths = np.fromiter(map(len, group_lines), "<i4", len(group_lines))
        sections.append((group, [sizes, np.array(line_counts, "<i4"), lengths, flat]))
    return sections, counts


def found(job: Job, train_parts: int, reports: Iterable[Report], counts: Iterable[dict]) -> dict:
    """What all sources and chunks come to, and so how many parts each split has (`train_parts`, unless 0, for training).

    As many parts as keep one's rows within 64 MiB: a row a document, with pairs, and one for each `length - 2` tokens.
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


def _encode(tokenizer: tokenizers.Tokenizer, lines: Sequence[str]) -> list[np.ndarray]:
    """The ids of each line; white space ends a token, so a long line's are those of its pieces."""
    if all(len(line) <= LINE_CHARS for line in lines):
        return tokenizer.encode_batch(lines)
    return [
        tokenizer.encode_batch([line])[0]
        if len(line) <= LINE_CHARS
        else np.concatenate([tokenizer.encode_batch([piece])[0] for piece in _pieces(line)])
        for line in lines
    ]


def _pieces(line: str) -> Iterable[str]:
    """The line, cut at spaces where there are some."""
    for match in re.finditer(rf"[^ ].{{0,{LINE_CHARS}}}(?= |\Z)|[^ ]{{1,{LINE_CHARS}}}", line, re.DOTALL):
        yield match[0]


def _documents(section: bytes, dtype: np.dtype) -> Iterator[list[np.ndarray]]:
    """Each document's lines, from what `tokenize_chunk` wrote."""
    documents, lines, tokens = np.frombuffer(section, "<i8", 3).tolist()
    line_counts = np.frombuffer(section, "<i4", documents, 24)
    lengths = np.frombuffer(section, "<i4", lines, 24 + 4 * documents)
    flat = np.frombuffer(section, dtype, tokens, 24 + 4 * documents + 4 * lines)
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    views = [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    first = 0
    for count in line_counts.tolist():
        yield views[first : first + count]
        first += count


def pack_bucket(job: Job, split: int, bucket: int, chunks: Sequence[Path]) -> None:
    """Packs a bucket's documents, in the corpus's order, into rows; writes the rows by part."""
    path = job.rows_path(split, bucket)
    if not path.exists():
        group = split * job.buckets[0] + bucket
        spill.write(path, pack(job, group, (section for chunk in chunks for section in spill.read(chunk, group))))


def pack(job: Job, group: int, sections: Iterable[bytes]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The rows of a group's sections, block by block as (part, rows); last, under META, how many there are."""
    split, bucket = job.split_and_bucket(group)
    rng = random.Random(order.hash64(job.seed, split, bucket, _PACK))
    packer = PACKERS[job.packing](job.length, job.cls_id, job.sep_id, job.pad_id, rng)
    block_rows = max(1, BLOCK_BYTES // (4 * job.length))

    def rows() -> Iterator[np.ndarray]:
        for section in sections:
            for lines in _documents(section, job.dtype):
                yield from packer.add(lines)
        yield from packer.flush()

    def by_part(block: list[np.ndarray], first_row: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        block_NxL = np.stack(block).astype(job.dtype)
        part = order.hashes(len(block), job.seed, split, bucket, _PART, start=first_row) % np.uint64(job.parts[split])
        for number in np.unique(part).tolist():
            yield number, [block_NxL[part == number]]

    written, block = 0, []
    for row in rows():
        block.append(row)
        if len(block) == block_rows:
            yield from by_part(block, written)
            written, block = written + len(block), []
    if block:
        yield from by_part(block, written)
    dropped = getattr(packer, "dropped_tokens", 0)
    yield _meta_section({"rows": written + len(block), "dropped_tokens": dropped})


def write_part(job: Job, split: int, part: int) -> None:
    """Gathers a part's rows from all buckets and writes them as a shard."""
    if not job.shard_info_path(split, part).exists():
        buckets = range(job.buckets[split])
        write_rows(job, split, part, (s for bucket in buckets for s in spill.read(job.rows_path(split, bucket), part)))


def write_rows(job: Job, split: int, part: int, sections: Iterable[bytes]) -> None:
    """Shuffles a part's rows whole, and writes them as a shard."""
    data = b"".join(sections)
    rows_NxL = np.frombuffer(data, job.dtype).reshape(-1, job.length)
    rows_NxL = rows_NxL[order.permutation(len(rows_NxL), job.seed, split, part, _SHUFFLE)]
    del data
    shard = records.write_shard(job.shard_path(split, part), rows_NxL)
    shard["tokens"] = int(np.count_nonzero(rows_NxL != job.pad_id))
    counts_V = np.zeros(job.vocab_size, "<i8")
    for start in range(0, len(rows_NxL), 8192):
        counts_V += np.bincount(rows_NxL[start : start + 8192].ravel(), minlength=job.vocab_size)
    spill.write(job.shard_info_path(split, part), [_meta_section(shard), (0, [counts_V])])


def part_counts(job: Job, split: int, part: int) -> np.ndarray:
    """int64 [V]: how often each id stands in the part's rows."""
    return np.frombuffer(next(spill.read(job.shard_info_path(split, part), 0)), "<i8")
