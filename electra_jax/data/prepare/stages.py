"""What preparation does in its worker processes: tokenize a chunk of documents, pack a bucket, write a part.

The result of each stage depends on the corpus and the options alone. Local workers call `tokenize_chunk`, `pack_bucket` and
`write_part`, which keep the result in a file that appears whole or not at all. These call `tokenize`, `pack` and `write_rows`, which
know nothing of the files between the stages: the Beam pipeline (beam.py) calls them directly and passes their results on itself.
"""

import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.prepare import spill
from electra_jax.data.prepare.job import Job
from electra_jax.data.prepare.packing import PACKERS
from electra_jax.data.prepare.split import document_hash
from electra_jax.data.readers.corpus import Corpus, Report
from electra_jax.data.rows import hashing, records
from electra_jax.files import write_whole

META = -1  # the key of a spill's own counts, in JSON
BLOCK_BYTES = 32 << 20  # of rows, which are collected before they are written between the stages
# Tokenizing a line needs some 12 times its size in memory, so a longer line is tokenized in pieces.
LINE_CHARS = 1 << 16
# A line or document needs some hundred bytes whatever its size, so what has many short ones is taken in smaller portions.
LINES_AT_ONCE = 1 << 14
DOCUMENT_CHARS = 32  # counted for each document beside its own
_PACK, _PART, _SHUFFLE = range(3)  # a word of each hash: what it is for, so that no two uses share one


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.load(folder)
    if tokenizer.sha256 != sha256:
        raise UserError(f"{folder} changed while rows were made: choose another --output, or delete this one")
    return tokenizer


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
            size += len(document.text) + DOCUMENT_CHARS
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
    write_whole(job.unit_path(unit), json.dumps({"chunks": chunks, "report": vars(report)}, indent=1))


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
    tokenizer = _tokenizer(Path(job.output) / "tokenizer", job.tokenizer_sha256)
    groups = [job.group(document_hash(text)) for text in texts]
    by_group: dict[int, _Group] = {group: _Group() for group in set(groups)}
    for portion in _portions(texts):
        ids = iter(_encode(tokenizer, [line for _, lines in portion for line in lines]))
        for number, lines in portion:
            by_group[groups[number]].add(number, [line for line in itertools.islice(ids, len(lines)) if len(line)])
        for group in by_group.values():
            group.pack(job.dtype)
    sections = []
    counts = {"documents": [0, 0], "tokens": [0, 0]}
    for number, group in sorted(by_group.items()):
        if section := group.section():
            sections.append((number, section))
            documents, _, tokens = section[0].tolist()
            split = int(number >= job.buckets[0])
            counts["documents"][split] += documents
            counts["tokens"][split] += tokens
    return sections, counts


def _portions(texts: Sequence[str]) -> Iterator[list[tuple[int, list[str]]]]:
    """[(number of a text, some of its lines)], some LINES_AT_ONCE lines in all."""
    portion, size = [], 0
    for number, text in enumerate(texts):
        for lines in _lines(text):
            portion.append((number, lines))
            size += len(lines)
            if size >= LINES_AT_ONCE:
                yield portion
                portion, size = [], 0
    if portion:
        yield portion


def _lines(text: str) -> Iterator[list[str]]:
    """The lines of a text that are no white space, some at a time."""
    if len(text) <= LINE_CHARS:
        yield [line for line in text.split("\n") if line and not line.isspace()]
        return
    lines = (match[0] for match in re.finditer(r"[^\n]+", text) if not match[0].isspace())
    while some := list(itertools.islice(lines, LINES_AT_ONCE)):
        yield some


class _Group:
    """The documents of a split and bucket, portion by portion, as the arrays of a section."""

    def __init__(self):
        self._last, self._line_counts, self._lines = -1, [], []
        self._lengths, self._ids = [], []

    def add(self, number: int, lines: list[np.ndarray]) -> None:
        """Further lines of the document of this number."""
        if lines:
            if number != self._last:
                self._line_counts.append(0)
                self._last = number
            self._line_counts[-1] += len(lines)
            self._lines += lines

    def pack(self, dtype: np.dtype) -> None:
        """Joins what was added: an array takes a hundred bytes more than its line's tokens."""
        if self._lines:
            self._lengths.append(np.fromiter(map(len, self._lines), "<i4", len(self._lines)))
            self._ids.append(np.concatenate(self._lines).astype(dtype))
            self._lines = []

    def section(self) -> list[np.ndarray] | None:
        """None where no document had a token."""
        if not self._ids:
            return None
        lengths, flat = np.concatenate(self._lengths), np.concatenate(self._ids)
        sizes = np.array([len(self._line_counts), len(lengths), len(flat)], "<i8")
        return [sizes, np.array(self._line_counts, "<i4"), lengths, flat]


def _encode(tokenizer: tokenizers.Tokenizer, lines: Sequence[str]) -> list[np.ndarray]:
    """The ids of each line. White space ends a token, so the ids of a long line are those of its pieces, one after the other."""
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


def _documents(section: bytes, dtype: np.dtype) -> Iterator[Iterator[np.ndarray]]:
    """Each document's lines, from what `tokenize_chunk` wrote."""
    documents, lines, tokens = np.frombuffer(section, "<i8", 3).tolist()
    line_counts = np.frombuffer(section, "<i4", documents, 24)
    lengths = np.frombuffer(section, "<i4", lines, 24 + 4 * documents)
    flat = np.frombuffer(section, dtype, tokens, 24 + 4 * documents + 4 * lines)
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    first = 0
    for count in line_counts.tolist():
        yield _views(flat, bounds[first : first + count + 1])
        first += count


def _views(flat: np.ndarray, bounds: np.ndarray) -> Iterator[np.ndarray]:
    for block in range(0, len(bounds) - 1, LINES_AT_ONCE):
        some = bounds[block : block + LINES_AT_ONCE + 1].tolist()
        for start, end in itertools.pairwise(some):
            yield flat[start:end]


def pack_bucket(job: Job, split: int, bucket: int, chunks: Sequence[Path]) -> None:
    """Packs a bucket's documents, in the corpus's order, into rows; writes the rows by part."""
    path = job.rows_path(split, bucket)
    if not path.exists():
        group = split * job.buckets[0] + bucket
        spill.write(path, pack(job, group, (section for chunk in chunks for section in spill.read(chunk, group))))


def pack(job: Job, group: int, sections: Iterable[bytes]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The rows of a group's sections, block by block as (part, rows); last, under META, how many there are."""
    split, bucket = job.split_and_bucket(group)
    rng = random.Random(hashing.hash64(job.seed, split, bucket, _PACK))
    packer = PACKERS[job.packing](job.length, job.cls_id, job.sep_id, job.pad_id, rng)
    block_rows = max(1, BLOCK_BYTES // (4 * job.length))

    def rows() -> Iterator[np.ndarray]:
        for section in sections:
            for lines in _documents(section, job.dtype):
                yield from packer.add(lines)
        yield from packer.flush()

    def by_part(block: list[np.ndarray], first_row: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        block_NxL = np.stack(block).astype(job.dtype)
        part = hashing.hashes(len(block), job.seed, split, bucket, _PART, start=first_row) % np.uint64(job.parts[split])
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
    rows_NxL = rows_NxL[hashing.permutation(len(rows_NxL), job.seed, split, part, _SHUFFLE)]
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
