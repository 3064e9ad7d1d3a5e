"""launch/glue.py killed with kill -9 at ten moments and started again: the same table, scores and predictions to the bit: `make kill`."""

import pathlib
import random
import subprocess
import sys
import time
import zipfile

import pytest

from tests import tiny
from tests.launch import runs
from tests.tiny import WORDS

pytestmark = pytest.mark.slow
MOMENTS = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """A tiny model, and CoLA and RTE in GLUE's own layout, of words whose half tells the label."""
    folder, r = tmp_path_factory.mktemp("files"), random.Random(0)
    tiny.save_words(folder / "model")

    def text(label: int) -> str:
        return " ".join(r.choice(WORDS[20 * label :][:20]) for _ in range(r.randrange(2, 9)))

    for task, labels, make in (
        ("CoLA", "01", lambda n, label, name: f"x\t{name}\t\t{text(label)}"),
        ("RTE", ("entailment", "not_entailment"), lambda n, label, name: f"{n}\t{text(label)}\t{text(label)}\t{name}"),
    ):
        (folder / "glue" / task).mkdir(parents=True)
        for split, count in (("train", 120), ("dev", 40)):
            rows = [make(n, label, labels[label]) for n in range(count) for label in [r.randrange(2)]]
            head = ["index\tsentence1\tsentence2\tlabel"] if task == "RTE" else []
            (folder / "glue" / task / f"{split}.tsv").write_text("\n".join([*head, *rows]) + "\n")
    test = "".join(f"{n}\t{text(n % 2)}\n" for n in range(20))
    (folder / "glue" / "CoLA" / "test.tsv").write_text(f"index\tsentence\n{test}")
    return folder


def start(workdir, files, cache) -> subprocess.Popen:
    command = [
        sys.executable,
        str(runs.ROOT / "launch" / "glue.py"),
        f"--checkpoint={files / 'model'}",
        f"--path={files / 'glue'}",
        f"--workdir={workdir}",
        "--seeds=5",
        "--tasks=cola,rte",
        "--config.train.steps=30",
        "--config.train.batch_rows=8",
        "--config.checkpoint.every_steps=7",
        "--config.finetune.length=24",
        "--config.finetune.row_lengths=2",
        "--config.optimizer.learning_rate=3e-3",
    ]
    return subprocess.Popen(command, env=runs.environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(workdir, files, cache) -> tuple[str, float]:
    """(what it printed, seconds)."""
    began = time.monotonic()
    process = start(workdir, files, cache)
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return stdout.replace(str(workdir), ""), time.monotonic() - began


def left(workdir) -> dict[str, bytes]:
    """Numbers, by the names of their files: scores, predictions, the table, and what the archive holds."""
    found = {path: path.read_bytes() for path in [*workdir.rglob("results.json"), *workdir.rglob("predictions/*"), workdir / "table.md"]}
    found = {str(path.relative_to(workdir)): data for path, data in found.items()}
    with zipfile.ZipFile(workdir / "uploads.zip") as archive:
        return found | {f"uploads.zip/{name}": archive.read(name) for name in archive.namelist()}


def test_ten_kills(files, tmp_path):
    cache = tmp_path / "cache"
    finish(tmp_path / "first", files, cache)  # and everything is compiled
    said, secs = finish(tmp_path / "undisturbed", files, cache)
    wanted = left(tmp_path / "undisturbed")
    assert {"cola/results.json", "rte/results.json", "table.md", "uploads.zip/CoLA.tsv"} < wanted.keys()
    reached = []
    for moment in range(MOMENTS):
        workdir = tmp_path / f"killed-{moment}"
        process = start(workdir, files, cache)
        time.sleep(secs * (moment + 1) / (MOMENTS + 1))
        process.kill()
        process.communicate()
        reached.append(sum(1 for _ in workdir.rglob("*")))
        assert finish(workdir, files, cache)[0] == said
        assert left(workdir) == wanted
    print(f"{secs:.0f} s undisturbed; files there at each kill: {reached}")
    assert len(set(reached)) > MOMENTS // 2  # the moments were different ones
