"""How a start begins: --help without jax, and compiled programs that the next start loads."""

import json
import os
import subprocess
import sys

import pytest

from electra_jax.parallel import compilation
from tests.launch import runs

SCRIPTS = sorted(path.name for path in (runs.ROOT / "launch").glob("*.py"))
HELP = """
import runpy, sys
script, heavy = sys.argv[1:]
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
print("imported:", *(name for name in heavy.split() if name in sys.modules))
"""
HEAVY = "jax numpy flax optax orbax grain array_record matplotlib scipy sklearn tensorboardX tensorflow_datasets pyarrow tokenizers torch"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    command = [sys.executable, "-c", HELP, str(runs.ROOT / "launch" / script), HEAVY]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(runs.ROOT)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout and done.stdout.splitlines()[-1].strip() == "imported:"


def environment(home, **more: str) -> dict[str, str]:
    """As a user has it: no variable of jax's cache set."""
    env = {name: value for name, value in runs.environment(home).items() if "CACHE" not in name}
    return env | {"XDG_CACHE_HOME": str(home), "JAX_DEBUG_LOG_MODULES": "jax._src.compiler"} | more


def pretrain(workdir, rows, env) -> str:
    """What it says on stderr, jax's lines about the cache among it."""
    command = runs.command(workdir, rows, **{"train.steps": 7})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def entries(home) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (home / "electra_jax" / "programs").glob("*-cache")}


def plan(stderr: str) -> str:
    """The plan's line on memory, without what was measured."""
    return next(line for line in stderr.splitlines() if "GiB a step" in line).split(";")[-2]


def test_the_second_start_loads_the_same_program(rows, tmp_path):
    env = environment(tmp_path / "home")
    first = pretrain(tmp_path / "first", rows, env)
    written = entries(tmp_path / "home")
    for name in ("jit_train_step", "jit_eval_step"):
        assert any(entry.startswith(name) for entry in written)
        assert f"cache hit for '{name}'" not in first
    second = pretrain(tmp_path / "second", rows, env)
    assert entries(tmp_path / "home").items() >= written.items()
    for name in ("jit_train_step", "jit_eval_step"):
        assert f"cache hit for '{name}'" in second
    for path in (tmp_path / "home" / "electra_jax" / "programs").glob("jit_train_step*"):  # as a kill or a full disk would
        path.write_bytes(path.read_bytes()[:1000])
    third = pretrain(tmp_path / "third", rows, env)
    assert "cache hit for 'jit_train_step'" not in third and "cache hit for 'jit_eval_step'" in third and "Error" not in third
    assert entries(tmp_path / "home").keys() >= written.keys()
    for name in ("second", "third"):
        assert runs.learned(tmp_path / name) == runs.learned(tmp_path / "first")
        assert runs.state_bytes(tmp_path / name) == runs.state_bytes(tmp_path / "first")
    assert plan(first) == plan(second) == plan(third)


CHILD = """
import json, sys
from electra_jax.parallel import compilation
folder = compilation.keep_programs()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
value = jax.jit(lambda x: (x * x).sum())(jax.numpy.arange(4.0))
print(json.dumps({"folder": folder and str(folder), "hits": len(hits), "value": float(value)}))
"""


def child(env) -> tuple[dict, str]:
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["value"] == 14.0
    return answer, done.stderr


def test_the_environment_decides_where_and_whether(tmp_path):
    default = tmp_path / "home" / "electra_jax" / "programs"
    for expected_hits in (False, True):
        answer, _ = child(environment(tmp_path / "home"))
        assert answer["folder"] == str(default) and bool(answer["hits"]) == expected_hits
    answer, _ = child(environment(tmp_path / "other", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")))
    assert answer["folder"] is None and list((tmp_path / "mine").glob("*-cache"))
    answer, _ = child(environment(tmp_path / "other", JAX_ENABLE_COMPILATION_CACHE="false"))
    assert answer["folder"] is None and answer["hits"] == 0 and not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    answer, stderr = child(environment(tmp_path / "file"))
    assert answer["folder"] is None and not stderr
    answer, stderr = child({name: value for name, value in environment("").items() if name != "XDG_CACHE_HOME"} | {"HOME": "/proc/none"})
    assert answer["folder"] is None and not stderr


def test_an_entry_that_is_no_program_is_compiled_anew(tmp_path):
    env = environment(tmp_path)
    child(env)
    folder = tmp_path / "electra_jax" / "programs"
    for path in folder.glob("*-cache"):
        path.write_bytes(compilation.compilation_cache.compress_executable(b"0000nonsense"))  # whole, so that tidy keeps it
    answer, stderr = child(env)
    assert answer["hits"] == 0 and "Error reading persistent compilation cache entry" in stderr


def test_tidy_keeps_the_newest_and_removes_what_is_torn(tmp_path):
    packed = compilation.compilation_cache.compress_executable(os.urandom(10_000))
    for number in range(6):
        (tmp_path / f"{number}-cache").write_bytes(packed if number != 4 else packed[:5000])
        os.utime(tmp_path / f"{number}-cache", ns=(number, number))
    (tmp_path / "other").touch()
    compilation.tidy(tmp_path, max_bytes=4 * len(packed))
    assert {path.name for path in tmp_path.iterdir()} == {"2-cache", "3-cache", "5-cache", "other", "checked"}
    (tmp_path / "5-cache").write_bytes(packed[:5000])
    os.utime(tmp_path / "5-cache", ns=(6, 6))  # older than the last look: it was whole then
    compilation.tidy(tmp_path)
    assert (tmp_path / "5-cache").exists()
