"""ELECTRA's own head of a classification task: one layer on the first token. That of transformers has another layer before it.

logits = task_logits(".", **tokenizer(texts, padding=True, return_tensors="pt"))      # [batch, labels]
"""

import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModel


def task_logits(folder, **inputs):
    head = load_file(pathlib.Path(folder) / "task_head.safetensors")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
        return torch.nn.functional.linear(hidden[:, 0], head["classifier.weight"], head["classifier.bias"])
