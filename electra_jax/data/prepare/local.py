"""The stages of a preparation on processes of this machine. The counterpart, on a cluster, is beam.py."""

import dataclasses
import json
import shutil
from collections.abc import Iterator

from electra_jax.data.prepare import stages
from electra_jax.data.prepare.job import Job
from electra_jax.data.prepare.options import PrepareOptions
from electra_jax.data.prepare.totals import check_found, found, require_rows
from electra_jax.data.prepare.workers import Meter, Workers
from electra_jax.data.readers.corpus import Corpus, Report
from electra_jax.files import write_whole


def run(workers: int, job: Job, options: PrepareOptions, corpus: Corpus, progress: bool) -> tuple[Job, dict, list[dict]]:
    """Stages 1 to 3: the job with its numbers of parts, what was read, and what was packed of each split."""
    for folder in ("chunks", "rows"):
        (job.work / folder).mkdir(exist_ok=True)
    with Workers(workers, corpus.num_bytes) as pool:
        documents = _tokenize(job, options, corpus, pool, progress)
        job = dataclasses.replace(job, parts=tuple(documents["parts"]))
        packed = _pack(job, documents, pool, progress)
        require_rows(options, corpus, documents, packed)
        tasks = [(job, split, part) for split in range(2) for part in range(job.parts[split])]
        with Meter("writing", len(tasks), "shards", progress) as meter:
            for _ in pool.each(stages.write_part, tasks):
                meter.add(1)
    return job, documents, packed


def units(corpus: Corpus, chunk_chars: int) -> list[Corpus]:
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
    parts = units(corpus, job.chunk_chars)
    missing = [number for number in range(len(parts)) if not job.unit_path(number).exists()]
    with Meter("tokenizing", corpus.text_bytes, "B", progress) as meter:
        if len(parts) >= 4 * min(pool.workers, 8):  # enough for each worker to read for itself
            for size in pool.each(stages.tokenize_unit, ((job, number, parts[number]) for number in missing)):
                meter.add(size)
        else:
            for number in missing:
                report, count = Report(), [0]
                for size in pool.each(stages.tokenize_chunk, _chunk_tasks(job, number, parts[number], report, count)):
                    meter.add(size)
                stages.finish_unit(job, number, count[0], report)
    read = [json.loads(job.unit_path(number).read_bytes()) for number in range(len(parts))]
    counts = (stages.meta(job.chunk_path(number, chunk)) for number, unit in enumerate(read) for chunk in range(unit["chunks"]))
    documents = found(job, options.parts, [Report(**unit["report"]) for unit in read], counts)
    check_found(documents, options, corpus, progress)
    documents["chunks"] = [unit["chunks"] for unit in read]
    write_whole(done, json.dumps(documents, indent=1))
    return documents


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
        packed = []
        for split in range(2):
            buckets = [stages.meta(job.rows_path(split, bucket)) for bucket in range(job.buckets[split])]
            packed.append({name: sum(bucket[name] for bucket in buckets) for name in ("rows", "dropped_tokens")})
        write_whole(done, json.dumps(packed, indent=1))
    shutil.rmtree(job.work / "chunks", ignore_errors=True)
    return json.loads(done.read_bytes())
