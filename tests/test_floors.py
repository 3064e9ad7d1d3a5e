"""The house's order, read from the syntax trees: who may import whom, who imports jax or Orbax, and who sees a config's values."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A file imports from its own folder and from lower floors. docs/design.md says what each is for.
FLOORS = (
    ("cli", "exit_codes", "files", "gcs", "interrupts", "limits", "options", "rng", "types", "views"),
    ("parallel",),
    ("models", "store", "watch", "data"),
    ("objectives", "train"),
    ("recipe",),
    ("interop", "build", "resume"),
    ("session",),
    ("pretrain", "finetune"),
    ("demo", "offline", "infer"),
    ("compare",),
    ("benchmarks",),
    ("launch",),
)
BESIDE = {"supervise": ("cli", "exit_codes", "gcs", "store")}  # starts commands again, and knows nothing else of them
FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}
FILES = sorted([*(ROOT / "electra_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
GROUND = FLOORS[0]


def here(path: pathlib.Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if relative.parts[0] != "electra_jax" else relative.parts[1].removesuffix(".py")


def imports(path: pathlib.Path, top: bool = False):
    """The modules that a file imports; top: those alone that are imported with it."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively, which this test does not follow: write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "electra_jax" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down(path):
    part = here(path)
    if part == "__init__":
        return  # the public API, by name only
    for name in imports(path):
        if not name.startswith(("electra_jax.", "benchmarks")):
            continue
        there = name.split(".")[1] if name.startswith("electra_jax.") else "benchmarks"
        if part in BESIDE:
            assert there in BESIDE[part], f"{path.name} imports {name}"
            continue
        if there in BESIDE:
            assert part == "launch", f"{path.name} imports {name}"
            continue
        assert there == part or FLOOR[there] < FLOOR[part] or part in GROUND and there in GROUND, f"{path.relative_to(ROOT)} imports {name}"


def test_the_ground_has_no_circles():
    """Within a floor of single files, too, nothing runs in a circle."""
    graph = {
        part: {name.split(".")[1] for name in imports(ROOT / "electra_jax" / f"{part}.py") if name.startswith("electra_jax.")}
        for part in GROUND
    }
    while graph:
        leaves = [part for part, needs in graph.items() if not needs & graph.keys()]
        assert leaves, f"a circle among {', '.join(graph)}"
        for leaf in leaves:
            del graph[leaf]


def test_who_may_import_what():
    for path in FILES:
        relative = str(path.relative_to(ROOT))
        roots = {name.split(".")[0] for name in imports(path)}
        assert "orbax" not in roots or relative == "electra_jax/store/checkpoints.py", relative
        if relative.startswith("electra_jax/data/") and not relative.startswith("electra_jax/data/rows/"):
            assert not roots & {"jax", "flax", "grain", "optax"}, relative
            ours = {name.split(".")[1] for name in imports(path) if name.startswith("electra_jax.")}
            assert ours <= {"data", "cli", "files", "gcs", "limits", "options"}, f"{relative}: the others import jax"
        assert "tensorflow" not in roots, relative
        assert not roots & {"torch", "transformers", "txtai"} or relative.startswith("benchmarks/") or "interop" in relative, relative


def test_reading_a_config_imports_no_jax():
    """absl reads the config before process.prepare() has told the C library how to keep memory, which must be before jax is there."""
    code = "import sys; from configs.pretrain import get_config; from electra_jax.recipe import Recipe\n"
    code += "Recipe.parse(get_config('base,flash')); Recipe.help_lines()\n"
    code += "print([name for name in ('jax', 'flax', 'optax', 'orbax', 'grain') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# --- A config's values are read once, in recipe.py


def functions(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node


def parameters(function) -> list[tuple[str, str]]:
    """(name, annotation) of each."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [(each.arg, ast.unparse(each.annotation) if each.annotation else "") for each in every]


def test_few_functions_are_given_the_whole_recipe():
    given = [
        f"{path.relative_to(ROOT)}: {getattr(function, 'name', 'lambda')}"
        for path in FILES
        if here(path) not in ("launch", "benchmarks")
        for function in functions(path)
        if any(
            name == "recipe" or "Recipe" in annotation.strip("'\"").replace("[", " ").replace("]", " ").split()
            for name, annotation in parameters(function)
        )
    ]
    assert 3 <= len(given) <= 10, "\n".join(given)


SECTIONS = {"model", "masking", "objective", "optimizer", "schedule", "train", "log", "eval", "checkpoint", "parallel"}


def test_no_dictionary_of_config_values_is_read_below_the_recipe():
    """Neither a ConfigDict, nor config["model"] or config["train"]["steps"]."""
    below = [path for path in FILES if FLOOR.get(here(path), 99) < FLOOR["recipe"]]
    assert len(below) > 60
    for path in below:
        relative = path.relative_to(ROOT)
        assert not any(name.startswith("ml_collections") for name in imports(path)), relative
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
                asked = ast.unparse(node.func.value).rsplit(".", 1)[-1]
                whose_config = here(path) != "data" and re.search("config|recipe|stored", asked)  # data/ reads tokenizer_config.json
                assert not whose_config, f"{relative}:{node.lineno} {ast.unparse(node)}"
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                owner = ast.unparse(node.value)
                last = owner.rsplit(".", 1)[-1]
                named = re.search("config|recipe|stored", last) is not None
                # Other things have a "train" or a "model" too: splits of rows, the sections of the clock, a tokenizer.json.
                whose = node.slice.value in SECTIONS and last not in ("secs", "parts", "splits", "fields")
                assert not named and not whose, f"{relative}:{node.lineno} {ast.unparse(node)}"
    inside = [path for path in FILES if "ml_collections" in {name.split(".")[0] for name in imports(path)} and here(path) != "launch"]
    assert [str(path.relative_to(ROOT)) for path in inside] == ["electra_jax/recipe.py"]


def test_no_name_of_an_objective_outside_of_objectives():
    """train/, store/, watch/ and the session know metrics and panels by what the objective's view says of them."""
    words = ("mlm", "rtd", "generator", "discriminator", "unigram", "readings")
    for path in FILES:
        if here(path) not in ("train", "store", "watch", "session"):
            continue
        tree = ast.parse(path.read_text())
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)] + [
            n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
        ]
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        documented = {
            ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        found = [text for text in [*names, *(t for t in texts if t not in documented)] if any(word in text.lower() for word in words)]
        assert not found, f"{path.relative_to(ROOT)}: {found}"


# --- Sizes and names


def test_no_launch_file_bears_the_name_of_a_module():
    """`python launch/x.py` puts launch/ first on the path: a launch/inspect.py would break `import dataclasses`."""
    names = [path.stem for path in (ROOT / "launch").glob("*.py")]
    code = f"import importlib.util, sys; print([n for n in {names} if importlib.util.find_spec(n)])"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/", env={"PATH": ""}, check=True)
    assert out.stdout.strip() == "[]"
    assert names and importlib.util.find_spec("inspect")


def test_launch_files_are_thin_and_so_is_pretraining():
    for path in (ROOT / "launch").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
    assert len((ROOT / "electra_jax" / "pretrain.py").read_text().splitlines()) <= 150
