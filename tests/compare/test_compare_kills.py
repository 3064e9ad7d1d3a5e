"""launch/compare.py killed with kill -9 at ten moments and started again: the same table, figure and rows to the bit: `make kill`."""

import json
import random
import subprocess
import sys
import time

import pytest

from tests.launch import runs

pytestmark = pytest.mark.slow
MOMENTS = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory, real_text):
    """Minimal pairs, and CoLA in GLUE's own layout, of words of the text."""
    folder, r = tmp_path_factory.mktemp("files"), random.Random(0)
    words = sorted(set(real_text.read_text().split()))[:2000]

    def text() -> str:
        return " ".join(r.sample(words, 5))

    (folder / "glue" / "CoLA").mkdir(parents=True)
    for split, count in (("train", 100), ("dev", 40)):
        lines = [f"x\t{label}\t\t{'the ' * label}{text()}" for _ in range(count) for label in [r.randrange(2)]]
        (folder / "glue" / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    pairs = [{"sentence_good": text(), "sentence_bad": text(), "UID": f"p{n % 3}", "field": "syntax"} for n in range(200)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def start(workdir, rows, files, cache) -> subprocess.Popen:
    fields = {**runs.FIELDS, "data.path": rows, "eval.every_steps": 7}
    del fields["train.steps"], fields["schedule.warmup_steps"]
    command = [
        *(sys.executable, str(runs.ROOT / "launch" / "compare.py"), f"--workdir={workdir}", "--flops=2e9", "--seeds=2"),
        *("--entry=electra", "--entry=mlm", f"--pairs={files / 'pairs.jsonl'}", f"--data={files}", "--tasks=cola", "--rates=1e-3"),
        "--finetune=seeds=2 train.steps=20",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    return subprocess.Popen(command, env=runs.environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(workdir, rows, files, cache) -> tuple[str, float]:
    began = time.monotonic()
    process = start(workdir, rows, files, cache)
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    return stdout, time.monotonic() - began


def test_ten_kills(rows, files, tmp_path):
    cache = tmp_path / "cache"
    finish(tmp_path / "first", rows, files, cache)  # and everything is compiled
    said, secs = finish(tmp_path / "undisturbed", rows, files, cache)
    wanted = {name: (tmp_path / "undisturbed" / name).read_bytes() for name in ("table.md", "figure.svg", "rows.jsonl")}
    assert b"CoLA" in wanted["table.md"] and b"minimal pairs (rtd)" in wanted["table.md"]
    reached = []
    for moment in range(MOMENTS):
        workdir = tmp_path / f"killed-{moment}"
        process = start(workdir, rows, files, cache)
        time.sleep(secs * (moment + 1) / (MOMENTS + 1))
        process.kill()
        process.communicate()
        reached.append(sum(1 for _ in workdir.rglob("*")))
        assert finish(workdir, rows, files, cache)[0] == said
        assert {name: (workdir / name).read_bytes() for name in wanted} == wanted
    print(f"{secs:.0f} s undisturbed; files there at each kill: {reached}")
    assert len(set(reached)) > MOMENTS // 2  # the moments were different ones
