"""transformers' folders, read and written without PyTorch and transformers: config.json, safetensors, tokenizer, model card.

Architectures: ELECTRA's discriminator, generator, encoder and task heads; RoFormer's, which is the same encoder with rotary
positions; BERT's encoder and MLM head, to read. DeBERTa is another architecture (disentangled attention) and out of scope.

A head that transformers has no class for lies beside the encoder, in a file of its own, with the torch code that applies it.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.interop import cards, names, tensor_files
from electra_jax.interop import model as models
from electra_jax.interop import tokenizers as tokenizer_files
from electra_jax.interop.model import Model
from electra_jax.models import heads
from electra_jax.models.config import ElectraConfig

CONFIG = "config.json"
MAX_LENGTH = 1 << 20
# Heads that may lie beside an encoder: the name of their files, .safetensors and .py.
BESIDE = {"rtd": "rtd_head", "classification": "task_head", "joint_answer": "task_head"}
OURS = "electra_jax"  # a section of config.json: the head that lies beside the encoder, and what predicting the task goes by


class Architecture(NamedTuple):
    """One class of transformers: which network it is here, and which head it has."""

    family: str  # its model_type, and the prefix of its encoder's names
    network: str
    head: str | None


ARCHITECTURES = {
    "ElectraForPreTraining": Architecture("electra", "discriminator", "rtd"),
    "ElectraForMaskedLM": Architecture("electra", "generator", "mlm"),
    "ElectraModel": Architecture("electra", "discriminator", None),
    "ElectraForSequenceClassification": Architecture("electra", "discriminator", "sequence_classification"),
    "ElectraForTokenClassification": Architecture("electra", "discriminator", "token_classification"),
    "ElectraForQuestionAnswering": Architecture("electra", "discriminator", "question_answering"),
    "RoFormerModel": Architecture("roformer", "discriminator", None),
    "RoFormerForMaskedLM": Architecture("roformer", "generator", "cls"),
    "RoFormerForSequenceClassification": Architecture("roformer", "discriminator", "sequence_classification"),
    "RoFormerForTokenClassification": Architecture("roformer", "discriminator", "token_classification"),
    "RoFormerForQuestionAnswering": Architecture("roformer", "discriminator", "question_answering"),
    # An MLM's encoder is a generator here.
    "BertModel": Architecture("bert", "generator", None),
    "BertForMaskedLM": Architecture("bert", "generator", "cls"),
    "BertForPreTraining": Architecture("bert", "generator", "cls"),
}
# What a file may hold that follows from other tensors, or that no network here has.
_TIED = re.compile(r"^(generator_lm_head|cls\.predictions\.decoder)\.(weight|bias)$")
_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|embed_positions\.weight)$")
_LEFT_OUT = re.compile(r"(^|\.)pooler\.|^cls\.seq_relationship\.")
# What transformers' own training of a task's head goes by: kept as it is.
_TASK_FIELDS = ("problem_type", "classifier_dropout")
_PROBLEMS = {"class": "single_label_classification", "classes": "multi_label_classification", "number": "regression"}
_OLD_NORM = {"gamma": "weight", "beta": "bias"}  # of files that transformers wrote before version 3


def is_folder(path: pathlib.Path) -> bool:
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in tensor_files.ALL)


# --- Reading


def read(folder: pathlib.Path) -> Model:
    """One folder of transformers. UserError, in one line, for whatever is wrong with it."""
    fields = tensor_files.read_json(folder / CONFIG)
    with tensor_files.opened(folder) as (shapes, tensor):
        kind = _architecture(fields, shapes, folder)
        config = _to_config(fields, ARCHITECTURES[kind], folder)
        return _assemble(folder, fields, kind, config, shapes, tensor)


def _assemble(folder: pathlib.Path, fields: Mapping, kind: str, config: ElectraConfig, shapes: Mapping, tensor: Callable) -> Model:
    family, network, head = ARCHITECTURES[kind]
    current = {_current_name(name): name for name in shapes}  # name as it would be written today -> as it is in the file
    if twice := sorted(set(shapes) - set(current.values())):
        raise UserError(f"{folder}: {twice[0]} and {current[_current_name(twice[0])]} are one parameter: remove one of them")
    prefix = f"{family}." if any(name.startswith(f"{family}.") for name in current) else ""
    found = {name: shapes[old] for name, old in current.items() if not (_BUFFERS.search(name) or _LEFT_OUT.search(name))}
    tied = {name: found.pop(name) for name in list(found) if _TIED.match(name) and name != "generator_lm_head.bias"}
    left_out = sorted({name.rsplit(".", 1)[0] for name in current if _LEFT_OUT.search(name)})
    _refuse_other_depth(found, config, network, folder)

    beside, beside_shapes = _beside(folder, fields, kind), {}
    if beside:
        with tensor_files.opened(folder, f"{BESIDE[beside]}.safetensors") as (beside_shapes, _):
            pass
    task = next((each for each in (head, beside) if each in heads.TASKS), None)
    num_labels = _num_labels(fields, {**found, **beside_shapes}, folder) if task else 0
    tensors = names.torch_tensors(config, network, prefix, head)
    sizes = models.shapes(config, task, num_labels)
    arrays = names.assemble(tensors, sizes, found, lambda name: tensor(current[name]), str(folder))
    if family == "roformer":
        _refuse_other_turns(current, tensor, config, network, folder)
        arrays = {path: _rotary_order(path, x, config, network, to_torch=False) for path, x in arrays.items()}
    for name in tied:
        own = "embeddings/word" if name.endswith("weight") else f"{network}/head/bias"
        if head in ("mlm", "cls") and not np.array_equal(np.asarray(tensor(current[name]), np.float32), arrays[own]):
            raise UserError(f"{folder}: {name} differs from what it is tied to: an output layer of its own has no place here")
    if beside:
        with tensor_files.opened(folder, f"{BESIDE[beside]}.safetensors") as (head_shapes, head_tensor):
            where = str(folder / f"{BESIDE[beside]}.safetensors")
            arrays |= names.assemble(names.head_tensors(network, beside), sizes, head_shapes, head_tensor, where)
    params = names.nested(arrays)
    tokenizer = _tokenizer(folder)
    models.check_vocabulary(tokenizer, config, str(folder))
    about = {"source": str(folder), "architecture": kind}
    if task:
        about["labels"] = _labels(fields, num_labels)
        about["task"] = {name: fields[name] for name in _TASK_FIELDS if fields.get(name) is not None} | _ours(fields, folder)
    notes = [f"{folder}: left out {', '.join(left_out)}: no network here has it"] if left_out else []
    if tokenizer is None:
        notes.append(f"{folder}: there is no tokenizer in it")
    return Model(config, params, tokenizer, about=about, notes=tuple(notes))


def _ours(fields: Mapping, folder: pathlib.Path) -> dict[str, Any]:
    found = fields.get(OURS, {})
    if not isinstance(found, dict):
        raise UserError(f"{folder / CONFIG}: {OURS} is {found!r}: it must be an object, as this program writes it, or be left out")
    return found


def _beside(folder: pathlib.Path, fields: Mapping, kind: str) -> str | None:
    """The head that lies beside the encoder."""
    if ARCHITECTURES[kind].head is not None:
        return None
    head, known = _ours(fields, folder).get("head"), [name for name in BESIDE if name in heads.TASKS]
    if (folder / "task_head.safetensors").is_file():
        if head not in known:
            raise UserError(f"{folder / CONFIG}: {OURS}.head is {head!r}: it names the head in task_head.safetensors, {' or '.join(known)}")
        return head
    if head in known:
        raise UserError(
            f"{folder}: task_head.safetensors is not there, and {CONFIG} says that the head lies in it: copy it there, or remove "
            f"{OURS}.head from {CONFIG} to take the encoder alone"
        )
    return "rtd" if kind == "RoFormerModel" and (folder / "rtd_head.safetensors").is_file() else None


def _current_name(name: str) -> str:
    head, _, last = name.rpartition(".")
    return f"{head}.{_OLD_NORM[last]}" if last in _OLD_NORM and head.endswith("LayerNorm") else name


def _architecture(fields: Mapping, shapes: Mapping, folder: pathlib.Path) -> str:
    """By config.json's own word; where it has none, by the heads that the weights have."""
    family, named = fields.get("model_type"), fields.get("architectures")
    if named is not None and not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise UserError(f"{folder / CONFIG}: architectures is {named!r}: it must name one class of transformers")
    known = [kind for kind, about in ARCHITECTURES.items() if about.family == family]
    if not known:
        families = ", ".join(dict.fromkeys(about.family for about in ARCHITECTURES.values()))
        raise UserError(f"{folder / CONFIG}: model_type is {family!r}: what is read here is {families} (DeBERTa is another architecture)")
    if named:
        if named[0] not in known:
            raise UserError(f"{folder / CONFIG}: {named[0]} of model_type {family} is not read here: {', '.join(known)} are")
        return named[0]
    starts = {name.split(".")[0] for name in shapes}
    for start, ending in (
        ("discriminator_predictions", "ForPreTraining"),
        ("generator_predictions", "ForMaskedLM"),
        ("cls", "ForMaskedLM"),
        ("qa_outputs", "ForQuestionAnswering"),
        ("classifier", "ForTokenClassification"),
    ):
        if start in starts:
            deep = any(name.startswith("classifier.dense") for name in shapes)
            ending = "ForSequenceClassification" if deep else ending
            return next(kind for kind in known if kind.endswith(ending))
    return next(kind for kind in known if kind.endswith("Model"))


def _to_config(fields: Mapping, about: Architecture, folder: pathlib.Path) -> ElectraConfig:
    """UserError for what this encoder cannot express."""

    def get(name: str, kind: type, default: Any = None) -> Any:
        value = fields.get(name, default)
        right = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not (right and 0 <= value < 2**31):
            wanted = "a number" if kind is float else "a whole number"
            raise UserError(f"{folder / CONFIG}: {name} is {value!r}: it must be {wanted} from 0 up")
        return value

    for name, allowed in (
        ("hidden_act", ("gelu",)),
        ("position_embedding_type", ("absolute", None)),
        ("rotary_value", (False, None)),
        ("is_decoder", (False, None)),
        ("add_cross_attention", (False, None)),
    ):
        if fields.get(name, allowed[0]) not in allowed:
            raise UserError(f"{folder / CONFIG}: {name} is {fields[name]!r}: the encoder here is that of ELECTRA, {name}={allowed[0]!r}")
    hidden_size, num_heads, ffn_size = get("hidden_size", int), get("num_attention_heads", int), get("intermediate_size", int)
    if min(hidden_size, num_heads) < 1 or hidden_size % num_heads:
        raise UserError(
            f"{folder / CONFIG}: hidden_size {hidden_size} must be a multiple of num_attention_heads {num_heads}: other shapes have no "
            "place here"
        )
    if ffn_size < 1:
        raise UserError(f"{folder / CONFIG}: intermediate_size is {ffn_size}: it must be at least 1")
    default_embedding = fields.get("embedding_size")
    sizes = dict(
        vocab_size=get("vocab_size", int),
        max_length=get("max_position_embeddings", int),
        type_vocab_size=get("type_vocab_size", int, 2),
        embedding_size=hidden_size if about.family == "bert" or default_embedding is None else get("embedding_size", int),
        num_layers=get("num_hidden_layers", int),
        dropout=float(get("hidden_dropout_prob", float, 0.1)),
        attention_dropout=float(get("attention_probs_dropout_prob", float, 0.1)),
        init_std=float(get("initializer_range", float, 0.02)),
        layer_norm_eps=float(get("layer_norm_eps", float, 1e-12)),
    )
    positions = "rotary" if about.family == "roformer" else "learned"
    if sizes["max_length"] > MAX_LENGTH:  # a rotary model has no tensor of this size that would contradict
        raise UserError(f"{folder / CONFIG}: max_position_embeddings is {sizes['max_length']}: it must be at most {MAX_LENGTH:,}")
    try:
        return ElectraConfig(
            hidden_size=hidden_size,
            head_size=hidden_size // num_heads,
            ffn_size=models.ffn_field(ffn_size, hidden_size),
            positions=positions,
            generator_hidden_fraction=1.0,  # of a file with one network, either name has its sizes
            generator_ffn_size=models.ffn_field(ffn_size, hidden_size),
            **sizes,
        )
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None


def _refuse_other_depth(found: Mapping, config: ElectraConfig, network: str, folder: pathlib.Path) -> None:
    """First of the checks: a config may ask for any number of layers, and each would be listed."""
    numbers = {int(match[1]) for name in found if (match := re.search(r"encoder\.layer\.(\d{1,6})\.", name))}
    there, said = max(numbers, default=-1) + 1, config.encoder(network).num_layers
    if there != said:
        raise UserError(f"{folder}: {CONFIG} says num_hidden_layers {said} and the weights have {there}: take both from one model")


def _num_labels(fields: Mapping, found: Mapping, folder: pathlib.Path) -> int:
    """Of the weights; the config's own number must agree, or its default stand for it."""
    out = next((shape for name, shape in found.items() if re.search(r"^(classifier(\.out_proj)?|qa_outputs)\.bias$", name)), (0,))
    labels = fields.get("id2label")
    if not isinstance(labels, dict | None):
        raise UserError(f"{folder / CONFIG}: id2label is {labels!r}: it must be an object, a number of an output: its label")
    return len(labels) if labels else (out[0] if len(out) == 1 else 0)


def _labels(fields: Mapping, num_labels: int) -> list[str]:
    labels = fields.get("id2label") or {}
    return [str(labels.get(str(number), f"LABEL_{number}")) for number in range(num_labels)]


def _rotary_order(path: str, x: np.ndarray, config: ElectraConfig, network: str, *, to_torch: bool) -> np.ndarray:
    """Queries and keys in RoFormer's order: it turns neighbours (2i, 2i + 1) where we turn (i, i + D/2). The last axis is H x D."""
    if not re.search(r"/attention/(query|key)/", path):
        return x
    size = config.encoder(network).head_size
    num_heads = x.shape[-1] // size
    order = np.arange(size).reshape(2, size // 2).T if to_torch else np.arange(size).reshape(size // 2, 2).T
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], num_heads, size)[..., order.reshape(-1)].reshape(x.shape))


def _tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer | None:
    files = ("vocab.txt", "tokenizer.json", "spm.model", "spiece.model", "tokenizer.model")
    return tokenizers.load(folder) if any((folder / name).is_file() for name in files) else None


# --- Writing


def write(folder: pathlib.Path, model: Model, network: str) -> None:
    """`network` of the model as a folder that AutoModel and AutoTokenizer open, with a model card. The folder is there and empty.

    A rotary discriminator goes out as RoFormerModel, which has no RTD head, and a fine-tuned model whose head is the published one as an
    encoder: the head lies beside it, with the torch code that applies it.
    """
    kind, beside = _class_for(model, network)
    family, _, head = ARCHITECTURES[kind]
    model = dataclasses.replace(model, config=_reaching(model, network))
    config, arrays = model.config, names.flat(model.params)
    if family == "roformer":
        arrays = {path: _rotary_order(path, x, config, network, to_torch=True) for path, x in arrays.items()}
    tensors = names.torch_tensors(config, network, f"{family}." if head else "", head)
    _save(folder / tensor_files.WEIGHTS, names.disassemble(tensors, arrays) | _sinusoids(config, network, family, head))
    if beside:
        _save(folder / f"{BESIDE[beside]}.safetensors", names.disassemble(names.head_tensors(network, beside), arrays))
        (folder / f"{BESIDE[beside]}.py").write_text(cards.CODE[beside].read_text())
    fields = _from_config(config, network, kind, beside, model)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    if model.tokenizer is not None:
        tokenizer_files.save(folder, model.tokenizer, config.max_length)
    (folder / "README.md").write_text(cards.card(model, network, kind, beside), encoding="utf-8", errors="backslashreplace")


def _reaching(model: Model, network: str) -> ElectraConfig:
    """The config with as many positions as the rows of a fine-tuned model have. Rotary positions bound no row here, so that a task's rows
    may be longer than those of pretraining; RoFormer has a table of positions, and fails on a token behind its end."""
    tuned = (model.about.get("task") or {}).get("finetune")
    length = tuned.get("length") if network == model.tuned and isinstance(tuned, Mapping) else None
    if model.config.positions != "rotary" or not isinstance(length, int) or length <= model.config.max_length:
        return model.config
    return dataclasses.replace(model.config, max_length=length)


def _class_for(model: Model, network: str) -> tuple[str, str | None]:
    """(the class of transformers, the head that it lacks and that lies beside it)."""
    if model.config.backbone != "transformer":
        raise UserError(f"transformers has no class for model.backbone={model.config.backbone}: keep it in our own format")
    rotary = model.config.positions == "rotary"
    if network == model.tuned:  # whichever network was fine-tuned: an encoder alone is what ELECTRA's discriminator is
        head, network = model.task, "discriminator"
    elif network == "generator":
        head = ("cls" if rotary else "mlm") if "head" in model.params["generator"] else None
        if head is None:
            raise UserError("an encoder of an MLM without its head has no class of its own in ELECTRA's family: keep it as it was")
    else:
        head = "rtd" if "head" in model.params["discriminator"] else None
    family = "roformer" if rotary else "electra"
    of_head = {about.head: kind for kind, about in ARCHITECTURES.items() if (about.family, about.network) == (family, network)}
    return (of_head[head], None) if head in of_head else (of_head[None], head)


def _from_config(config: ElectraConfig, network: str, kind: str, beside: str | None, model: Model) -> dict[str, Any]:
    encoder = config.encoder(network)
    fields = {
        "architectures": [kind],
        "model_type": ARCHITECTURES[kind].family,
        "vocab_size": config.vocab_size,
        "embedding_size": config.embedding_size,
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.ffn_size,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.type_vocab_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": model.tokenizer.pad_id if model.tokenizer else 0,
    }
    if network == model.tuned:
        last = names.flat(model.params[model.task]).get("out/bias", np.empty(2))
        labels = model.about.get("labels") or [f"LABEL_{i}" for i in range(len(last))]
        fields["id2label"] = {str(number): label for number, label in enumerate(labels)}
        fields["label2id"] = {label: number for number, label in enumerate(labels)}
        task = dict(model.about.get("task") or {})
        fields |= {name: task.pop(name) for name in _TASK_FIELDS if name in task}
        task.pop("head", None)  # of the folder that it came from
        if beside:
            task["head"] = beside
        if model.task in heads.OF_FIRST_TOKEN and task.get("kind") in _PROBLEMS:
            fields["problem_type"] = _PROBLEMS[task["kind"]]
        if task:
            fields[OURS] = task
    return fields


def _refuse_other_turns(current: Mapping, tensor: Callable, config: ElectraConfig, network: str, folder: pathlib.Path) -> None:
    """transformers turns by the table in the file, and the encoder here by the angles that it is computed from. transformers also trains
    the table, unless it is frozen; a few steps move it by less than the rounding to half precision does."""
    for name, there in current.items():
        if name.endswith("embed_positions.weight"):
            x = tensor(there)
            fits = x.shape == (config.max_length, config.encoder(network).head_size)  # first: a config may name any length
            table = next(iter(_sinusoids(config, network, "roformer", None).values())) if fits else None
            halves = not np.any(np.ascontiguousarray(x).view(np.uint32) & 0x1FFF)  # float16 and bfloat16 leave these bits of float32 empty
            if not fits or not np.allclose(x, table, rtol=0, atol=1e-2 if halves else 1e-5):
                raise UserError(
                    f"{folder}: {name} is not the table of sines and cosines that rotary positions are: that has no place here. "
                    f"If it was trained in transformers, freeze it there and train again (model.{cards.TABLE}.requires_grad_(False))"
                )


def _sinusoids(config: ElectraConfig, network: str, family: str, head: str | None) -> dict[str, np.ndarray]:
    """RoFormer's table of turns, which it saves although it follows from the shape: sines in the first half, cosines in the second."""
    if family != "roformer":
        return {}
    size = config.encoder(network).head_size
    angle = np.arange(config.max_length)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
    return {f"{'roformer.' if head else ''}encoder.embed_positions.weight": table}


def _save(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    # Not save_file, whose error of a full disk is no OSError.
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
