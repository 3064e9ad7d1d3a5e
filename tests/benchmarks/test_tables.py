"""Tables and pages, and what is refused before anything is measured."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from benchmarks import step, suite, tables
from benchmarks.processes import Spread
from electra_jax.cli import UserError
from tests.benchmarks.sides import ENVIRONMENT

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
    names |= {"step base gpu", "preparation", "feeding", "startup", "checkpoint", "growth", "parts", "finetune", "predict", "score"}
    assert {name for name in names if f"<!-- bench:{name} -->" not in page} == set()


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


def test_without_the_folder_one_line_says_so(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "bench.py", tmp_path / "launch")
    wrong = subprocess.run([sys.executable, str(tmp_path / "launch" / "bench.py")], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "in a checkout" in wrong.stderr.splitlines()[-1] and "Traceback" not in wrong.stderr, wrong.stderr
