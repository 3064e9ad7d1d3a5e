"""ELECTRA's own classification head: one layer on the first token. The head of transformers has one more layer before it.

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
