"""Preparation on Apache Beam: the bytes of the local one, and its manners (make beam)."""

import dataclasses
import errno
import gzip
import json
import random
import subprocess
import tarfile
import time

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make beam")

from electra_jax.cli import UserError
from electra_jax.data import prepare, tokenizers
from electra_jax.data.prepare import PrepareOptions, beam, spill, stages
from electra_jax.data.prepare.job import Job
from electra_jax.data.readers.corpus import open_corpus
from electra_jax.data.rows import records
from tests.data import kill_prepare
from tests.data.kill_prepare import tree

THREADS = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


@pytest.fixture(scope="module")
def pieces(real_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train_wordpiece([real_text.read_text()], 600).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mixed(real_text, tmp_path_factory):
    """30 files of two kinds, of which some hold nothing, or what is not UTF-8, or are to be passed over."""
    folder = tmp_path_factory.mktemp("mixed")
    documents = real_text.read_text().split("\n\n")
    for number in range(30):
        some = documents[number::30]
        if number % 2:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in [*some, ""])
            (folder / f"{number:03d}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
        else:
            (folder / f"{number:03d}.txt").write_text("\n\n".join(some))
    for name in ("005a.txt", "015a.txt", "025a.txt"):
        (folder / name).write_bytes(b"")
    (folder / "020a.txt").write_bytes(b"not \xff UTF-8, \xfe\n")
    (folder / "b.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(prepare, "CHUNK_CHARS", 20_000)


def options_of(output, *inputs, **options):
    options = {"length": 32, "heldout": 0.1, "packing": "dense", **options}
    return PrepareOptions(tuple(map(str, inputs)), str(output), **options)


def locally(output, *inputs, progress=False, **options):
    return prepare.prepare(options_of(output, *inputs, **options), workers=1, progress=progress)


def on_beam(output, *inputs, runner="DirectRunner", flags=(), progress=False, **options):
    return prepare.prepare(options_of(output, *inputs, **options), runner=runner, beam_options=flags, progress=progress)


@pytest.mark.parametrize("kind", ["dense", "pairs"])
def test_same_bytes_and_notes_as_the_local_one(kind, mixed, pieces, tmp_path, capsys):
    options = dict(tokenizer=pieces, packing=kind, parts=3)
    told = []
    for make, name in ((locally, "local"), (on_beam, "beam")):
        make(tmp_path / name, mixed, progress=True, **options)
        told.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")])
    expected = tree(tmp_path / "local")
    assert len(expected) == 10 and tree(tmp_path / "beam") == expected
    assert len(told[0]) == 4 and told[1] == told[0]
    records.Split(tmp_path / "beam", "train").read_chunk(0)


def test_same_bytes_of_one_file_whose_vocabulary_is_trained(real_text, tmp_path, monkeypatch):
    """One source in many chunks, and blocks of rows so small that a bucket gives a part many."""
    monkeypatch.setattr(stages, "BLOCK_BYTES", 4 * 32 * 100)
    options = dict(tokenizer="wordpiece", vocab_size=600, packing="pairs", buckets=3, seed=5)
    locally(tmp_path / "local", real_text, **options)
    on_beam(tmp_path / "beam", real_text, flags=THREADS, **options)
    assert tree(tmp_path / "beam") == tree(tmp_path / "local")


def test_same_bytes_from_worker_processes_and_relative_paths(mixed, pieces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").symlink_to(mixed)
    given, real = [], beam._build
    monkeypatch.setattr(beam, "_build", lambda pipeline, *rest: (given.append(rest), real(pipeline, *rest)))
    on_beam("beam", "in", flags=PROCESSES, tokenizer=pieces, parts=2)
    locally("local", "in", tokenizer=pieces, parts=2)
    assert tree(tmp_path / "beam") == tree(tmp_path / "local")
    [(job, units, *_)] = given  # a cluster's workers run elsewhere
    assert job.output == str(tmp_path / "beam")
    assert all(source.path.startswith(f"{tmp_path}/in/") for _, unit in units for source in unit.sources)


def test_same_bytes_through_a_job_server(mixed, pieces, tmp_path):
    """The way to Flink and Spark: the pipeline and its values cross gRPC, to Beam's own job server here."""
    flags = ("--job_endpoint=embed", "--environment_type=LOOPBACK")
    on_beam(tmp_path / "beam", mixed, runner="PortableRunner", flags=flags, tokenizer=pieces, parts=2)
    locally(tmp_path / "local", mixed, tokenizer=pieces, parts=2)
    assert tree(tmp_path / "beam") == tree(tmp_path / "local")


def test_parts_without_a_row_are_shards(tmp_path, pieces):
    source = tmp_path / "few.txt"
    source.write_text("\n\n".join(f"some words of document {n}" for n in range(30)))
    options = dict(tokenizer=pieces, parts=40, heldout=0.3)
    manifest = on_beam(tmp_path / "beam", source, **options)
    locally(tmp_path / "local", source, **options)
    assert tree(tmp_path / "beam") == tree(tmp_path / "local")
    assert sum(shard["rows"] == 0 for shard in manifest["splits"]["train"]["shards"]) > 10


def test_values_may_come_in_any_order(real_text, pieces, tmp_path, monkeypatch):
    """Beam promises none. What the local stages left between them is handed to Beam's functions, shuffled."""
    monkeypatch.setattr(stages, "write_part", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    monkeypatch.setattr(prepare.shutil, "rmtree", lambda *_, **__: None)
    jobs, real = [], stages.pack_bucket
    monkeypatch.setattr(stages, "pack_bucket", lambda job, *rest: (jobs.append(job), real(job, *rest)))
    with pytest.raises(UserError, match="free some space"):
        locally(tmp_path / "o", real_text, tokenizer=pieces, parts=2, buckets=1, packing="pairs")
    job = jobs[0]
    chunks = sorted((job.work / "chunks").glob("*.spill"))
    sections = [((0, n), section) for n, chunk in enumerate(chunks) for section in spill.read(chunk, 0)]
    assert len(sections) > 10
    random.Random(0).shuffle(sections)
    found = {"documents": [1, 1], "parts": list(job.parts)}
    given = [value for value in beam._pack((0, sections), job, found) if isinstance(value, tuple)]
    for part in range(2):
        rows = [value for key, value in given if key == (0, part)]
        assert list(beam._sorted(reversed(rows))) == list(spill.read(job.rows_path(0, 0), part))


# Whose folder it is, and ends before the end.


def test_a_finished_folder_is_finished_for_both(mixed, pieces, tmp_path, capsys):
    locally(tmp_path / "local", mixed, tokenizer=pieces)
    on_beam(tmp_path / "beam", mixed, tokenizer=pieces)
    before = tree(tmp_path)
    assert on_beam(tmp_path / "local", mixed, tokenizer=pieces, progress=True) == locally(
        tmp_path / "beam", mixed, tokenizer=pieces, progress=True
    )
    assert capsys.readouterr().err.count("nothing to do") == 2 and tree(tmp_path) == before


@pytest.mark.parametrize("stage", ["tokenize", "pack", "write_rows"])
@pytest.mark.parametrize("first, then", [(locally, on_beam), (on_beam, locally), (on_beam, on_beam)])
def test_one_goes_on_where_the_other_failed(stage, first, then, mixed, pieces, tmp_path, monkeypatch):
    """The disk fills up in the middle of a stage."""
    locally(tmp_path / "whole", mixed, tokenizer=pieces, parts=3)
    real, left = getattr(stages, stage), [2]

    def fill(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
        return real(*arguments)

    monkeypatch.setattr(stages, stage, fill)
    with pytest.raises(UserError, match="the disk is full: free some space, then run the same command again"):
        first(tmp_path / "o", mixed, tokenizer=pieces, parts=3)
    assert not (tmp_path / "o" / records.MANIFEST).exists()
    monkeypatch.setattr(stages, stage, real)
    then(tmp_path / "o", mixed, tokenizer=pieces, parts=3)
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")


def test_shards_that_are_there_are_not_written_again(mixed, pieces, tmp_path, monkeypatch):
    real, written = stages.write_rows, []
    monkeypatch.setattr(stages, "write_rows", lambda job, split, part, rows: written.append((split, part)) or real(job, split, part, rows))
    monkeypatch.setattr(prepare, "finish", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    for _ in range(2):
        with pytest.raises(UserError, match="free some space"):
            on_beam(tmp_path / "o", mixed, tokenizer=pieces, parts=3)
    assert sorted(written) == [(0, 0), (0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("flags", [(), THREADS, PROCESSES])
def test_what_a_worker_cannot_read_is_one_line_and_can_be_mended(flags, pieces, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"body": f"some words of document {n}"}) + "\n" for n in range(50)))
    with pytest.raises(UserError, match=r"a.jsonl:1 has no field 'text', but 'body': name the one that holds the text \(text_field\)$"):
        on_beam(tmp_path / "o", source, flags=flags, tokenizer=pieces)
    assert not any((tmp_path / "o").iterdir())
    on_beam(tmp_path / "o", source, flags=flags, tokenizer=pieces, text_field="body")


def test_a_defect_keeps_its_trace(mixed, pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "pack", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        on_beam(tmp_path / "o", mixed, tokenizer=pieces)
    with pytest.raises(Exception, match="Traceback(.|\n)*ZeroDivisionError") as error:
        on_beam(tmp_path / "o", mixed, flags=THREADS, tokenizer=pieces)
    assert not isinstance(error.value, UserError | OSError)
    assert not (tmp_path / "o" / records.MANIFEST).exists()


@pytest.mark.parametrize("heldout, split", [(1e-6, "held-out"), (0.999999, "training")])
def test_an_empty_split_writes_no_shard(heldout, split, mixed, pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "write_rows", lambda *_: pytest.fail("a shard was written"))
    messages = []
    for make in (locally, on_beam):
        with pytest.raises(UserError, match=f"the {split} split is empty") as error:
            make(tmp_path / "o", mixed, tokenizer=pieces, heldout=heldout)
        messages.append(str(error.value))
        assert not any((tmp_path / "o").iterdir())
    assert messages[0] == messages[1]


def test_no_document_is_told(pieces, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n\n")
    with pytest.raises(UserError, match="no document in the input"):
        on_beam(tmp_path / "o", tmp_path / "a.txt", tokenizer=pieces)


def test_workers_that_do_not_see_the_output_say_so(mixed, tmp_path):
    job = Job(str(tmp_path / "o"), "", 600, 2, 3, 0, 32, "dense", heldout=0.1, seed=0, chunk_chars=1, buckets=(4, 2))
    with pytest.raises(UserError, match="is not there on Beam's workers.*where all mount them at one path"):
        list(beam._read((0, open_corpus([str(mixed)])), job))


# Runners and their options.


@pytest.mark.parametrize(
    "runner, flags, message",
    [
        ("Foo", (), "--runner=Foo: Unexpected pipeline runner: Foo.*DataflowRunner"),
        ("no.such.Runner", (), "--runner=no.such.Runner: No module named 'no'"),
        ("DataflowRunner", (), "--runner=DataflowRunner: .*Missing required option: region"),
        ("DirectRunner", ("--direct_num_worker=2",), "DirectRunner has no such option: did you mean --beam_options=--direct_num_workers="),
        ("DirectRunner", ("foo",), "has no such option: write --beam_options=--name=value"),
        ("DirectRunner", ("--direct_num_workers=two",), "invalid int value: 'two'"),
        ("local", ("--direct_num_workers=2",), "beam_options=--direct_num_workers=2: they are for a Beam runner"),
    ],
)
def test_a_wrong_runner_or_option_claims_nothing(runner, flags, message, mixed, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare.prepare(options_of(tmp_path / "o", mixed), runner=runner, beam_options=flags)
    assert not (tmp_path / "o").exists()


def test_workers_are_the_runners_affair(mixed, tmp_path):
    with pytest.raises(UserError, match="workers=2 is for --runner=local; DirectRunner has an option of its own"):
        prepare.prepare(options_of(tmp_path / "o", mixed), workers=2, runner="DirectRunner")


def test_a_runner_that_refuses_is_one_line(mixed, pieces, tmp_path):
    with pytest.raises(UserError, match="the runner could not run the pipeline: .*--job_endpoint"):
        prepare.prepare(options_of(tmp_path / "o", mixed, tokenizer=pieces), runner="PortableRunner", progress=False)
    assert not any((tmp_path / "o").iterdir())


def test_a_killed_worker_is_one_line():
    error = RuntimeError("Traceback (most recent call last):\n  ...\nRuntimeError: Channel closed prematurely.\n")
    mendable = beam._mendable(error)
    assert isinstance(mendable, UserError) and "could not run the pipeline: RuntimeError: Channel closed prematurely" in str(mendable)


def test_the_command(mixed, pieces, tmp_path):
    def run(*more):
        common = (f"--input={mixed}", f"--tokenizer={pieces}", "--length=32", "--heldout=0.1")
        return subprocess.run(kill_prepare.command(*common, *more), capture_output=True, text=True)

    done = run(f"--output={tmp_path / 'beam'}", "--runner=DirectRunner", "--beam_options=--direct_num_workers=1")
    assert done.returncode == 0 and not set(done.stderr.split()) & {"WARNING:root:apitools", "Traceback"}, done.stderr
    assert run(f"--output={tmp_path / 'local'}").returncode == 0
    assert tree(tmp_path / "beam") == tree(tmp_path / "local")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    for more, code in ((["--runner=Foo"], 2), ([f"--input={bad}", "--runner=DirectRunner"], 2)):
        done = run(f"--output={tmp_path / 'o'}", *more)
        told = [line for line in done.stderr.splitlines() if not line.startswith("beam: ")]
        assert done.returncode == code and len(told) == 1 and told[0].startswith("prepare.py: "), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "pairs"])
def test_twenty_megabytes(kind, shared_data, tmp_path, monkeypatch, capsys):
    """Novels, with the chunks and buckets that they have by default."""
    monkeypatch.undo()
    folder, size = tmp_path / "novels", 0
    folder.mkdir()
    with tarfile.open(shared_data / "corpora" / "novels_train.tar.xz") as archive:
        for member in archive:
            if member.isfile() and size < 20_000_000:
                data = archive.extractfile(member).read()[: 20_000_000 - size]
                (folder / member.name.rsplit("/", 1)[-1]).write_bytes(data)
                size += len(data)
    assert size == 20_000_000
    vocabulary = str(shared_data / "vocab" / "bert_uncased_vocab.txt")
    options = options_of(tmp_path / "local", folder, tokenizer=vocabulary, length=128, packing=kind, heldout=0.01)
    secs = {}
    for name, how in {"local": {"workers": 2}, "beam": {"runner": "DirectRunner"}}.items():
        start = time.monotonic()
        manifest = prepare.prepare(dataclasses.replace(options, output=str(tmp_path / name)), **how, progress=False)
        secs[name] = time.monotonic() - start
    expected = tree(tmp_path / "local")
    assert tree(tmp_path / "beam") == expected
    with capsys.disabled():
        print(
            f"\n{kind}: 20 MB in {len(list(folder.iterdir()))} files, {manifest['corpus']['documents']:,} documents, "
            f"{manifest['splits']['train']['rows']:,} rows, {len(expected)} files of {sum(map(len, expected.values())):,} bytes, all the "
            f"same; local, 2 workers {secs['local']:.1f} s; Beam's DirectRunner, 1 worker {secs['beam']:.1f} s"
        )
