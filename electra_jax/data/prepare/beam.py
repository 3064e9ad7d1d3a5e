"""Preparation as an Apache Beam pipeline, for a corpus that takes a cluster: the same shards as local.py's, byte for byte.

    python launch/prepare.py --input=/mnt/corpus --output=/mnt/rows --runner=FlinkRunner --beam_options=--flink_master=host:8081

    sources -> chunks of texts -> (bucket, token ids) -> GroupByKey -> (part, rows) -> GroupByKey -> shards

The functions are those of stages.py; what they hand on passes through Beam's shuffle: the text once, the token ids twice. Beam
gives a key's values in any order, so each carries its place and they are sorted by it. The launcher trains the vocabulary and
writes the manifest.

What a cluster must bring: this package on the workers, of the launcher's version (a container image, or --setup_file), and a file
system that launcher and workers mount at the same path, such as NFS, Lustre or gcsfuse: the sources are read there, and OUTPUT
holds the tokenizer that workers load and the shards that they write, a whole file each. gs:// and the like are not read.
DirectRunner needs none of it, and holds the whole corpus in memory: it is for trying.

Memory: a worker holds one chunk, the token ids of one bucket, or one part. A bucket is 8 MiB of input until there are 256, and
grows with the input then: --buckets takes 4,096. A runner may try again what failed on a worker. After a pipeline that
failed, the same command begins with the reading again, and does not write shards that are there.
"""

import dataclasses
import difflib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState

from electra_jax.cli import UserError, one_line
from electra_jax.data.prepare import stages, totals
from electra_jax.data.prepare.job import Job
from electra_jax.data.readers import scheme_of
from electra_jax.data.readers.corpus import Corpus, Report
from electra_jax.files import write_whole

# What DirectRunner comes to, after it has looked on the network for Prism, a program of its own.
_DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_ASK_A_SERVER = ("portablerunner", "flinkrunner", "sparkrunner")  # for options that Beam itself does not know


def open_pipeline(runner: str, flags: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline. UserError if Beam has no such runner or option, or the runner needs more of them."""

    def check(parser) -> None:
        """Beam passes over an option that it does not know, and exits at a wrong value."""

        def refuse(message: str) -> None:
            raise UserError(f"--beam_options: {message}")

        parser.error = refuse
        unknown = parser.parse_known_args(list(flags))[1]
        if unknown and runner.lower() not in _ASK_A_SERVER:
            names = [name for action in parser._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], names, 1)
            hint = f"did you mean --beam_options={near[0]}=...?" if near else "write --beam_options=--name=value"
            raise UserError(f"--beam_options={unknown[0]}: {runner} has no such option: {hint}")

    name = _DIRECT if runner.lower() == "directrunner" else runner
    options = PipelineOptions([*flags, f"--runner={name}"])
    options.get_all_options(retain_unknown_options=True, add_extra_args_fn=check)
    try:
        return beam.Pipeline(options=options)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--runner={runner}: {one_line(error)}") from None


def run(pipeline: beam.Pipeline, job: Job, units: Sequence[Corpus], train_parts: int) -> tuple[dict, list[dict]]:
    """Writes the shards; returns what totals.found adds up, and the rows and dropped tokens of each split.

    No shard is written if a split has no document. UserError, OSError: what a worker met; UserError: what the runner refused.
    """
    job = dataclasses.replace(job, output=os.path.abspath(job.output))
    results = job.work / "beam"
    results.mkdir(exist_ok=True)
    _build(pipeline, job, [(number, _absolute(unit)) for number, unit in enumerate(units)], train_parts, results)
    # A cluster's messages are of use; what fails in this process would be told twice, with its trace.
    logging.basicConfig()
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if isinstance(pipeline.runner, FnApiRunner) else logging.INFO)
    result = None
    try:
        result = pipeline.run()
        state = result.wait_until_finish()
    except KeyboardInterrupt:
        if result is not None:
            result.cancel()
        raise
    except Exception as error:
        if (mendable := _mendable(error)) is error:
            raise
        raise mendable from error
    if state != PipelineState.DONE:
        raise UserError(f"the pipeline ended {state}: see the runner's own log, then run the same command again")
    found, packed = (json.loads((results / name).read_bytes()) for name in ("found.json", "packed.json"))
    return found, packed


def _build(pipeline: beam.Pipeline, job: Job, units: list[tuple[int, Corpus]], train_parts: int, results: Path) -> None:
    # A Reshuffle parts what one worker would else do alone: a large file is read by one, and tokenized by all.
    sources = pipeline | "units" >> beam.Create(units) | "spread units" >> beam.Reshuffle()
    texts, reports = sources | "read" >> beam.FlatMap(_read, job).with_outputs("reports", main="texts")
    texts = texts | "spread texts" >> beam.Reshuffle()
    sections, counts = texts | "tokenize" >> beam.FlatMap(_tokenize, job).with_outputs("counts", main="sections")
    found = AsSingleton(
        pipeline
        | "found" >> beam.Create([results / "found.json"])
        | "add found" >> beam.Map(_add_found, job, train_parts, AsList(reports), AsList(counts))
    )
    buckets = sections | "by bucket" >> beam.GroupByKey()
    rows, packed = buckets | "pack" >> beam.FlatMap(_pack, job, found).with_outputs("packed", main="rows")
    pipeline | "packed" >> beam.Create([results / "packed.json"]) | "add packed" >> beam.Map(_add_packed, AsList(packed))
    parts = pipeline | "splits" >> beam.Create([0, 1]) | "parts" >> beam.FlatMap(_every_part, found)
    rows = (rows, parts) | "rows and parts" >> beam.Flatten() | "by part" >> beam.GroupByKey()
    rows | "write" >> beam.Map(_write, job, found)


def _absolute(corpus: Corpus) -> Corpus:
    """Workers run in folders of their own."""
    sources = [s if scheme_of(s.path) else dataclasses.replace(s, path=os.path.abspath(s.path)) for s in corpus.sources]
    return dataclasses.replace(corpus, sources=sources)


def _read(unit: tuple[int, Corpus], job: Job) -> Iterator:
    """((unit, chunk), texts); to "reports": (unit, its report)."""
    number, corpus = unit
    if not job.work.is_dir():
        raise UserError(f"{job.output} is not there on Beam's workers: inputs and --output must lie where all mount them at one path")
    report = Report()
    for chunk, texts in enumerate(stages.chunks_of(job, corpus, report)):
        yield (number, chunk), texts
    yield TaggedOutput("reports", (number, vars(report)))


def _tokenize(chunk: tuple[tuple[int, int], list[str]], job: Job) -> Iterator:
    """(group, (place, section)); to "counts": documents and tokens."""
    place, texts = chunk
    sections, counts = stages.tokenize(job, texts)
    yield TaggedOutput("counts", counts)
    for group, arrays in sections:
        yield group, (place, _joined(arrays))


def _add_found(path: Path, job: Job, train_parts: int, reports: list[tuple[int, dict]], counts: list[dict]) -> dict:
    in_order = sorted(reports, key=lambda report: report[0])
    found = totals.found(job, train_parts, (Report(**report) for _, report in in_order), counts)
    write_whole(path, json.dumps(found, indent=1))
    return found


def _pack(bucket: tuple[int, Iterable], job: Job, found: dict) -> Iterator:
    """((split, part), (place, rows)); to "packed": (split, rows and dropped tokens)."""
    group, sections = bucket
    if not all(found["documents"]):
        return
    split, number = job.split_and_bucket(group)
    job = dataclasses.replace(job, parts=tuple(found["parts"]))
    for block, (part, arrays) in enumerate(stages.pack(job, group, _sorted(sections))):
        if part == stages.META:
            yield TaggedOutput("packed", (split, json.loads(_joined(arrays))))
        else:
            yield (split, part), ((number, block), _joined(arrays))


def _add_packed(path: Path, packed: list[tuple[int, dict]]) -> None:
    names = ("rows", "dropped_tokens")
    added = [{name: sum(counts[name] for s, counts in packed if s == split) for name in names} for split in range(2)]
    write_whole(path, json.dumps(added, indent=1))


def _every_part(split: int, found: dict) -> Iterator:
    """No rows for each part: one that gets none is a shard all the same."""
    if all(found["documents"]):
        yield from (((split, part), ((-1, -1), b"")) for part in range(found["parts"][split]))


def _write(rows: tuple[tuple[int, int], Iterable], job: Job, found: dict) -> None:
    (split, part), sections = rows
    job = dataclasses.replace(job, parts=tuple(found["parts"]))
    if not job.shard_info_path(split, part).exists():
        stages.write_rows(job, split, part, _sorted(sections))


def _sorted(sections: Iterable[tuple[tuple[int, int], bytes]]) -> Iterator[bytes]:
    return (section for _, section in sorted(sections, key=lambda section: section[0]))


def _joined(arrays) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


def _mendable(error: Exception) -> Exception:
    """What a person can mend of a failed pipeline, else the error itself: a defect.

    What a worker met comes as text, or under another type: the exception's own type and message stand in a line of it.
    """
    text = f"{type(error).__name__}: {error}"
    if met := re.findall(r"UserError: (.+?)(?: \[while running .*)?$", text, re.MULTILINE):
        return UserError(met[-1])
    if met := re.findall(r"\[Errno (\d+)\] (.+?)(?:: '.*)? \[while running", text):
        return OSError(int(met[-1][0]), met[-1][1])
    if "[while running" in text:
        return error
    # Not a function of ours: a runner that refused or could not be reached, a worker that was killed.
    return UserError(f"the runner could not run the pipeline: {text.strip().splitlines()[-1]}: mend it and run the same command again")
