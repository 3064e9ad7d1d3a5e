"""What a person reads in an exported folder: a model card, and the code of a head that transformers has no class for."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from electra_jax.interop.model import Model

# Of the heads that transformers has no class for: the torch code that applies them, which lies beside the encoder.
CODE = {name: Path(__file__).with_name("torch_heads") / f"{name}.py" for name in ("rtd", "classification", "joint_answer")}

_WHAT = {
    "discriminator": "the discriminator of an ELECTRA (arXiv 2003.10555), which tells replaced tokens from original ones: to fine-tune",
    "generator": "the generator of an ELECTRA (arXiv 2003.10555): a small masked language model, needed to train on",
}
_OF_TASKS = {
    "SequenceClassification": "logits = model(**inputs).logits  # [1, labels]",
    "TokenClassification": "logits = model(**inputs).logits  # [1, length, labels]",
    "QuestionAnswering": "outputs = model(**inputs)  # start_logits and end_logits, [1, length] each",
}
_USE = {
    "ElectraForPreTraining": "scores = model(**inputs).logits  # [1, length], positive: the token was replaced",
    "ElectraForMaskedLM": "logits = model(**inputs).logits  # [1, length, vocabulary]",
    "RoFormerForMaskedLM": "logits = model(**inputs).logits  # [1, length, vocabulary]",
    **{f"{family}For{task}": use for family in ("Electra", "RoFormer") for task, use in _OF_TASKS.items()},
}

TABLE = "base_model.encoder.embed_positions"  # of a RoFormer in transformers

_OWN_HEAD = (
    "Its head is ELECTRA's own, which transformers has no class for. It lies in `task_head.safetensors`, and `task_head.py` applies it:"
)
_BESIDE = {
    "rtd": (
        "Its positions are rotary, so that its class is RoFormer's, which has no head for replaced tokens. The head lies in "
        "`rtd_head.safetensors`, and `rtd_head.py` applies it:",
        ("from rtd_head import rtd_logits", 'scores = rtd_logits(".", inputs["input_ids"], attention_mask=inputs["attention_mask"])'),
    ),
    "classification": (
        _OWN_HEAD,
        ("from task_head import task_logits", 'logits = task_logits(".", **inputs)  # [1, labels]'),
    ),
    "joint_answer": (
        _OWN_HEAD,
        (
            "from task_head import answer",
            'text, score, no_answer = answer(".", "your question?", "a text that answers it")  # both must fit into one row',
        ),
    ),
}


def card(model: Model, network: str, kind: str, beside: str | None) -> str:
    """Markdown, with the front matter that the hub reads. beside: the head that lies beside the encoder."""
    about, config = model.about, model.config
    encoder = config.encoder(network)
    rows = {
        "network": network,
        "layers": encoder.num_layers,
        "width": encoder.hidden_size,
        "heads": encoder.num_heads,
        "feed-forward width": encoder.ffn_size,
        "embedding width": config.embedding_size,
        "vocabulary": config.vocab_size,
        "positions": config.positions if config.positions == "rotary" else f"{config.positions}, {config.max_length}",
    }
    lines = [
        "---",
        "library_name: transformers",
        "tags: [electra, electra_jax]",
        "license: unknown  # what the text and the model it began with allow: name it before you publish",
        "---",
        "",
        f"# {_escaped(about.get('name') or 'ELECTRA')}, {network}",
        "",
        f"This is {_what(model, network)}. Written by electra_jax.",
        "",
        "```python",
        f"from transformers import AutoTokenizer, {kind}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        f'model = {kind}.from_pretrained(".")',
        'inputs = tokenizer("a sentence of your own", return_tensors="pt")',
        _USE.get(kind, "hidden = model(**inputs)[0]"),
        "```",
        "",
    ]
    if kind.startswith("RoFormer"):
        lines += [
            "The table of rotary positions follows from the model's shape, but transformers trains it with the rest, and electra_jax then "
            f"does not read the model. Before you train it further, freeze the table: `model.{TABLE}.requires_grad_(False)`.",
            "",
        ]
    if beside:
        words, code = _BESIDE[beside]
        lines += [words, "", "```python", *code, "```", ""]
    if network == model.tuned:
        lines += _task(model)
    lines += ["## Model", "", *_table(rows)]
    if model.tokenizer is not None:
        options = ", ".join(f"{name}={value}" for name, value in model.tokenizer.options.items())
        lines += ["", f"Tokenizer: {options}."]
    lines += ["", "## Training", ""]
    run = _without_places(about.get("config") or {})
    training = {"source": _name(about.get("source")), "steps": about.get("step"), "began with": run.get("init_from") or None}
    training |= about.get("training") or {}
    training |= {name: _name(training[name]) for name in ("converted from",) if name in training}
    lines += _table({name: value for name, value in training.items() if value is not None})
    if about.get("metrics"):
        lines += [
            "",
            "Held out, at the last evaluation:",
            "",
            *_table({k: f"{v:.4g}" for k, v in sorted(about["metrics"].items()) if k != "eval/rows"}),
        ]
    if about.get("data"):
        lines += ["", "Data, as prepared:", "", "```json", json.dumps(_without_places(about["data"]), indent=1, sort_keys=True), "```"]
    if "train" in run:  # a run, and not a model from elsewhere
        lines += ["", "<details><summary>The run's whole config</summary>", "", "```json"]
        lines += [json.dumps(run, indent=1, sort_keys=True), "```", "", "</details>"]
    return "\n".join(lines) + "\n"


def _what(model: Model, network: str) -> str:
    if network != model.tuned:
        return _WHAT[network]
    title = (model.about.get("task") or {}).get("title")
    return f"an encoder that was fine-tuned{f' on {_escaped(_name(title))}' if title else ''}"


def _task(model: Model) -> list[str]:
    """How its outputs are to be read."""
    task, labels = model.about.get("task") or {}, model.about.get("labels") or []
    rows = {"head": model.task, "kind": task.get("kind"), "labels": ", ".join(labels)}
    if task.get("kind") == "number" and task.get("range"):
        low, high = task["range"]
        rows["value"] = f"{low:g} + {high - low:g} x the logit"
    if (task.get("layout") or {}).get("scheme") == "iob2":
        rows["tags"] = "of the first token of each word: B begins a span, I is inside, E ends it, S is one alone"
    if (task.get("finetune") or {}).get("tags_type"):
        rows["token types"] = "1"
    if (threshold := (task.get("finetune") or {}).get("no_answer_threshold")) is not None and task.get("kind") == "answer":
        rows["no answer"] = f"where its score is above {threshold:g}"
    return ["## Task", "", *_table({name: value for name, value in rows.items() if value}), ""]


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {_escaped(name)} | {_escaped(value)} |" for name, value in rows.items())]


def _escaped(value: Any) -> str:
    """As a cell of a table: Markdown's and HTML's own characters as they are."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(str(value).split()))


def _name(source: Any) -> str | None:
    """The last part of a path: where it lies on the machine that wrote it is nobody else's business. A URL stays."""
    return ",".join(part if "://" in part else PurePath(part).name for part in str(source).split(",")) if source else None


def _without_places(tree: Any, name: str = "") -> Any:
    """A config or summary in which each path of this machine is its last part."""
    if isinstance(tree, Mapping):
        return {key: _without_places(value, key) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_places(value, name) for value in tree]
    is_path = isinstance(tree, str) and (name in ("path", "init_from") or re.match(r"(~|\.{0,2})/", tree))
    return (_name(tree) or "") if is_path else tree
