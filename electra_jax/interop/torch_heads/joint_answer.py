"""ELECTRA's own head for questions: it scores each start of an answer, each end given the start, and whether there is an answer at all.

    text, score, no_answer = answer(".", "Who wrote it?", "Emma was written by Jane Austen.")

score: the text's log-probability. no_answer: a logit; the larger it is, the likelier it is that the context has no answer.
"""

import pathlib

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, linear
from transformers import AutoModel, AutoTokenizer


def answer_logits(folder, num_starts=20, **inputs):
    """(start logits [B, L], the likeliest starts [B, S], end logits for each of these [B, S, L], no-answer logit [B])."""
    head = load_file(pathlib.Path(folder) / "task_head.safetensors")

    def layer(name, x):
        return linear(x, head[f"{name}.weight"], head[f"{name}.bias"])

    with torch.no_grad():
        x = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
        may = inputs["attention_mask"] * inputs["token_type_ids"]
        may[:, 0] = 1  # the first token stands for no answer
        start = layer("start", x).squeeze(-1) + 1000.0 * (may - 1.0)
        starts = start.topk(min(num_starts, start.shape[1])).indices
        of_start = x.gather(1, starts[..., None].expand(-1, -1, x.shape[-1]))
        pairs = torch.cat([of_start[:, :, None].expand(-1, -1, x.shape[1], -1), x[:, None].expand(-1, starts.shape[1], -1, -1)], dim=-1)
        end = layer("end", gelu(layer("end_hidden", pairs))).squeeze(-1) + 1000.0 * (may[:, None] - 1.0)
        mean = (start.softmax(-1)[..., None] * x).sum(1)
        return start, starts, end, layer("no_answer", gelu(layer("no_answer_hidden", torch.cat([x[:, 0], mean], dim=-1)))).squeeze(-1)


def answer(folder, question, context, longest=30):
    """(text, score, no_answer) for a context that fits into one row of the model. longest: the most pieces that an answer may have."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    if (length := inputs["input_ids"].shape[1]) > tokenizer.model_max_length:
        raise ValueError(f"question and context have {length} tokens, and the model takes {tokenizer.model_max_length}: cut the context")
    place = inputs.pop("offset_mapping")[0].tolist()
    start, starts, end, no_answer = answer_logits(folder, **inputs)
    score = start.log_softmax(-1)[0, starts[0]][:, None] + end.log_softmax(-1)[0]
    inside = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
    long = torch.arange(end.shape[-1])[None] - starts[0][:, None]
    score[~((long >= 0) & (long < longest) & inside[starts[0]][:, None] & inside[None])] = -torch.inf
    best = int(score.argmax())
    first, last = int(starts[0, best // end.shape[-1]]), best % end.shape[-1]
    return context[place[first][0] : place[last][1]], float(score.max()), float(no_answer)
