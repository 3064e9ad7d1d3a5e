"""Which format lies at a path, and the way from one to another: `load`, `save`, `convert`."""

import dataclasses
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import gcs
from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.files import refuse_taken, whole_folder
from electra_jax.interop import huggingface, tensor_files, tf1, workdir
from electra_jax.interop import model as models
from electra_jax.interop.model import Model
from electra_jax.models import electra
from electra_jax.models.config import ElectraConfig
from electra_jax.types import Params

FORMATS = ("electra_jax", "huggingface")


def load(path: str | os.PathLike) -> tuple[ElectraConfig, Params, Tokenizer | None]:
    """(config, params, tokenizer) of whatever `read` opens; the tokenizer is None where there is none.

    config, params, tokenizer = electra_jax.load("runs/demo/run")
    batch = electra_jax.encode(["The cat sat on the mat."], tokenizer, config.max_length)
    scores = electra_jax.discriminator_apply(params, config, batch)  # [1, length], positive: the token was replaced
    """
    model = read(path)
    return model.config, jax.tree.map(jnp.asarray, model.params), model.tokenizer


def save(path: str | os.PathLike, config: ElectraConfig, params: Params, tokenizer: Tokenizer | None, format: str = "huggingface") -> None:
    """Writes what `load` gave, or a run of one's own, as one of FORMATS; the folder must not exist, or be empty.

    A fine-tuned model also has a task and the names of its labels. `load` does not give them, so that they would be lost: use `convert`.

    Raises UserError where it is taken, where params are not those of config, or where the tokenizer is of another vocabulary.
    """
    if format not in FORMATS:
        raise UserError(f"{format!r} is no format: {' or '.join(FORMATS)}")
    model = Model(config, jax.tree.map(lambda x: np.asarray(x, np.float32), params), tokenizer)
    models.check_arrays(model, "params")
    models.check_vocabulary(tokenizer, config, "save")
    write(path, model, format)


def format_of(path: str) -> str:
    """ "electra_jax", "huggingface" or "tf1". UserError where it is none of these."""
    if workdir.place_of(path):
        return "electra_jax"
    folder = pathlib.Path(path)
    if huggingface.is_folder(folder) or _pair(folder):
        return "huggingface"
    if tf1.prefix_of(folder):
        return "tf1"
    if not folder.exists():
        hub = f" (from Hugging Face's hub: hf download {path} --local-dir=FOLDER)" if re.fullmatch(r"[\w.-]+/[\w.-]+", path) else ""
        raise UserError(f"{path}: no such file or folder{hub}")
    if (folder / huggingface.CONFIG).is_file():
        workdir.refuse_unfinished(tensor_files.read_json(folder / huggingface.CONFIG), path, path)
    raise UserError(
        f"{path}: no model is known in it: name a workdir of ours (checkpoints/), a folder of transformers (config.json with "
        "model.safetensors or pytorch_model.bin), or a TF1 checkpoint (PREFIX.index)"
    )


def _pair(folder: pathlib.Path) -> list[pathlib.Path]:
    """The two networks that `write` puts beside each other."""
    return [folder / name for name in models.NETWORKS if huggingface.is_folder(folder / name)]


def _parts(name: str) -> list[str]:
    """The places that "A,B" names; a path that is there is one, whatever commas it has."""
    return [name] if os.path.exists(name) else [part for part in name.split(",") if part]


def read(path: str | os.PathLike, *, network: str = "", head_size: int = 64, with_slots: bool = True) -> Model:
    """The model at `path`: a workdir of ours, a folder of transformers, a folder with two of them named discriminator and generator, a
    TF1 checkpoint; or "A,B", a discriminator and a generator in two places.

    network: only this one; or as it is to be named, "THERE:HERE" ("discriminator:generator,discriminator:discriminator" for two).
    head_size: of a TF1 checkpoint, which does not say. with_slots: Adam's memory too, where there is one.
    Raises UserError, in one line, for whatever is wrong there.
    """
    name = os.fspath(path)
    if ":" in network:
        whole = read(name, head_size=head_size, with_slots=False)
        return models.renamed(whole, models.mapping(network), name)
    parts = _parts(name)
    if len(parts) not in (1, 2):
        raise UserError(f"{name!r}: give one path, or two with a comma between")
    if len(parts) == 2:
        model = models.joined(*(read(part) for part in parts), name)
    else:
        kind, folder = format_of(name), pathlib.Path(name)
        if kind == "electra_jax":
            model = workdir.read(name, with_slots)
        elif kind == "tf1":
            model = tf1.read(folder, head_size, with_slots)
        elif huggingface.is_folder(folder):
            model = huggingface.read(folder)
        else:
            found = [huggingface.read(each) for each in _pair(folder) if network in ("", each.name)]
            if not found:
                raise UserError(f"{name}: there is no {network} in it")
            model = found[0] if len(found) == 1 else models.joined(*found, name)
    return models.only(model, network, name) if network else model


def write(path: str | os.PathLike, model: Model, format: str) -> None:
    """The model in a new folder, whole or not at all: transformers' format puts each network in a folder named after it."""
    with whole_folder(_local(path)) as folder:
        if format == "electra_jax":
            workdir.write(folder, model)
            return
        for network in model.networks:
            (folder / network).mkdir()
            huggingface.write(folder / network, *_alone(model, network))


def _alone(model: Model, network: str) -> tuple[Model, str]:
    """The model and its network as transformers has it, where each has embeddings of its own, and what fills masked tokens is a generator
    (`ElectraForMaskedLM`)."""
    if model.config.sharing != "shared":
        model = models.only(model, network, network)
    if network == "discriminator" and network != model.tuned and electra.heads_of(model.params)[network] == {"lm_head": "mlm"}:
        return models.renamed(model, [(network, "generator")], network), "generator"
    return model, network


def _left_out(model: Model) -> tuple[str, ...]:
    """A line on the head that transformers has no place for."""
    if {"head", "lm_head"} <= model.params.get("discriminator", {}).keys():
        return ("transformers has no place for the discriminator's head over the vocabulary (lm_head): it is left out",)
    return ()


def convert(source: str, target: str, *, format: str = "", network: str = "", head_size: int = 64, with_slots: bool = True) -> Model:
    """Reads `source`, writes `target` in `format` (unless given, transformers' from ours, and ours from anything else).
    Returns what was written."""
    refuse_taken(_local(target))  # before minutes of reading
    model = read(source, network=network, head_size=head_size, with_slots=with_slots)
    ours = len(_parts(source)) == 1 and format_of(source) == "electra_jax"
    format = format or ("huggingface" if ours else "electra_jax")
    if format != "electra_jax":  # which has no place for them
        model = dataclasses.replace(model, slots=None, notes=model.notes + _left_out(model))
    write(target, model, format)
    return model


def _local(target: str | os.PathLike) -> str:
    if gcs.is_remote(os.fspath(target)):
        raise UserError(f"{target}: write to a folder here, and copy it there")
    return os.fspath(target)
