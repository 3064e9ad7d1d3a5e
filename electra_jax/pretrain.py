"""Pretraining: a session on rows that launch/prepare.py made, with the objective that the config names."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from electra_jax import session
from electra_jax.build import Devices, Parts, abstract_batch, build, pretraining_objective
from electra_jax.data.rows import loader
from electra_jax.data.rows.opening import open_rows
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.interop import formats, start
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives.config import MaskingConfig
from electra_jax.recipe import Recipe
from electra_jax.session import Result, Work
from electra_jax.train import ranks
from electra_jax.types import Batch, Params, TrainState
from electra_jax.watch import ranks as ranks_view


def pretrain(config: Mapping[str, Any] | Recipe, workdir: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Result:
    """Trains in `workdir`, or goes on training there, until `config.train.steps`; `config` is configs/pretrain.py's.

    `workdir` and the folders of `config.data.path` may be gs:// URLs; see session.run. Raises UserError for what a person must mend, and
    Preempted after a stop signal, once everything is saved.
    """
    recipe = config if isinstance(config, Recipe) else Recipe.parse(config)
    return session.run(recipe, open_work, workdir, scratch)


def open_work(recipe: Recipe, scratch: pathlib.Path) -> Work:
    """Folders in a bucket are staged under `scratch`. Raises UserError where the parts do not fit one another."""
    devices = Devices.of(recipe)
    given = recipe.given
    data = open_rows(
        recipe.data,
        length=recipe.data.length if "data.length" in given else None,
        vocab_size=recipe.model.vocab_size if "model.vocab_size" in given else None,
        max_length=None if recipe.model.positions == "rotary" else recipe.model.max_length,
        eval_batch_rows=recipe.eval.batch_rows,
        eval_max_rows=recipe.eval.max_rows,
        num_devices=devices.mesh.size,
        seed=recipe.seed,
        scratch=scratch,
    )
    recipe = recipe.of_rows(data.stream.length, data.tokenizer.vocab_size).resolve(devices.platform)
    parts = build(recipe, devices, pretraining_objective(recipe, data.vocabulary, devices))
    if recipe.eval.rank_rows:
        layers = {name: recipe.model.encoder(name).num_layers for name in parts.objective.networks}
        parts = parts._replace(objective=parts.objective._replace(view=ranks_view.shown_in(parts.objective.view, layers)))
    stream, train = data.stream, recipe.train
    evaluated = None
    if recipe.eval.mask_rate:
        masking = MaskingConfig(rate=recipe.eval.mask_rate, mask_fraction=1.0)
        evaluated = pretraining_objective(dataclasses.replace(recipe, masking=masking), data.vocabulary, devices)
    return Work(
        recipe=recipe,
        parts=parts,
        tokenizer=data.tokenizer,
        first_batch=abstract_batch(train.batch_rows, stream.length),
        batches=lambda start_step, rows: loader.batches(stream, start_step=start_step, global_batch=train.batch_rows, rows=rows),
        heldout=data.heldout,
        reference={name: value for name, value in data.reference.items() if name in parts.objective.view.shown},
        identity=data.identity,
        about=data.summaries,
        num_rows=stream.num_rows,
        evaluated=evaluated,
        inspect=lambda heldout: _inspect(recipe.model, recipe.eval.rank_rows, parts, heldout),
        begin=lambda state: _first_values(recipe, state, data.tokenizer),
    )


def _inspect(
    model: ElectraConfig, rank_rows: int, parts: Parts, heldout: Sequence[tuple[Batch, Any]]
) -> Callable[[Params], dict[str, float]]:
    """The effective rank of each layer on the first held-out rows."""
    if not rank_rows:
        return lambda params: {}
    batches = heldout[: -(-rank_rows // heldout[0][0].tokens.shape[0])]
    placed = jax.tree.map(lambda x: x.sharding, parts.abstract_state.params)
    first = jax.jit(lambda root: parts.init(root).params, out_shardings=placed)
    return ranks.make_ranks(model, parts.objective.networks, parts.devices.mesh, batches, lambda: first(parts.root))


def _first_values(recipe: Recipe, abstract_state: TrainState, tokenizer: Tokenizer) -> tuple[dict[str, np.ndarray], list[str]]:
    """What recipe.init_from gives the first state, and lines for a person: see interop.start."""
    if not recipe.init_from:
        return {}, []
    source = formats.read(recipe.init_from, network=recipe.init_network, with_slots=recipe.init_slots)
    found, notes = start.values(abstract_state, recipe.model, source, tokenizer, with_slots=recipe.init_slots, seed=recipe.seed)
    return found, [*notes, *source.notes]
