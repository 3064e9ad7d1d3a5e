"""The table of many compiles, and what a line of it depends on."""

import importlib.util
import json
import re
import shutil

import pytest

from configs.pretrain import get_config
from electra_jax.offline import scale
from electra_jax.offline.compile import Case, lower
from electra_jax.recipe import Recipe
from tests.launch import runs

PACKAGE = runs.ROOT / "electra_jax"
RESULT = {
    "topology": "v5e:4x4",
    "batch_rows": 256,
    "length": 512,
    "attention": "splash",
    "peak_gib": 4.0,
    "fits": True,
    "hbm_gib": 16.0,
    "arguments_gib": 1.3,
    "state_gib": 1.3,
    "effort": "low",
    "collectives": {"all-reduce": {"count": 5, "bytes": 5 << 20, "dtypes": ["f32"]}},
}
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: make aot")


def case(preset: str, name: str = "v5e:4x4", **change) -> Case:
    return Case(Recipe.parse(get_config(preset)), name, "low").override({path.replace("__", "."): value for path, value in change.items()})


def test_the_table():
    large = RESULT | {"fits": False, "peak_gib": None, "collectives": {}}
    text = scale.table([("base,flash", {"parallel.fsdp": 4}, RESULT), ("large,flash", {}, large)])
    assert "| splash | more does not fit | 16 | 1.30 |  |" in text
    assert "| base,flash fsdp=4 | v5e:4x4 | 256 x 512 | splash | 4.00 |" in text and "5 all-reduce 5 MiB f32" in text


@needs_libtpu
def test_a_key_is_of_what_the_step_depends_on():
    key = scale.key(case("base,flash"))
    assert key == scale.key(case("base_pp,flash"))  # they differ in the number of steps alone
    others = case("base,flash", model__remat="full"), case("base,flash", name="v5p:2x2x4"), case("base,flash")._replace(effort="full")
    assert key not in {scale.key(other) for other in others}


@needs_libtpu
def test_a_program_is_the_same_when_it_is_lowered_again_and_its_options_count():
    step = lower(case("tiny", "v5e:2x2"))
    assert scale.program(step) == scale.program(lower(case("tiny", "v5e:2x2", log__every_steps=7)))
    others = [
        step._replace(case=step.case._replace(effort="full")),
        lower(case("tiny", "v5e:2x2", optimizer__learning_rate=1e-3)),
        lower(case("tiny", "v5p:2x2x1")),
    ]
    assert scale.program(step) not in {scale.program(other) for other in others}


# --- The code that a line depends on


def test_code_is_known_and_what_is_said_of_it_is_not(tmp_path):
    def hashed(name, file, edit, listed=scale.STEP):
        package = tmp_path / name
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / file).write_text(edit((package / file).read_text()))
        return scale.code(listed, package)

    now, reading = scale.code(scale.STEP), scale.code(scale.READING)
    end = "\n# a comment\n"
    assert now == hashed("comment", "rng.py", lambda text: text + end)
    assert now == hashed("docstring", "rng.py", lambda text: text.replace('"""', '"""Now: ', 1))
    assert now == hashed("elsewhere", "cli.py", lambda text: text + "X = 1\n")
    assert now == hashed("table", "offline/scale.py", lambda text: text + "X = 1\n")
    assert now != hashed("code", "models/ops/dense.py", lambda text: text + "X = 1\n")
    assert now != hashed("price", "parallel/chips.py", lambda text: text.replace("819e9", "820e9"))
    assert reading != hashed("reading", "parallel/chips.py", lambda text: text.replace("819e9", "820e9"), scale.READING)
    assert reading == hashed("another function", "parallel/executors.py", lambda text: text + "X = 1\n", scale.READING)


@pytest.mark.parametrize("name", [*scale.STEP, *scale.READING])
def test_what_is_listed_must_be_there(name, tmp_path):
    path, _, definition = name.partition("::")
    assert (PACKAGE / path).exists()
    shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    gone = tmp_path / "package" / path
    if definition:
        gone.write_text(re.sub(rf"\b(def|class) {definition}\b", r"\1 other", gone.read_text()))
    elif gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name}, which offline/scale.py lists"):
        scale.code((name,), tmp_path / "package")


# --- Lines


@pytest.fixture
def made(monkeypatch, tmp_path):
    """write() makes the page of two cases with a compiler that is none -> the cases that it compiled. State: what the code seems to be."""
    state = {scale.STEP: "step", scale.READING: "reading", "program": "program", "flops": 1.0, "fails_at": None, "compiled": []}
    cases = [scale.Row("tiny", {}, case("tiny", "v5e:2x2")), scale.Row("base", {"parallel.fsdp": 4}, case("base,flash", parallel__fsdp=4))]

    def compile_step(step):
        if step.topology == state["fails_at"]:
            raise KeyboardInterrupt
        state["compiled"].append(step.topology)
        return {**RESULT, **described(step)}

    def described(step):
        return {"topology": step.topology, "flops_per_chip": state["flops"]}

    monkeypatch.setattr(scale, "wanted", lambda config_file: iter(cases))
    monkeypatch.setattr(scale, "versions", lambda: {"jax": "1", "libtpu": "2"})
    monkeypatch.setattr(scale, "code", lambda listed: state[listed])
    monkeypatch.setattr(scale, "program", lambda step: f"{state['program']} for {step.topology}")
    monkeypatch.setattr(scale.offline, "lower", lambda case: case)
    monkeypatch.setattr(scale.offline, "described", described)
    monkeypatch.setattr(scale.offline, "compile_step", compile_step)
    (tmp_path / "scale.md").write_text("by hand\n<!-- make scale -->\nold\n<!-- end -->\nby hand too\n")

    def write(**changes) -> list[str]:
        state.update(changes)
        state["compiled"].clear()
        scale.write_scale(tmp_path / "configs.py", tmp_path)
        return list(state["compiled"])

    return write, state, tmp_path


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "scale.jsonl").read_text().splitlines()]


def test_a_line_is_compiled_once(made):
    write, state, folder = made
    assert write() == ["v5e:2x2", "v5e:4x4"] and write() == []
    page = (folder / "scale.md").read_text()
    assert page.startswith("by hand\n<!-- make scale -->\n| config |") and page.endswith("<!-- end -->\nby hand too\n")
    assert "| tiny | v5e:2x2 |" in page and "| base fsdp=4 | v5e:4x4 |" in page and "old" not in page


def test_a_stop_keeps_the_lines_that_are_there(made):
    write, state, folder = made
    with pytest.raises(KeyboardInterrupt):
        write(fails_at="v5e:4x4")
    assert len(lines(folder)) == 1 and "| tiny | v5e:2x2 |" in (folder / "scale.md").read_text()
    assert write(fails_at=None) == ["v5e:4x4"] and len(lines(folder)) == 2


def test_code_that_gives_the_same_program_changes_the_key_alone(made):
    write, state, folder = made
    write()
    before = lines(folder)
    assert write(**{"program": "program"}) == []
    state[scale.STEP] = "step, moved"
    assert write() == []
    after = lines(folder)
    assert [line["key"] for line in after] != [line["key"] for line in before] and len(after) == 2
    assert [{**line, "key": ""} for line in after] == [{**line, "key": ""} for line in before]


@pytest.mark.parametrize("what, value", [(scale.READING, "another"), ("program", "another"), ("flops", 2.0)])
def test_another_program_or_reading_is_compiled_anew(made, what, value):
    write, state, folder = made
    write()
    state[scale.STEP], state[what] = "step, changed", value
    assert write() == ["v5e:2x2", "v5e:4x4"] and len(lines(folder)) == 2


def test_a_line_without_a_program_is_compiled_anew(made):
    write, state, folder = made
    write()
    old = [{name: value for name, value in line.items() if name not in ("program", "reading")} for line in lines(folder)]
    (folder / "scale.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    assert write() == []  # the key is that of the same code
    state[scale.STEP] = "step, moved"
    assert write() == ["v5e:2x2", "v5e:4x4"]
