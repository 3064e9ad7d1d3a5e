"""The house's order: a file imports from its own folder and from lower floors; nothing runs back up."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOORS = {
    "launch": 7,
    "bench": 6,
    "aot": 5,
    "demo": 5,
    "simulator": 4,
    "pretrain": 4,
    "objectives": 3,
    "interop": 3,
    "data": 2,
    "train": 2,
    "models": 2,
    "parallel": 1,
    "config": 1,
    "types": 1,
    "rng": 1,
    "cli": 1,
    "retry": 1,
    "remote": 1,
    "hlo": 1,
}
FILES = sorted([*(ROOT / "electra_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")])


def part(name: str) -> str:
    return name.split(".")[1]


def imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "electra_jax" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down(path):
    relative = path.relative_to(ROOT)
    here = "launch" if relative.parts[0] == "launch" else relative.parts[1].removesuffix(".py")
    if here == "__init__":
        return  # the public API, by name only
    for name in imports(path):
        if not name.startswith("electra_jax."):
            continue
        there = part(name)
        assert FLOORS[there] < FLOORS[here] or there == here or FLOORS[here] == 1 == FLOORS[there], f"{relative} imports {name}"


def test_only_checkpoints_imports_orbax_and_data_does_not_import_jax():
    for path in FILES:
        relative = str(path.relative_to(ROOT))
        roots = {name.split(".")[0] for name in imports(path)}
        assert "orbax" not in roots or relative == "electra_jax/train/checkpoints.py", relative
        if relative.startswith("electra_jax/data/") and not relative.endswith("loader.py"):
            assert not roots & {"jax", "flax", "grain", "optax"}, relative
        assert "tensorflow" not in roots, relative


def test_no_launch_file_bears_the_name_of_a_module():
    """`python launch/x.py` puts launch/ first on the path: a launch/inspect.py would break `import dataclasses`."""
    names = [path.stem for path in (ROOT / "launch").glob("*.py")]
    code = f"import importlib.util, sys; print([n for n in {names} if importlib.util.find_spec(n)])"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/", env={"PATH": ""}, check=True)
    assert out.stdout.strip() == "[]"
    assert names and importlib.util.find_spec("inspect")


def test_launch_files_are_thin():
    for path in (ROOT / "launch").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
