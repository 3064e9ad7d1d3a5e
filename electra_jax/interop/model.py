"""A model as files hold it, in whatever format, and the functions that join, cut and refuse such."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.interop import names
from electra_jax.models import electra, heads, sharing
from electra_jax.models.config import ElectraConfig
from electra_jax.types import Params

NETWORKS = ("discriminator", "generator")


class Slots(NamedTuple):
    """What Adam remembers. `mu` and `nu` are {path: array}, by the paths of the parameters; `nu` may lack some (Muon has none)."""

    mu: Mapping[str, np.ndarray]
    nu: Mapping[str, np.ndarray]
    count: int  # updates so far, for the correction of the bias


@dataclasses.dataclass(frozen=True)
class Model:
    """What one or two files or folders hold.

    config: where the file has one network alone, the fields of the other mean nothing.
    params: "embeddings" with "discriminator", "generator" or both, a head where the file has one, and the task's head beside
      them (models.heads.TASKS); numpy arrays, float32, or float64 of a run that was trained so.
    about: where it comes from and what is known of it: "source", "step", "metrics", "data", "labels" ...
    notes: what a person should know: what was passed over, in a line each.
    """

    config: ElectraConfig
    params: Params
    tokenizer: Tokenizer | None
    slots: Slots | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(name for name in NETWORKS if name in self.params)

    @property
    def task(self) -> str | None:
        return next((name for name in heads.TASKS if name in self.params), None)

    @property
    def tuned(self) -> str | None:
        """The network that the task's head is of."""
        return self.networks[0] if self.task else None


def ffn_field(ffn_size: int, hidden_size: int) -> int:
    """What ElectraConfig.ffn_size and .generator_ffn_size say of a network's feed-forward width: 0 where it is the published one."""
    return 0 if ffn_size == 4 * hidden_size else ffn_size


def shapes(
    config: ElectraConfig, task: str | None = None, num_labels: int = 0, networks: electra.Networks = electra.NETWORKS
) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all that a model of this config with these networks may have."""
    return _shapes(config, task, num_labels, tuple((name, tuple(of_network.items())) for name, of_network in networks.items()))


@functools.cache
def _shapes(config: ElectraConfig, task: str | None, num_labels: int, networks: tuple) -> dict[str, tuple[int, ...]]:
    key = jax.random.key(0)
    networks = {name: dict(of_network) for name, of_network in networks}
    tree = dict(jax.eval_shape(lambda key: electra.init_params(key, config, networks), key))
    if task:
        tree[task] = jax.eval_shape(lambda key: electra.init_task(key, config, task, num_labels), key)
    return {path: tuple(x.shape) for path, x in names.flat(tree).items()}


def check_arrays(model: Model, where: str) -> None:
    """A UserError that lists the arrays that the config does not describe, or that are missing."""
    found = {path: tuple(np.shape(x)) for path, x in names.flat(model.params).items()}
    networks = electra.heads_of(model.params) or electra.NETWORKS
    num_labels = found.get(f"{model.task}/out/bias", (1,))[0]
    groups = {"embeddings", *(model.networks or NETWORKS), *([model.task] if model.task else [])}
    wanted = {path: shape for path, shape in shapes(model.config, model.task, num_labels, networks).items() if path.split("/")[0] in groups}
    names.refuse_misfits(wanted, found, where)


def check_vocabulary(tokenizer: Tokenizer | None, config: ElectraConfig, where: str) -> None:
    """A UserError where a tokenizer gives ids that the embeddings have no row for, or leaves rows without a piece."""
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} pieces and the embeddings have {config.vocab_size} rows: "
            "put the tokenizer there that the model was trained with"
        )


def joined(first: Model, second: Model, where: str) -> Model:
    """One model of a discriminator and a generator. Where their embeddings differ, each keeps its own (model.sharing=none). UserError where
    their shapes differ, or where they are of one kind."""
    if set(first.networks) & set(second.networks) or len(first.networks) != 1 or len(second.networks) != 1:
        raise UserError(f"{where}: one of them must be a discriminator and the other a generator")
    discriminator, generator = (first, second) if first.networks == ("discriminator",) else (second, first)
    d, g = discriminator.config, generator.config
    differ = [
        f"{name} {getattr(d, name)} and {getattr(g, name)}"
        for name in ("vocab_size", "embedding_size", "max_length", "type_vocab_size", "positions", "layer_norm_eps", "backbone")
        if getattr(d, name) != getattr(g, name)
    ]
    config = dataclasses.replace(
        d,
        generator_hidden_fraction=g.generator.hidden_size / d.hidden_size,
        generator_layers_fraction=g.generator.num_layers / d.num_layers,
        generator_ffn_size=ffn_field(g.generator.ffn_size, g.generator.hidden_size),
    )
    for name in ("hidden_size", "num_layers", "num_heads"):
        ours, theirs = getattr(config.generator, name), getattr(g.generator, name)
        differ += [f"the generator's {name} is {theirs} and would be {ours} here"] if ours != theirs else []
    if differ:
        raise UserError(f"{where}: they do not belong together ({'; '.join(differ)}): convert each by itself")
    mine, its = (names.flat(model.params["embeddings"]) for model in (discriminator, generator))
    of_generator, notes = generator.params["generator"], discriminator.notes + generator.notes
    if unequal := [f"embeddings/{path}" for path in mine if not np.array_equal(mine[path], its[path])]:
        of_generator = {**of_generator, "embeddings": generator.params["embeddings"]}
        config = dataclasses.replace(config, sharing="none")
        notes += (f"{where}: the two have other values in {', '.join(unequal)}: each network keeps its own embeddings, model.sharing=none",)
    tokenizers = [model.tokenizer for model in (discriminator, generator) if model.tokenizer]
    if len({tokenizer.sha256 for tokenizer in tokenizers}) > 1:
        raise UserError(f"{where}: they have two different tokenizers: convert each by itself")
    return Model(
        config,
        {**discriminator.params, "generator": of_generator},
        tokenizers[0] if tokenizers else None,
        about={**discriminator.about, "source": where},
        notes=notes,
    )


def mapping(words: str) -> list[tuple[str, str]]:
    """(name there, name here) of each network that "THERE:HERE,THERE:HERE" names."""
    return [(there, here) for there, here in (pair.split(":") for pair in words.split(","))]


def renamed(model: Model, mapping: Sequence[tuple[str, str]], where: str) -> Model:
    """Networks of it under other names: (name there, name here). The head over the vocabulary, a generator's "head" and a discriminator's
    "lm_head", goes along; a head of replaced tokens stays behind."""
    taken = [_as(only(model, there, where), there, here) for there, here in mapping]
    return taken[0] if len(taken) == 1 else joined(*taken, where)


def _as(model: Model, there: str, here: str) -> Model:
    if there == here:
        return model
    network, kinds, encoder = model.params[there], electra.heads_of(model.params)[there], model.config.encoder(there)
    body = {name: tree for name, tree in network.items() if name not in kinds}
    vocabulary = {"head" if here == "generator" else "lm_head": network[head] for head, kind in kinds.items() if kind == "mlm"}
    ffn_size = ffn_field(encoder.ffn_size, encoder.hidden_size)
    config = dataclasses.replace(
        model.config,
        hidden_size=encoder.hidden_size,
        num_layers=encoder.num_layers,
        head_size=encoder.head_size,
        ffn_size=ffn_size,
        generator_hidden_fraction=1.0,  # of one network alone, either name has its sizes
        generator_layers_fraction=1.0,
        generator_ffn_size=ffn_size,
    )
    params = {"embeddings": model.params["embeddings"], here: {**body, **vocabulary}}
    return dataclasses.replace(model, config=config, params=params, slots=None)


def only(model: Model, network: str, where: str) -> Model:
    """One network of it, and the embeddings that it computes with."""
    if network not in model.networks:
        raise UserError(f"{where}: there is no {network} in it, only {' and '.join(model.networks)}")
    task = {model.task: model.params[model.task]} if network == model.tuned else {}
    params, config = sharing.alone(model.params, model.config, network)
    params = jax.tree.map(np.asarray, {**params, **task})

    def cut(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {path: x for path, x in arrays.items() if path.split("/")[0] in params}

    shares = model.config.sharing == "shared"  # elsewhere what the optimizer remembers is of other arrays than these
    slots = Slots(cut(model.slots.mu), cut(model.slots.nu), model.slots.count) if model.slots and shares else None
    return dataclasses.replace(model, config=config, params=params, slots=slots)
