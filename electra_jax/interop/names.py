"""One table of names: a parameter's path here, in transformers, and in Google's TF1 checkpoints.

Sources: google-research/electra `model/modeling.py` and `run_pretraining.py` (variable scopes); transformers 5.24
`models/electra/modeling_electra.py`, `models/bert/modeling_bert.py`, `models/roformer/modeling_roformer.py` (modules).

Two rules complete it. A layer's parameter here is one array for all layers, and one a layer there. PyTorch's `nn.Linear` holds
its matrix as [out, in], so what ends in "/kernel" here is transposed in transformers; TF1 holds [in, out], as we do.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import flax.traverse_util
import numpy as np

from electra_jax.cli import UserError
from electra_jax.models.config import ElectraConfig

# (here, below "embeddings"; transformers; TF1)
_EMBEDDINGS = (
    ("word", "embeddings.word_embeddings.weight", "embeddings/word_embeddings"),
    ("position", "embeddings.position_embeddings.weight", "embeddings/position_embeddings"),
    ("type", "embeddings.token_type_embeddings.weight", "embeddings/token_type_embeddings"),
    ("norm/scale", "embeddings.LayerNorm.weight", "embeddings/LayerNorm/gamma"),
    ("norm/bias", "embeddings.LayerNorm.bias", "embeddings/LayerNorm/beta"),
)
# (here, below the network; transformers; TF1). What comes next has a matrix, or a scale, and a bias each.
_PROJECT = ("project", "embeddings_project", "embeddings_project")
_LAYER_PARTS = (
    ("layers/attention/query", "encoder.layer.{i}.attention.self.query", "encoder/layer_{i}/attention/self/query"),
    ("layers/attention/key", "encoder.layer.{i}.attention.self.key", "encoder/layer_{i}/attention/self/key"),
    ("layers/attention/value", "encoder.layer.{i}.attention.self.value", "encoder/layer_{i}/attention/self/value"),
    ("layers/attention/output", "encoder.layer.{i}.attention.output.dense", "encoder/layer_{i}/attention/output/dense"),
    ("layers/attention_norm", "encoder.layer.{i}.attention.output.LayerNorm", "encoder/layer_{i}/attention/output/LayerNorm"),
    ("layers/ffn/intermediate", "encoder.layer.{i}.intermediate.dense", "encoder/layer_{i}/intermediate/dense"),
    ("layers/ffn/output", "encoder.layer.{i}.output.dense", "encoder/layer_{i}/output/dense"),
    ("layers/ffn_norm", "encoder.layer.{i}.output.LayerNorm", "encoder/layer_{i}/output/LayerNorm"),
)
# Heads, by name: (here, below the network; transformers; TF1). A row whose path ends in "bias" is a lone vector.
HEADS = {
    "rtd": (
        ("head/dense", "discriminator_predictions.dense", "discriminator_predictions/dense"),
        ("head/out", "discriminator_predictions.dense_prediction", "discriminator_predictions/dense_1"),
    ),
    "mlm": (
        ("head/dense", "generator_predictions.dense", "generator_predictions/dense"),
        ("head/norm", "generator_predictions.LayerNorm", "generator_predictions/LayerNorm"),
        ("head/bias", "generator_lm_head.bias", "generator_predictions/output_bias"),
    ),
    # BERT's and RoFormer's names of the same head.
    "cls": (
        ("head/dense", "cls.predictions.transform.dense", None),
        ("head/norm", "cls.predictions.transform.LayerNorm", None),
        ("head/bias", "cls.predictions.bias", None),
    ),
    # Tasks lie beside the networks: see models.heads.TASKS.
    "sequence_classification": (("dense", "classifier.dense", None), ("out", "classifier.out_proj", None)),
    "token_classification": (("out", "classifier", None),),
    "question_answering": (("out", "qa_outputs", None),),
    # transformers has none of these: see huggingface.BESIDE.
    "classification": (("out", "classifier", None),),
    "joint_answer": tuple((name, name, None) for name in ("start", "end_hidden", "end", "no_answer_hidden", "no_answer")),
}


class Tensor(NamedTuple):
    """One array there, and its place here."""

    name: str
    path: str  # "discriminator/layers/attention/query/kernel"
    layer: int | None  # which slice of the stacked array, from 0
    transposed: bool


def _weight_and_bias(here: str, torch: str, tf1: str | None) -> list[tuple[str, str, str | None]]:
    if here.endswith("bias"):
        return [(here, torch, tf1)]
    norm = here.endswith("norm")
    kernel, tf1_kernel, tf1_bias = ("scale", "gamma", "beta") if norm else ("kernel", "kernel", "bias")
    return [
        (f"{here}/{kernel}", f"{torch}.weight", tf1 and f"{tf1}/{tf1_kernel}"),
        (f"{here}/bias", f"{torch}.bias", tf1 and f"{tf1}/{tf1_bias}"),
    ]


def _network(config: ElectraConfig, network: str) -> list[tuple[str, str, str | None, int | None]]:
    """(path here, transformers, TF1, layer) of a network's own parameters, without its head."""
    encoder, rows = config.encoder(network), []
    if encoder.projects:
        rows += [(*row, None) for row in _weight_and_bias(*_PROJECT)]
    for i in range(encoder.num_layers):
        for part in _LAYER_PARTS:
            rows += [(here, torch.format(i=i), tf1.format(i=i), i) for here, torch, tf1 in _weight_and_bias(*part)]
    return [(f"{network}/{here}", *names) for here, *names in rows]


def _embeddings(config: ElectraConfig) -> list[tuple[str, str, str]]:
    return [(f"embeddings/{here}", *names) for here, *names in _EMBEDDINGS if here != "position" or config.positions != "rotary"]


def torch_tensors(config: ElectraConfig, network: str, prefix: str, head: str | None) -> list[Tensor]:
    """All of one transformers model: embeddings, `network` ("generator" or "discriminator") and one of HEADS or none.

    prefix: "electra.", or "" where the encoder was saved alone.
    """
    rows = [(path, prefix + name, None) for path, name, _ in _embeddings(config)]
    rows += [(path, prefix + name, layer) for path, name, _, layer in _network(config, network)]
    tensors = [Tensor(name, path, layer, path.endswith("/kernel")) for path, name, layer in rows]
    return [*tensors, *(head_tensors(network, head) if head else ())]


def head_tensors(network: str, head: str) -> list[Tensor]:
    """Of one of HEADS in transformers."""
    below = network if head in ("rtd", "mlm", "cls") else head
    rows = [(f"{below}/{here}", name) for part in HEADS[head] for here, name, _ in _weight_and_bias(*part)]
    return [Tensor(name, path, None, path.endswith("/kernel")) for path, name in rows]


def tf1_tensors(config: ElectraConfig, networks: Sequence[str]) -> list[Tensor]:
    """All of Google's pretraining checkpoint: the embeddings, which its networks share, and `networks` with their heads."""
    rows = [(path, f"electra/{name}", None) for path, _, name in _embeddings(config)]
    for network in networks:
        scope, head = {"discriminator": ("electra", "rtd"), "generator": ("generator", "mlm")}[network]
        rows += [(path, f"{scope}/{name}", layer) for path, _, name, layer in _network(config, network)]
        for part in HEADS[head]:
            rows += [(f"{network}/{here}", name, None) for here, _, name in _weight_and_bias(*part)]
    return [Tensor(name, path, layer, False) for path, name, layer in rows]


def assemble(
    tensors: Sequence[Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    where: str,
) -> dict[str, np.ndarray]:
    """{path here: float32 array} of all `tensors`.

    shapes: of the arrays here, by path. found: the shapes there, by name, without what is to be passed over. read: a tensor's values.
    Raises UserError that lists every tensor which is missing, left over, or of another shape, before any is read.
    """
    wanted = {}
    for tensor in tensors:
        shape = shapes[tensor.path][1:] if tensor.layer is not None else shapes[tensor.path]
        wanted[tensor.name] = shape[::-1] if tensor.transposed else shape
    refuse_misfits(wanted, found, where)
    out: dict[str, np.ndarray] = {}
    for tensor in tensors:
        value = np.asarray(read(tensor.name), np.float32)
        value = value.T if tensor.transposed else value
        if tensor.layer is None:
            out[tensor.path] = np.ascontiguousarray(value)
        else:
            out.setdefault(tensor.path, np.empty(shapes[tensor.path], np.float32))[tensor.layer] = value
    return out


def disassemble(tensors: Iterable[Tensor], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse: {name there: array}."""
    out = {}
    for tensor in tensors:
        value = arrays[tensor.path] if tensor.layer is None else arrays[tensor.path][tensor.layer]
        out[tensor.name] = np.ascontiguousarray(value.T if tensor.transposed else value)
    return out


def refuse_misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [name for name in wanted if name in found and tuple(found[name]) != tuple(wanted[name])]
    if not (missing or extra or shapes):
        return
    words = _by_layer((name, f"is missing{f' (nearest: {match})' if (match := nearest(name, extra)) else ''}") for name in missing)
    words += _by_layer((name, f"is not known{f' (nearest: {match})' if (match := nearest(name, missing)) else ''}") for name in extra)
    words += _by_layer((name, f"is {list(found[name])} and should be {list(wanted[name])}") for name in shapes)
    raise UserError(f"{where}: {'; '.join(words)}: give a file of the model that the config describes, or mend the config")


def nearest(name: str, others: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(others), n=1, cutoff=0.8)), None)


def _by_layer(said: Iterable[tuple[str, str]]) -> list[str]:
    """One entry for what is said alike of several layers: "encoder.layer.0,1,2.output.dense.bias is missing"."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, words in said:
        number = re.search(r"layer[._](\d+)", name)
        same = re.compile(rf"(?<=layer[._]){number[1]}(?!\d)") if number else re.compile("(?!)")
        layers.setdefault((same.sub("*", name), same.sub("*", words)), []).append(number[1] if number else "")
    return [f"{name} {words}".replace("*", ",".join(numbers)) for (name, words), numbers in layers.items()]


# {"a": {"b": x}} -> {"a/b": x}, and back.
flat = functools.partial(flax.traverse_util.flatten_dict, sep="/")
nested = functools.partial(flax.traverse_util.unflatten_dict, sep="/")
