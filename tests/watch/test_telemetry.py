"""metrics.jsonl, TensorBoard's copy of it, and the progress line."""

import binascii
import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from electra_jax.watch import report, telemetry
from electra_jax.watch.clock import Clock
from electra_jax.watch.telemetry import Telemetry, cut_back, format_count, format_secs

ROOT = Path(__file__).resolve().parents[2]


def open_quietly(workdir, start_step=0, total_steps=100, **options) -> Telemetry:
    tensorboard = workdir / "tensorboard" if options.pop("tensorboard", False) else None
    options = dict(progress=False) | options
    return Telemetry(workdir / "metrics.jsonl", tensorboard, total_steps=total_steps, start_step=start_step, **options)


def strict(line: str) -> dict:
    """A parser that knows JSON and nothing more; without the check of the line, which is of its text before that."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    values = json.loads(line, parse_constant=refuse)
    text = line if isinstance(line, str) else line.decode()
    assert values.pop("crc32") == binascii.crc32(text[: text.rindex(', "crc32"')].encode())
    return values


def written(workdir) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [strict(line) for line in text.splitlines()]


def test_floats_come_back_to_the_bit(tmp_path):
    rng = np.random.RandomState(0)
    bits = rng.randint(0, 2**63, 300, dtype=np.uint64)
    values = {f"train/{i}": value for i, value in enumerate(bits.view(np.float64)) if np.isfinite(value)}
    values |= {f"f32/{i}": np.float32(value) for i, value in enumerate(rng.randn(50))}
    run = open_quietly(tmp_path)
    run.write(np.int32(7), values)
    run.close()
    (line,) = written(tmp_path)
    assert line.pop("step") == 7
    assert {name: struct.pack("d", value) for name, value in line.items()} == {
        name: struct.pack("d", float(value)) for name, value in values.items()
    }


def test_nan_and_infinities_are_strict_json_and_stay_apart(tmp_path):
    run = open_quietly(tmp_path)
    run.write(1, {"a": math.nan, "b": np.float32(math.inf), "c": -math.inf, "n": 2})
    run.close()
    assert written(tmp_path) == [{"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "n": 2}]
    ((_, values),) = telemetry.read_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(values["a"]) and (values["b"], values["c"], values["n"]) == (math.inf, -math.inf, 2)


def test_cut_back_at_every_byte_that_a_death_may_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    lines = [telemetry.format_line(step, {"train/loss": step / 3, "clock/secs_wall": step}) for step in (1, 2, 2, 3)]
    whole = b"".join(lines)
    path = tmp_path / "metrics.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        # A line that lacks nothing but its newline says all that it had to say.
        complete = [line for i, line in enumerate(lines) if len(b"".join(lines[: i + 1])) - 1 <= size]
        reached = cut_back(tmp_path / "metrics.jsonl", 2)
        assert path.read_bytes() == b"".join(complete[:3])
        assert reached.step == (3 if len(complete) == 4 else 2)
        assert reached.clock == ({"clock/secs_wall": strict(complete[-1])["step"]} if complete else {})


def test_cut_back_leaves_a_good_file_and_an_absent_one_alone(tmp_path):
    assert cut_back(tmp_path / "metrics.jsonl", 5) == (5, {}, 0)
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(telemetry.format_line(3, {"train/loss": 1.0}))
    before = path.stat()
    assert cut_back(tmp_path / "metrics.jsonl", 3) == (3, {}, 0)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_cut_back_replaces_the_file_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(telemetry.format_line(step, {}) for step in range(9))
    path.write_bytes(whole)
    with open(path, "rb") as old:
        cut_back(tmp_path / "metrics.jsonl", 4)
        assert old.read() == whole  # never written to: a death at any moment leaves it or the new one
    assert path.read_bytes() == b"".join(telemetry.format_line(step, {}) for step in range(5))


def test_a_failed_cut_back_harms_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(telemetry.format_line(step, {}) for step in range(9))
    path.write_bytes(whole)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cut_back(tmp_path / "metrics.jsonl", 4)
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_foreign_lines_are_dropped_and_counted_and_never_crash(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = telemetry.format_line(1, {"train/loss": 1.0})
    path.write_bytes(b"\0\0\0\n[1]\n5\n{}\n" + good + b'{"step": "x"}\n\xff\xfe\n{"step": 2, "a": "what"}\n')
    assert cut_back(tmp_path / "metrics.jsonl", 10) == (10, {}, 7)
    assert path.read_bytes() == good
    assert cut_back(tmp_path / "metrics.jsonl", 10) == (10, {}, 0)


def test_no_damage_is_read_as_another_value_and_each_is_counted(tmp_path):
    """A flipped bit anywhere, a lost byte, a doubled one: the line is whole and as it was, or it is dropped and counted."""
    lines = [telemetry.format_line(step, {"train/loss": 1 / step, "train/auc": math.nan}) for step in (1, 2, 3)]
    whole, path = b"".join(lines), tmp_path / "metrics.jsonl"
    wanted = {step: (b"%d" % step, telemetry.parse_line(line)) for step, line in zip((1, 2, 3), lines, strict=True)}
    start, end = len(lines[0]), len(lines[0]) + len(lines[1])
    changes = [whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for at in range(start, end) for bit in range(8)]
    changes += [whole[:at] + whole[at + 1 :] for at in range(start, end)] + [whole[: at + 1] + whole[at:] for at in range(start, end)]
    silent = 0
    for changed in changes:
        path.write_bytes(changed)
        found = list(telemetry.read_lines(path))
        for values in (values for _, values in found if values is not None):
            assert repr(values) == repr(wanted[values["step"]][1])
        silent += all(values is not None for _, values in found)
    assert not silent


def test_a_session_and_the_report_say_how_many_lines_are_lost(tmp_path):
    lines = [telemetry.format_line(step, {"train/loss": 1 / step}) for step in range(1, 6)]
    lines[2] = lines[2].replace(b"0.3", b"0.4")
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines) + b'{"step": 6, "tra')
    report.write(tmp_path / "report.html", metrics=tmp_path / "metrics.jsonl", title="", summary={}, panels=[])
    assert "1 damaged line(s) of the metrics are left out" in (tmp_path / "report.html").read_text()
    run = open_quietly(tmp_path, start_step=5)
    assert run.reached.damaged == 1
    run.close()


def test_flush_syncs_what_was_written(tmp_path, monkeypatch):
    run = open_quietly(tmp_path)
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run.write(1, {"train/loss": 1.0})
    run.flush()
    status = (tmp_path / "metrics.jsonl").stat()
    assert synced == [(status.st_ino, status.st_size)]
    run.close()
    run.close()


CHILD = """
import os, resource, sys
if "FILE_BYTES" in os.environ:  # a disk of that size, as far as one file can tell
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FILE_BYTES"]),) * 2)
from electra_jax.watch.telemetry import Telemetry
start, total, tensorboard = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "tensorboard"
events = sys.argv[1] + "/tensorboard" if tensorboard else None
run = Telemetry(sys.argv[1] + "/metrics.jsonl", events, total_steps=total, start_step=start, progress=False)
for step in range(start + 1, total + 1):
    run.write(step, {"train/loss": 1 / step, "train/grad_norm": 3.0 ** -step})
    print(step, flush=True)
run.close()
"""


def child(workdir, start, total, tensorboard="none", **environment):
    command = [sys.executable, "-c", CHILD, str(workdir), str(start), str(total), tensorboard]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_killed_and_resumed_the_file_is_as_if_undisturbed(tmp_path):
    total = 400
    assert child(tmp_path / "calm", 0, total).wait() == 0
    step = 0
    for saved_at in (60, 130):
        process = child(tmp_path / "killed", step, 10**9)
        while int(process.stdout.readline()) < saved_at + 20:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        step = saved_at
    assert child(tmp_path / "killed", step, total).wait() == 0
    calm, killed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("calm", "killed"))
    assert killed == calm


@pytest.mark.parametrize("tensorboard", ["none", "tensorboard"])
def test_a_full_disk_raises_and_the_next_session_finds_whole_lines(tmp_path, tensorboard):
    process = child(tmp_path, 0, 1000, tensorboard, FILE_BYTES="4001")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and b"OSError: [Errno 27]" in errors.splitlines()[-1]
    if tensorboard == "none":
        assert (tmp_path / "metrics.jsonl").stat().st_size == 4001  # in the middle of a line
    steps = [values["step"] for _, values in telemetry.read_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 10
    run = open_quietly(tmp_path, start_step=len(steps))
    run.write(len(steps) + 1, {"train/loss": 0.5})
    run.close()
    assert [line["step"] for line in written(tmp_path)] == [*steps, len(steps) + 1]


def events(folder: Path) -> list:
    """Every event of a folder in TensorBoard's order: TFRecords are length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def shown_by_tensorboard(folder: Path) -> dict:
    """{(name, step): [values]} after TensorBoard's rule: a session's start drops all events of its step and later."""
    kept = []
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == event.session_log.START:
            kept = [old for old in kept if old.step < event.step]
        kept.append(event)
    shown = {}
    for event in kept:
        for value in event.summary.value:
            shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    return shown


def test_tensorboard_shows_what_metrics_jsonl_holds_after_two_cuts(tmp_path):
    reached = []
    for session, (start, end) in enumerate([(0, 9), (4, 7), (6, 12)]):
        run = open_quietly(tmp_path, start_step=start, tensorboard=True)
        reached.append(run.reached.step)
        for step in range(start + 1, end + 1):
            run.write(step, {"train/loss": 10 * session + step / 8})
            if step % 3 == 0:
                run.write(step, {"eval/rtd_auc": 0.5, "eval/mlm_loss": math.nan})
        run.close()
    assert reached == [0, 9, 7]
    expected = {}
    for _, values in telemetry.read_lines(tmp_path / "metrics.jsonl"):
        step = values.pop("step")
        expected |= {(name, step): [value] for name, value in values.items()}
    shown = shown_by_tensorboard(tmp_path / "tensorboard")
    assert len(expected) == 12 + 2 * 4
    # As text, where NaN equals NaN.
    assert {key: str(value) for key, value in shown.items()} == {key: str(value) for key, value in expected.items()}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def timed_clock(monkeypatch):
    """(clock, tick): `tick(secs)` lets time pass for the display and the clock alike, and finishes a step."""
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    clock = Clock(peak_flops_per_sec=10.0, now=lambda: now[0])

    def tick(secs: float) -> None:
        with clock.section("step"):
            now[0] += secs
            clock.count(steps=1, tokens=5000, flops=4.0 * 1)

    return clock, tick


def test_where_stderr_is_a_file_a_line_every_half_minute_and_at_the_end(tmp_path, capsys, timed_clock):
    clock, tick = timed_clock
    run = open_quietly(tmp_path, total_steps=50, progress=True)
    for step in range(1, 51):
        tick(2.0)
        run.progress(step, 10 / step, clock)
    run.note("a note")
    run.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 1/50 (2%): loss 10.000",
        "step 16/50 (32%): loss 0.625, 2.50k tokens/s, MFU 20%, ETA 1m08s",
        "step 31/50 (62%): loss 0.323, 2.50k tokens/s, MFU 20%, ETA 38s",
        "step 46/50 (92%): loss 0.217, 2.50k tokens/s, MFU 20%, ETA 8s",
        "a note",
        "step 50/50 (100%): loss 0.200, 2.50k tokens/s, MFU 20%, ETA 0s",
    ]


def test_on_a_terminal_a_bar_that_a_note_does_not_tear(tmp_path, monkeypatch, timed_clock):
    clock, tick = timed_clock
    monkeypatch.setattr(sys, "stderr", Terminal())
    run = open_quietly(tmp_path, total_steps=50, start_step=10, progress=True)
    for step in (11, 12, 13):
        tick(2.0)
        run.progress(step, 0.5, clock)
    run.note("step 13: a note")
    run.close()
    screen = sys.stderr.getvalue()
    assert "13/50, loss 0.500, 2.50k tokens/s, MFU 20%, ETA 1m14s" in screen
    # What a terminal keeps of each line is what stands after the last carriage return.
    kept = [line.rsplit("\r", 1)[-1] for line in screen.replace("\r\n", "\n").split("\n")]
    assert "step 13: a note" in kept


def test_drawing_is_seldom_however_fast_the_steps(tmp_path, monkeypatch, timed_clock):
    clock, tick = timed_clock
    monkeypatch.setattr(sys, "stderr", Terminal())
    run = open_quietly(tmp_path, total_steps=10_000, progress=True)
    for step in range(1, 1001):
        tick(0.001)
        run.progress(step, 1.0, clock)
    assert sys.stderr.getvalue().count("loss 1.000") <= 6


def test_progress_off_still_shows_notes(tmp_path, capsys, timed_clock):
    run = open_quietly(tmp_path)
    run.progress(1, 1.0, timed_clock[0])
    run.note("warning: mind this")
    run.close()
    assert capsys.readouterr().err == "warning: mind this\n"


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (999.4, "999"), (999.6, "1.00k"), (12_345, "12.3k"), (1.2e6, "1.20M"), (3.456e14, "346T")]
)
def test_counts_have_three_digits(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize("secs, text", [(0.4, "0s"), (59.7, "1m00s"), (310, "5m10s"), (11_220, "3h07m"), (187_500, "2d04h")])
def test_seconds_have_two_units(secs, text):
    assert format_secs(secs) == text


def test_importing_is_light():
    code = "import sys, electra_jax.watch.telemetry, electra_jax.watch.report\n"
    code += "print([m for m in ('jax', 'numpy', 'tensorboardX', 'matplotlib', 'tqdm') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    begun = time.monotonic()
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
    assert time.monotonic() - begun < 10
