"""Everything, in an order that keeps big things apart: each table is printed as soon as it is there."""

import importlib.util
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks import checkpoints, data, finetuning, growth, labelled, parts, predicting, scoring, startup, step, tables
from electra_jax.cli import UserError
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.options import one_of
from electra_jax.recipe import Recipe

WHAT = ("step", "packed", "preparation", "feeding", "startup", "checkpoint", "growth", "parts", "finetune", "predict", "score")
STARTUP_ROUNDS = 7  # a round starts five programs
# Of a labelled task: rows, so many that few are left over where batches have one length each; those that a turn predicts; and the steps of
# a turn of fine-tuning, seconds on a CPU.
TASK_ROWS, PREDICTED_ROWS, TASK_STEPS = 6_400, 1_600, 50
SCORED_ROWS = 1_500  # a token of each is a row of its own


def run(
    root: pathlib.Path,
    *,
    what: Sequence[str],
    presets: Sequence[str],
    rounds: int,
    text: str | None,
    json_file: str | None,
    docs: str | None,
) -> None:
    """Measures `what` (empty: all) and writes what is asked for. UserError for a name that is none."""
    for word in what:
        one_of("--what", word, WHAT)
    for preset in presets:
        one_of("--presets", preset, step.PRESETS)
    # All that can be wrong is known before half an hour of measuring:
    if text is not None:
        data.check_text(text)
    named = [os.path.abspath(path) for path in (text, json_file, docs) if path]
    if len(set(named)) < len(named):
        raise UserError("--text, --json and --docs must be three files: two of them are one")
    if json_file and not pathlib.Path(json_file).absolute().parent.is_dir():
        raise UserError(f"--json={json_file}: no such folder: make it first")
    if json_file and pathlib.Path(json_file).is_dir():
        raise UserError(f"--json={json_file} is a folder: name a file")
    if docs:
        tables.read_page(pathlib.Path(docs))
    for path in filter(None, (docs, json_file)):
        tables.check_writable(pathlib.Path(path))
    environment, done = tables.environment(), []
    names = expected(what or WHAT, presets, environment["platform"])
    if not names:
        raise UserError(f"nothing to measure: --what={','.join(what)} has no table of --presets={','.join(presets)}")
    if docs:
        tables.check_docs(pathlib.Path(docs), names)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        for table in measured(root, pathlib.Path(folder), environment, what or WHAT, tuple(presets), rounds, text, docs):
            print(f"\n## {table.name}\n\n{tables.markdown(table, environment)}", flush=True)
            print(f"{table.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            done.append(table)
            if json_file:  # each as it comes: a run that is stopped keeps what it has
                tables.write_json(pathlib.Path(json_file), done, environment)
            if docs:
                tables.write_docs(pathlib.Path(docs), [table], environment)


def expected(what: Sequence[str], presets: Sequence[str], platform: str) -> list[str]:
    """The tables' names, in order."""
    found = []
    for word in WHAT:
        if word not in what:
            continue
        if word in ("step", "packed"):
            found += [case.name for case in step.cases(platform, presets, word)]
            found += ["step base gpu"] * (word == "step" and "base" in presets and platform != "gpu")
        else:
            found.append(word)
    return found


def measured(root: pathlib.Path, folder: pathlib.Path, environment, what, presets, rounds, text, docs) -> Iterator[tables.Table]:
    get_config, platform = load_config(root), environment["platform"]
    if {"preparation", "feeding", "startup", "parts", "finetune", "predict", "score"} & set(what):
        source = data.text_file(folder, text)  # first, because the demo's may not be installed
    for word in ("step", "packed"):
        if word in what:
            yield from step.tables(get_config, environment, rounds, str(folder / "cache"), presets, word)
    if "step base gpu" in expected(what, presets, platform):
        yield tables.Table("step base gpu", "`base` on a GPU (rows of 512, bfloat16): not measured, there is no GPU here.", (), (), {})
    preset, num_rows = ("small", 32) if platform == "cpu" else ("small,flash", 128)
    small = step.recipe(get_config, preset, num_rows, 128)
    if "preparation" in what:
        yield data.preparation_table(folder, source, rounds)
    if "feeding" in what:
        yield data.feeding_table(folder, source, rounds)
    if "startup" in what:
        yield startup.table(root, small, preset, data.prepared(folder, source, 128), min(rounds, STARTUP_ROUNDS))
    if "checkpoint" in what:
        yield checkpoints.table(small, preset, rounds)
    if "growth" in what:
        yield growth.table(get_config, platform, rounds, environment["memory_bytes"])
    if "parts" in what:
        tpu = step.recipe(get_config, "small,flash", 32, 128) if importlib.util.find_spec("libtpu") else None
        page = pathlib.Path(docs) if docs else folder / "speed.md"
        yield parts.table(small, platform, data.prepared(folder, source, 128), rounds, tpu, page.with_name(f"{page.stem}_parts.svg"))
    if "score" in what:
        yield scoring.table("small", small, folder / "scored", data.vocabulary(folder, source), source, SCORED_ROWS, rounds, environment)
    if {"finetune", "predict"} & set(what):
        yield from task_tables(root, folder, source, step.recipe(get_config, "small", 32, 128), what, rounds, environment)


def task_tables(root, folder: pathlib.Path, source: pathlib.Path, small: Recipe, what, rounds: int, environment) -> Iterator[tables.Table]:
    """What a labelled task costs: "finetune", "predict"."""
    given = labelled.make(folder / "labelled", small, data.vocabulary(folder, source), source, TASK_ROWS)
    if "finetune" in what:
        published = FinetuneRecipe.parse(load_config(root, "finetune.py")("sst2"))
        yield finetuning.table(published, "small", given, TASK_ROWS, TASK_STEPS, rounds, environment)
    if "predict" in what:
        yield predicting.table("small", given, PREDICTED_ROWS, rounds, environment)


def load_config(root: pathlib.Path, name: str = "pretrain.py") -> Callable:
    """The get_config of a file in configs/."""
    spec = importlib.util.spec_from_file_location("electra_jax_config", root / "configs" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def print_dispatch(root: pathlib.Path) -> None:
    """For docs/scale.md, "Cost of an executor": on all devices of this process."""
    from benchmarks import dispatch  # jax, in this process

    for name, millisecs in dispatch.measure(step.recipe(load_config(root), "small", 32, 128), rounds=100).items():
        print(f"{name}: {millisecs:.2f} ms a call")
