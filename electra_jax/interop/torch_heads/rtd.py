"""The head of a discriminator with rotary positions, which finds replaced tokens: transformers' RoFormer has no such head.

scores = rtd_logits(".", input_ids)      # [batch, length], positive: the token was replaced
"""

import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModel


def rtd_logits(folder, input_ids, **inputs):
    head = load_file(pathlib.Path(folder) / "rtd_head.safetensors")

    def weight(name):
        return (head[f"discriminator_predictions.{name}.weight"], head[f"discriminator_predictions.{name}.bias"])

    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(input_ids, **inputs).last_hidden_state
        hidden = torch.nn.functional.gelu(torch.nn.functional.linear(hidden, *weight("dense")))
        return torch.nn.functional.linear(hidden, *weight("dense_prediction")).squeeze(-1)
