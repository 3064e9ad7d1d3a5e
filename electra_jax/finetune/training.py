"""Fine-tuning: a session on the rows of a task, which begins with the encoder that config.init_from names; one seed, or several at once."""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_jax import session
from electra_jax.build import Devices, Parts, build
from electra_jax.cli import Diverged, UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.finetune import batches, objective, opening, rates, results, rows, view
from electra_jax.finetune.config import FinetuneConfig, TaskConfig
from electra_jax.finetune.examples import Example
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.finetune.tasks import Task, learned_from
from electra_jax.interop import formats, names
from electra_jax.interop.model import Model, only
from electra_jax.models.attention import choice
from electra_jax.models.config import ElectraConfig
from electra_jax.parallel.mesh import replicated
from electra_jax.session import Result, Work
from electra_jax.train import evaluation
from electra_jax.types import Params, TrainState


def finetune(config: Mapping[str, Any] | FinetuneRecipe, workdir: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Result:
    """Trains in `workdir`, or goes on training there. config: as from configs/finetune.py. A complete run leaves in `workdir` the model of
    the best seed (model/), this seed's predictions for the dev and test sets, and the scores of all seeds: see results.py.

    Raises UserError for what a person must mend, and Preempted after a stop signal, once everything is saved.
    """
    recipe = config if isinstance(config, FinetuneRecipe) else FinetuneRecipe.parse(config)
    return session.run(recipe, open_work, workdir, scratch)


# The fields of a model's config that say how it is computed. All others follow from the model that is loaded.
HOW = ("dtype", "attention", "remat", "scan_layers", "dropout", "attention_dropout")


ONE_ORDER = 0  # with finetune.one_shuffle, all seeds have the order of rows that belongs to this seed


class Data(NamedTuple):
    """A task's examples as rows, by split."""

    task: Task
    examples: dict[str, list[Example]]
    rows: dict[str, rows.Rows]
    kind: rows.Kind
    dev: str  # the split that is evaluated on
    identity: str  # a hash of all examples that are trained and evaluated on
    notes: list[str]


def open_work(recipe: FinetuneRecipe, scratch: pathlib.Path) -> Work:
    """What a session needs: the parts of the step, the rows and the held-out set. Raises UserError if these do not fit one another."""
    if "eval.max_rows" in recipe.given and recipe.eval.max_rows:
        raise UserError("eval.max_rows is for pretraining, and fine-tuning is scored on the whole dev set: leave it out")
    for name in ("rank_rows", "mask_rate"):
        if f"eval.{name}" in recipe.given and getattr(recipe.eval, name):
            raise UserError(f"eval.{name} is for pretraining: leave it out")
    devices = Devices.of(recipe, num_seeds=recipe.seeds)
    source = _source(recipe.init_from, recipe.init_network)
    network, tokenizer = source.networks[0], source.tokenizer
    recipe = dataclasses.replace(recipe, model=_model(recipe.model, recipe.given, source))
    data = read(recipe.task, recipe.finetune, recipe.model, tokenizer)
    train, task, kind = data.rows["train"], data.task, data.kind
    steps = int(math.ceil(len(train.tokens) / recipe.train.batch_rows) * (recipe.finetune.epochs or task.epochs))
    head = recipe.finetune.head or kind.heads[0]
    if head not in kind.heads:
        raise UserError(f"finetune.head is {head!r}, and {task.title} has the kind {task.kind}: choose from {', '.join(kind.heads)}")
    if recipe.finetune.both_orders and task.kind in ("tags", "answer"):  # features.both_orders refuses single texts
        raise UserError(f"finetune.both_orders is for pairs of texts, and {task.title} has the kind {task.kind}: leave it out")
    recipe = recipe.of_rows(max(steps, 1), recipe.finetune.length or task.length, head)
    recipe = recipe.resolve(devices.platform, network)
    num_layers = recipe.model.encoder(network).num_layers
    recipe = dataclasses.replace(recipe, optimizer=rates.by_layer(recipe.optimizer, recipe.finetune, network, num_layers))
    config = recipe.finetune

    def score(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        predictions = kind.predict(task, data.examples[data.dev], data.rows[data.dev], _finite(outputs), config, tokenizer)
        return kind.score(task, data.examples[data.dev], predictions, config)

    goal = objective.make(
        recipe.model,
        task.kind,
        config.head,
        kind.num_labels(task),
        view.make(task, range(recipe.seed, recipe.seed + recipe.seeds)),
        score,
        network=network,
        sum_over_batch=config.sum_over_batch,
    )
    parts = build(recipe, devices, goal, recipe.seeds)
    if (there := jax.device_count()) > (used := devices.mesh.size):
        multiple = -(-recipe.seeds // there) * there
        data.notes.append(f"{used} of {there} devices train, each {recipe.seeds // used} of the seeds: with seeds={multiple} all would")
    multiple = choice.row_multiple(recipe.model.attention, devices.platform.name, config.length, [recipe.model.encoder(network)])
    order = batches.Batches(*_lengths(train, config, multiple), recipe.train.batch_rows)
    eval_rows = -(-recipe.eval.batch_rows // devices.mesh.size) * devices.mesh.size

    def held_out(split: str) -> list[tuple[objective.Labelled, np.ndarray]]:
        made = data.rows[split]
        lengths = _lengths(made, config, multiple)[1]
        return list(rows.batched(made, task.kind, lengths, [eval_rows] * len(lengths), tokenizer.pad_id))

    outputs_of = evaluation.make_outputs(goal, devices.mesh)

    def outputs(params: Params, split: str) -> dict[str, np.ndarray]:
        return _finite(objective.joined(outputs_of(params, held_out(split))))

    run = results.Finished(recipe, task, data.examples, data.rows, data.dev, tokenizer, source, outputs)
    first = rows.pad(train, task.kind, np.zeros(1, np.int64), order.lengths[-1], tokenizer.pad_id, np.arange(1))
    seeds = parts.seeds if not config.one_shuffle else (ONE_ORDER,) * len(parts.seeds)
    return Work(
        recipe=recipe,
        parts=parts,
        tokenizer=tokenizer,
        first_batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct((parts.batch_rows, *x.shape[1:]), x.dtype), first),
        batches=lambda start_step, places: _batches(train, task.kind, order, seeds, tokenizer.pad_id, start_step, places),
        heldout=held_out(data.dev),
        reference=results.reference(task, data.examples["train"], data.examples[data.dev]),
        identity={"data": data.identity, "tokenizer": tokenizer.sha256},
        about={"task": task.title, "rows": {split: len(each.tokens) for split, each in data.rows.items()}, "notes": data.notes},
        num_rows=len(train.tokens),
        begin=lambda state: _begin(*_first_params(source, config.from_scratch, train, task), data.notes, state),
        finish=lambda state, folder: results.write(folder, run, _whole_members(parts, state)),
    )


def _source(init_from: str, network: str) -> Model:
    if not init_from:
        raise UserError("init_from is missing: name the model to fine-tune, a workdir or a folder (--config.init_from=...)")
    source = formats.read(init_from, network=network, with_slots=False)
    if source.tokenizer is None:
        raise UserError(f"{init_from}: there is no tokenizer in it: put its vocab.txt there, or the tokenizer that it was prepared with")
    # What the networks share is of no meaning to one alone.
    return source if source.config.sharing == "shared" else only(source, source.networks[0], init_from)


def _model(model: ElectraConfig, given: frozenset[str], source: Model) -> ElectraConfig:
    """The config of the source's model, with what the flags say of how it is computed."""
    changes = {name.removeprefix("model.") for name in given if name.startswith("model.")}
    if shape := sorted(changes - set(HOW)):
        raise UserError(f"model.{shape[0]} follows from the model in {source.about['source']}: leave it out")
    return dataclasses.replace(source.config, **{name: getattr(model, name) for name in {"dtype", "attention", *changes}})


def read(task_config: TaskConfig, config: FinetuneConfig, model: ElectraConfig, tokenizer: Tokenizer) -> Data:
    """The task's files as rows."""
    opened = opening.open_task(task_config)
    task = opened.task
    if "train" not in opened.examples:
        raise UserError(f"{task.title} has no training set: fine-tune {task.trained_on or 'another task'}, and predict this one with it")
    length = row_length(config, task, model)
    kind, made = rows.KINDS[task.kind], {}
    for split, examples in opened.examples.items():
        made[split] = kind.rows(task, examples, tokenizer, config, length, split == "train")
    notes = list(opened.notes)
    if dropped := made["train"].dropped:
        notes.append(f"{task.title}: {len(dropped):,} training questions are left out, their answers not being found: {dropped[0]} ...")
    what = {"tags": "sentences", "answer": "questions"}.get(task.kind, "texts")
    room = "" if task.kind == "answer" else f" for rows of {length} tokens"  # a question's own bound is in make_windows
    for split, each in made.items():
        if cut := int(np.count_nonzero(each.cut)):
            notes.append(f"{split}: {cut:,} of {len(each.cut):,} {what} were too long{room}, and lost their end")
    if not made["train"].tokens:
        raise UserError(f"{task.title} has no training row: mend its files")
    learned = learned_from(opened.examples)
    return Data(task, opened.examples, made, kind, learned[1], results.identity(opened.examples, learned), notes)


def row_length(config: FinetuneConfig, task: Task, model: ElectraConfig) -> int:
    """Tokens per row. UserError if the model has fewer positions."""
    length = config.length or task.length
    if model.positions != "rotary" and length > model.max_length:
        raise UserError(f"finetune.length is {length} and the model has {model.max_length} positions: choose at most as many")
    return length


def made_of_now(init_from: str, init_network: str, task: TaskConfig) -> dict[str, str]:
    """results.made_of what a run would read now."""
    return results.made_of(_source(init_from, init_network), opening.open_task(task).examples)


def _finite(outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The outputs. Diverged if one is not finite: a run may diverge in its last steps."""
    if not objective.are_finite(outputs):
        raise Diverged(
            "the model's outputs for the held-out rows are not finite numbers: the run diverged: lower optimizer.learning_rate or raise "
            "schedule.warmup_steps, and start in another --workdir"
        )
    return outputs


def _lengths(made: rows.Rows, config: FinetuneConfig, multiple: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """(the length of each row, the lengths that batches have, multiples of `multiple`)."""
    lengths_N = np.array([len(tokens) for tokens in made.tokens])
    return lengths_N, batches.row_lengths(lengths_N, config.row_lengths, multiple) if config.row_lengths > 1 else (config.length,)


def _batches(
    train: rows.Rows, kind: str, order: batches.Batches, seeds: Sequence[int], pad_id: int, start_step: int, places: np.ndarray
) -> Iterator[objective.Labelled]:
    """Yields this host's rows of each step: the rows of one seed after those of the other. Batch.row counts from 0 within each seed."""
    place = np.tile(np.arange(order.batch_rows, dtype=np.int32), len(seeds))
    for step in itertools.count(start_step):
        of_seeds = [order.rows(step, seed) for seed in seeds]
        numbers = np.concatenate([of_seed for _, of_seed in of_seeds])
        yield rows.pad(train, kind, numbers[places], of_seeds[0][0], pad_id, place[places])


def _first_params(source: Model, from_scratch: bool, train: rows.Rows, task: Task) -> tuple[Params, list[str]]:
    """(the source's parameters that are taken over, lines for a person).

    The head of another task is not taken over. So it is in the published code, where the names of a head's variables contain the task's
    name (`run_finetuning.py`): RTE's head begins anew on MNLI's model. Densely packed rows have a single token type, so that pretraining
    on them leaves the vector of the second type as it was drawn. If the task's rows have two types, the second type's vector therefore
    begins as a copy of the first's.
    """
    where = source.about["source"]
    if from_scratch:
        return {}, [f"random weights in the shape of {where}"]
    if source.task and not _is_of(source, task):
        source = dataclasses.replace(source, params={name: tree for name, tree in source.params.items() if name != source.task})
    packings = {each.get("packing") for each in source.about.get("data") or ()}
    tuned = source.about.get("task") is not None  # its fine-tuning trained the second type, or began it in the same way
    if tuned or packings != {"dense"} or not any(types.any() for types in train.types):
        return source.params, [f"init_from {where}", *source.notes]
    embeddings = source.params["embeddings"]
    both = {**embeddings, "type": np.broadcast_to(embeddings["type"][:1], embeddings["type"].shape)}
    line = f"init_from {where}: it was trained on rows of one type, whose vector the second type begins with"
    return {**source.params, "embeddings": both}, [line, *source.notes]


def _is_of(source: Model, task: Task) -> bool:
    """Whether the source's head is of this very task."""
    stored = source.about.get("task") or {}
    same_labels = tuple(source.about.get("labels") or ()) == task.labels or task.kind == "answer"
    return same_labels and stored.get("title", task.title) == task.title and stored.get("kind", task.kind) == task.kind


def _begin(params: Params, said: Sequence[str], notes: Sequence[str], state: TrainState) -> tuple[dict[str, np.ndarray], list[str]]:
    """(the state's first values that come from `params`, lines for a person). A head that is not in `params` begins anew."""
    wanted, there = set(names.flat(state.params)), names.flat(params)
    found = {f"params/{path}": x for path, x in there.items() if path in wanted}
    anew = ", ".join(sorted({path.split("/")[0] for path in wanted - set(there)})) or "nothing"
    return found, [*said, f"{len(found)} of {len(wanted)} arrays taken over; anew: {anew}", *notes]


def _whole_members(parts: Parts, state: TrainState) -> dict[int, Params]:
    """{seed: its parameters}, whole on every device. Under fsdp a process may hold only a part of each array, which it could not
    write to a file; and arrays that come from pmap lie on a mesh of its own, which must not meet the run's mesh in one program."""
    members = jax.device_put(parts.members(state), replicated(parts.devices.mesh))
    return dict(zip(parts.seeds, members, strict=True))
