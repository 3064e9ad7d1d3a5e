"""Sides in processes of their own: statistics on made-up numbers, and what a side's end leaves behind."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from benchmarks.processes import Side, Spread, Turns, first_turn_secs, measure, spread
from electra_jax.cli import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_ratio_is_taken_round_by_round():
    samples = {"a": [{"wall": w, "work": 6.0} for w in (1.0, 2.0, 4.0)], "b": [{"wall": w, "work": 3.0} for w in (2.0, 4.0, 8.0)]}
    turns = Turns(samples, {})
    assert turns.ratio("b", "a", "wall") == (2.0, 2.0, 2.0)  # the noise that both share is gone
    assert turns.rates("a", "b", "work") == (4.0, 4.0, 4.0)
    assert turns.rate("a", "work").median == 3.0
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0)


def test_sides_wait_for_their_turns_and_say_why_they_cannot_start():
    side = Side("counts", "tests.benchmarks.sides:counting", {})
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


def test_a_killed_side_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # to be found anew
    turns = measure([Side("untidy", "tests.benchmarks.sides:untidy", {})], 1)
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
