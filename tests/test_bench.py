"""The measuring tool: its statistics and tables on made-up numbers, and the real thing with a tiny model and few rounds."""

import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from benchmarks import growth, ours, parts, rows, step, suite, tables
from benchmarks.processes import Side, Spread, Turns, first_turn_secs, measure, spread
from electra_jax.cli import UserError
from electra_jax.models import costs
from electra_jax.models.config import PRESETS

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENT = {"platform": "cpu", "kind": "cpu", "cores": 2, "instructions": "AVX2", "peak_bfloat16": None, "versions": {"jax": "1.2.3"}}


def tiny(**model):
    config = step.config(suite.load_config(ROOT), "tiny", 8, 64)
    config["model"] |= {"vocab_size": 2000, **model}
    config["optimizer"]["name"] = "adamw"  # compiles in half of muon's time
    return config


def test_a_ratio_is_taken_round_by_round():
    samples = {"a": [{"wall": w, "work": 6.0} for w in (1.0, 2.0, 4.0)], "b": [{"wall": w, "work": 3.0} for w in (2.0, 4.0, 8.0)]}
    turns = Turns(samples, {})
    assert turns.ratio("b", "a", "wall") == (2.0, 2.0, 2.0)  # the noise that both share is gone
    assert turns.rates("a", "b", "work") == (4.0, 4.0, 4.0)
    assert turns.rate("a", "work").median == 3.0
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0)


def test_sides_wait_for_their_turns_and_say_why_they_cannot_start():
    side = Side("counts", "tests.bench_side:counting", {})
    broken = side._replace(name="broken", arguments={"broken": True})
    turns = measure([side, broken, side._replace(name="absent", needs=("no_such_package",))], rounds=3, optional=["broken", "absent"])
    assert [sample["turn"] for sample in turns.samples["counts"]] == [4, 5, 6]  # one that compiles and two that warm up come before
    assert all(sample["wall"] > 0 and sample["peak_mib"] > 1 for sample in turns.samples["counts"])
    assert turns.failed == {"broken": "RuntimeError: no such | device", "absent": "not installed: pip install no_such_package"}
    with pytest.raises(UserError, match="broken: .*no such"):
        measure([broken], rounds=3)
    with pytest.raises(UserError, match="round 2.*lost the device"):
        measure([side._replace(arguments={"fails_at": 5})], rounds=3)
    turns = measure([side, side._replace(name="dies", arguments={"fails_at": 5})], rounds=3, optional=["dies"])
    assert list(turns.samples) == ["counts"] and len(turns.samples["counts"]) == 3
    assert turns.failed["dies"].startswith("failed in round 2: RuntimeError")
    assert 0 < first_turn_secs(side) < 60
    with pytest.raises(UserError, match="no such"):
        first_turn_secs(broken)


def untidy():
    folder = tempfile.TemporaryDirectory()

    def run():
        pathlib.Path(folder.name, "file").touch()
        return {"left": len(os.listdir(folder.name))}

    return run


def test_a_killed_side_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # to be found anew
    turns = measure([Side("untidy", "tests.test_bench:untidy", {})], 1)
    assert turns.samples["untidy"][0]["left"] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_sides_too(stop, real_text, tmp_path):
    """In the midst of preparing, which has files of its own."""
    text, files = tmp_path / "text.txt", tmp_path / "files"
    text.write_text("\n\n".join([real_text.read_text(encoding="utf-8")] * 3), encoding="utf-8")
    files.mkdir()
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "--what=preparation", "--rounds=99", f"--text={text}"]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(files)}, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(files.glob("*/*/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2 and "the same command starts anew" in errors, errors
    assert list(files.iterdir()) == []


def test_tables_into_a_page(tmp_path):
    table = tables.Table("step x", "Seconds.", ("side", "s"), [["ours", tables.number(0.01234)], ["theirs", "a|b"]], {"x": 1})
    page = tmp_path / "speed.md"
    page.write_text("by hand\n<!-- bench:step x -->\nold\n<!-- /bench -->\nby hand too\n<!-- bench:step y -->\nstays\n<!-- /bench -->\n")
    tables.write_docs(page, [table], ENVIRONMENT)
    words = page.read_text()
    assert words.startswith("by hand\n<!-- bench:step x -->\nSeconds. On 2 CPU cores, AVX2; jax 1.2.3.\n\n| side | s |\n|---|---|\n")
    assert "| ours | 0.0123 |" in words and "a\\|b" in words and "old" not in words and "by hand too" in words and "stays" in words
    tables.write_docs(page, [table], ENVIRONMENT)
    assert page.read_text() == words
    with pytest.raises(UserError, match="no place"):
        tables.write_docs(page, [table._replace(name="step z")], ENVIRONMENT)
    tables.write_json(tmp_path / "speed.json", [table], ENVIRONMENT)
    assert json.loads((tmp_path / "speed.json").read_text())["tables"]["step x"] == {"x": 1}
    assert [tables.number(x) for x in (0, 0.5, 12.34, 123.4, 98765.4)] == ["0", "0.500", "12.3", "123", "98,765"]
    assert tables.share(Spread(0.72, 0.7, 0.75)) == "72% (70% to 75%)" and tables.share(Spread(0.0005, 0, 0)).startswith("0.05%")
    assert tables.times(Spread(2.0, 1.5, 2.5)) == "2.00 (1.50 to 2.50)"


def test_every_table_has_its_place_in_the_docs():
    page = (ROOT / "docs" / "speed.md").read_text()
    names = {case.name for cases in step.CASES.values() for case in cases}
    names |= {"step base gpu", "preparation", "feeding", "startup", "checkpoint", "growth", "parts"}
    assert {name for name in names if f"<!-- bench:{name} -->" not in page} == set()


def test_exponents():
    xs = [128, 256, 512, 1024]
    assert growth.exponent(xs, [3.0 * x**1.5 for x in xs]) == pytest.approx(1.5)
    samples = {str(x): [{"wall": 2.0 * x, "program_mib": 100.0 + x, "peak_mib": 7.0}] * 3 for x in xs}
    line = growth._exponents("rows", [(x,) for x in xs], Turns(samples, {}), 2**30 + 0.0)
    assert "1.00 (1.00 to 1.00)" in line[4] and line[6] in ("0.00", "-0.00")
    assert line[2] == "924 rows would fill the device's 1 GiB"  # 1024 MiB less 100, a MiB a row


def test_rows():
    full, padded, packed = (rows.make(kind, 30522, 8, 512) for kind in rows.KINDS)
    assert rows.useful_tokens(full) == 8 * 512 and (full.tokens[:, -1] == rows.SEP).all()
    lengths = (padded.segments > 0).sum(1)
    assert (padded.segments.max(1) == 1).all() and abs(lengths.mean() - 275) < 15  # the mean of IMDB's reviews cut at 512
    assert packed.segments.max() > 1 and rows.useful_tokens(packed) > 0.95 * 8 * 512
    assert (packed.positions[packed.tokens == rows.CLS] == 0).all()


def test_parts_of_an_instruction():
    name = 'fusion(x), metadata={{op_name="jit(train_step)/{}"}}'.format
    assert parts.part_of(name("transpose(jvp(generator))/Block/dot_general")) == "generator"
    assert parts.part_of(name("jvp(generator)/vocabulary/dot_general")) == "vocabulary"
    assert parts.part_of(name("sample/cumsum")) == "vocabulary"
    assert parts.part_of(name("transpose(jvp(discriminator))/dot_general")) == "discriminator"
    assert parts.part_of(name("add")) == parts.part_of("copy(x)") == "optimizer"


def test_every_product_of_the_step_belongs_to_its_part():
    """By the sizes: what has the vocabulary's is the vocabulary's, forward and backward, and nothing else is."""
    parts_of_step = ours.build(tiny(vocab_size=1999))
    text = parts_of_step.compile().compiled.as_text()
    products = [line for line in text.splitlines() if re.search(r'op_name="[^"]*dot_general"', line)]
    large = {parts.part_of(line) for line in products if re.search(r"\[(?:\d+,)*1999(?:,\d+)*\]", line.split("=", 1)[1])}
    assert large == {"vocabulary"}
    assert {parts.part_of(line) for line in products} >= {"generator", "vocabulary", "discriminator"}


@pytest.mark.parametrize("name", ["generator", "mlm", "discriminator", "optimizer"])
def test_each_part_runs_by_itself(name):
    assert parts.part(tiny(), name, steps=2)() == {"steps": 2}


def test_floors_are_the_flops_of_a_step():
    floors = parts.floors(step.config(suite.load_config(ROOT), "small", 32, 128))
    flops = sum(floors[name] for name in ("generator", "vocabulary", "discriminator"))
    assert math.isclose(flops, 32 * costs.train_flops(PRESETS["small"], 128, 19), rel_tol=1e-9)


def test_the_figure_is_the_same_for_the_same_numbers(tmp_path):
    bars = {"measured here": {"generator": (0.2, 0.1), "feed": (0.001, 0.0001)}}
    for name in ("a.svg", "b.svg"):
        parts.draw(bars, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_peers_that_are_missing_have_a_row_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    case = step.Case("step tiny", "tiny", 8, 64, tuple(step.PEERS))
    table = step.table(case, tiny(), ENVIRONMENT, 2, str(tmp_path))
    assert [line[0] for line in table.rows] == ["electra_jax", *step.PEERS]
    assert all("not installed: pip install" in line[1] for line in table.rows[1:])
    assert float(table.rows[0][1]) > 0 and "%" in table.rows[0][-1]
    assert table.rows[-1] == ["txtai TokenDetection", "not installed: pip install torch transformers txtai"]
    (run,) = table.figures["runs"]
    ours = run["electra_jax"]
    assert len(ours) == 2 and ours[0]["flops"] > 0 and all(np.isfinite(sample["loss"]) for sample in ours)


def test_a_word_that_is_none(tmp_path):
    options = dict(presets=["small"], rounds=1, text=None, json_file=None, docs=None)
    with pytest.raises(UserError, match="did you mean 'step'"):
        suite.run(ROOT, what=["stepp"], **options)
    with pytest.raises(UserError, match="did you mean 'small'"):
        suite.run(ROOT, what=["step"], **{**options, "presets": ["smal"]})
    with pytest.raises(UserError, match="no such folder"):
        suite.run(ROOT, what=[], **{**options, "json_file": str(tmp_path / "none" / "x.json")})
    with pytest.raises(UserError, match="is a folder"):
        suite.run(ROOT, what=[], **{**options, "json_file": str(tmp_path)})
    (tmp_path / "one.md").write_text("a page")
    with pytest.raises(UserError, match="two of them are one"):
        suite.run(ROOT, what=[], **{**options, "json_file": str(tmp_path / "one.md"), "docs": str(tmp_path / "x" / ".." / "one.md")})
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "one.txt").write_text("one line, again and again\n" * 50_000)
    with pytest.raises(UserError, match="nothing to measure"):
        suite.run(ROOT, what=["packed"], **{**options, "presets": ["base"]})
    for name, line in (
        ("none.txt", "no such file"),
        ("", "a folder: name one file"),
        ("short.txt", "9 characters in 0"),
        ("bytes.txt", "no text in UTF-8"),
        ("one.txt", "in 1 documents"),
    ):
        with pytest.raises(UserError, match=line):
            suite.run(ROOT, what=[], **{**options, "text": str(tmp_path / name)})
    page = tmp_path / "page.md"
    for content, what, line in (
        (None, "step", "no page of text"),
        (b"\xff\xfe\xff", "step", "no page of text"),
        (b"<!-- bench:step small -->\n<!-- /bench -->\n", "growth", "no place for growth"),
        (b"<!-- bench:growth -->\n<!-- bench:parts -->\n<!-- /bench -->\n", "growth", "no place for growth"),
    ):
        if content is not None:
            page.write_bytes(content)
        with pytest.raises(UserError, match=line):
            suite.run(ROOT, what=[what], **{**options, "docs": str(page)})
