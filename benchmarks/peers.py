"""The peers: the same step in PyTorch transformers, and txtai's. The losses are ours: MLM + 50 x RTD, embeddings shared, dropout on.

Projected "slots": the masked slots are gathered before the vocabulary projection. "all": what its users write, every position. Sampling
"gumbel": noise on the logits, as the published code; "inverse_cdf": our idea in PyTorch, four times faster.

Then fine-tuning and prediction, with transformers' own classification model, collator, order of rows and pipeline.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import labelled, rows
from electra_jax.interop import formats
from electra_jax.models.config import ElectraConfig, EncoderConfig
from electra_jax.recipe import Recipe

Run = Callable[[], dict[str, float]]
SCORED_AT_ONCE = 8  # sentences, some 80 rows: the fastest of 1, 4, 8, 16 and 32 on two cores


class Models(NamedTuple):
    generator: Any  # ElectraForMaskedLM
    discriminator: Any  # ElectraForPreTraining, with the generator's embeddings


def config_of(config: ElectraConfig, encoder: EncoderConfig, **more) -> Any:
    """One network's transformers.ElectraConfig; more: its fields."""
    import transformers

    fields = dict(
        vocab_size=config.vocab_size,
        embedding_size=config.embedding_size,
        hidden_size=encoder.hidden_size,
        num_hidden_layers=encoder.num_layers,
        num_attention_heads=encoder.num_heads,
        intermediate_size=encoder.ffn_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        max_position_embeddings=config.max_length,
    )
    return transformers.ElectraConfig(**fields | more)


def models(config: ElectraConfig, attention: str) -> Models:
    """attention: transformers' own name, "eager" or "sdpa"."""
    import torch
    import transformers

    torch.manual_seed(0)
    generator = transformers.ElectraForMaskedLM(config_of(config, config.generator, attn_implementation=attention))
    discriminator = transformers.ElectraForPreTraining(config_of(config, config.discriminator, attn_implementation=attention))
    discriminator.electra.embeddings = generator.electra.embeddings
    return Models(generator.to(_device()).train(), discriminator.to(_device()).train())


def losses(both: Models, tokens, real, slots, used, shown, sample, projected: str = "slots"):
    """(MLM loss, RTD loss, corrupted tokens).

    tokens: int64 [B, L]; real: bool [B, L], None where no token is padding; slots: int64 [B, K]; used, shown: bool [B, K], which of them
    count, and show [MASK]; sample(logits [B, K, V]) -> int64 [B, K].
    """
    import torch
    import torch.nn.functional as F

    attention_mask = None if real is None else real.long()
    original = tokens.gather(1, slots)
    masked = tokens.scatter(1, slots, torch.where(used & shown, rows.MASK, original))
    if projected == "all":
        logits = both.generator(masked, attention_mask=attention_mask).logits
        labels = torch.full_like(tokens, -100).scatter(1, slots, torch.where(used, original, -100))
        mlm = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        logits = logits.detach().gather(1, slots[..., None].expand(-1, -1, logits.shape[-1]))
    else:
        hidden = both.generator.electra(masked, attention_mask=attention_mask).last_hidden_state
        hidden = hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = both.generator.generator_lm_head(both.generator.generator_predictions(hidden))
        mlm = F.cross_entropy(logits.flatten(0, 1).float(), torch.where(used, original, -100).flatten())
    sampled = sample(logits.detach().float())
    corrupted = tokens.scatter(1, slots, torch.where(used, sampled, original))
    scores = both.discriminator(corrupted, attention_mask=attention_mask).logits.float()
    labels = (corrupted != tokens).float()
    weight = None if real is None else real.float()
    rtd = F.binary_cross_entropy_with_logits(scores, labels, weight, reduction="sum") / (tokens.numel() if real is None else real.sum())
    return mlm, rtd, corrupted


def gumbel(logits):
    import torch

    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


def inverse_cdf(logits):
    import torch

    total = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(total, torch.rand_like(total[..., :1]) * total[..., -1:])[..., 0].clamp(max=logits.shape[-1] - 1)


class Given(NamedTuple):
    """What a step gets. `draw()` -> (slots int64 [B, K], shown bool [B, K]), anew each step."""

    device: Any
    tokens: Any  # int64 [B, L]
    real: Any  # bool [B, L]
    used: Any  # bool [B, K]: as many masked slots a row as masking.choose takes
    draw: Callable
    figures: dict[str, float]


def given(recipe: Recipe, kind: str) -> Given:
    """The rows that ours gets, on the GPU where PyTorch has one."""
    import torch

    device = _device()
    batch = rows.make(kind, recipe.model.vocab_size, recipe.train.batch_rows, recipe.data.length)
    masks = recipe.masking
    num_slots = masks.max_predictions(batch.tokens.shape[1])
    wanted = np.clip(np.round((batch.segments > 0).sum(1) * masks.rate), 1, num_slots)
    used = torch.from_numpy(np.arange(num_slots)[None] < wanted[:, None]).to(device)
    tokens, real = torch.from_numpy(batch.tokens).long().to(device), torch.from_numpy(batch.segments > 0).to(device)
    able = real & (tokens != rows.CLS) & (tokens != rows.SEP)

    def draw():
        slots = (torch.rand(tokens.shape, device=device) * able).topk(num_slots).indices
        return slots, torch.rand(slots.shape, device=device) < masks.mask_fraction

    return Given(device, tokens, real, used, draw, {"tokens": rows.useful_tokens(batch), "rows": len(batch.row)})


def step(
    stored: Mapping[str, Any],
    kind: str = "full",
    steps: int = 1,
    attention: str = "sdpa",
    compiled: bool = False,
    projected: str = "slots",
    sampling: str = "inverse_cdf",
) -> Run:
    """A turn is so many steps. bfloat16 (autocast) on a GPU, as ours, and float32 on a CPU."""
    import torch

    recipe = Recipe.parse(stored)
    batch, both = given(recipe, kind), models(_model(recipe), attention)
    real = None if kind == "full" else batch.real  # no mask where nothing is padding
    sample = {"inverse_cdf": inverse_cdf, "gumbel": gumbel}[sampling]

    def loss_of(slots, shown):
        mlm, rtd, _ = losses(both, batch.tokens, real, slots, batch.used, shown, sample, projected)
        return mlm + 50.0 * rtd

    loss_of = torch.compile(loss_of) if compiled else loss_of
    return _training(both, lambda: loss_of(*batch.draw()), batch, steps)


def mlm_step(stored: Mapping[str, Any], kind: str = "full", steps: int = 1) -> Run:
    """A turn is so many steps of masked language modelling with a model of the discriminator's shape; the masked slots are gathered before
    the vocabulary projection. Of the chosen tokens 80% show [MASK], 10% a random token and 10% themselves."""
    import torch
    import torch.nn.functional as F
    import transformers

    recipe = Recipe.parse(stored)
    batch, config = given(recipe, kind), _model(recipe)
    torch.manual_seed(0)
    network = transformers.ElectraForMaskedLM(config_of(config, config.discriminator, attn_implementation="sdpa")).to(batch.device).train()
    attention_mask = None if kind == "full" else batch.real.long()

    def loss():
        slots, shown = batch.draw()
        original = batch.tokens.gather(1, slots)
        random = torch.randint(rows.FIRST, config.vocab_size, slots.shape, device=batch.device)
        replaced = torch.where(torch.rand(slots.shape, device=batch.device) < 0.5, random, original)  # where no [MASK] is shown
        masked = batch.tokens.scatter(1, slots, torch.where(batch.used, torch.where(shown, rows.MASK, replaced), original))
        hidden = network.electra(masked, attention_mask=attention_mask).last_hidden_state
        hidden = hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = network.generator_lm_head(network.generator_predictions(hidden))
        return F.cross_entropy(logits.flatten(0, 1).float(), torch.where(batch.used, original, -100).flatten())

    return _training([network], loss, batch, steps)


def txtai_step(stored: Mapping[str, Any], kind: str = "full", steps: int = 1) -> Run:
    """txtai's own forward pass. With transformers 5 it runs on eager attention alone."""
    import torch
    from txtai.models import TokenDetection

    recipe = Recipe.parse(stored)
    batch, both = given(recipe, kind), models(_model(recipe), "eager")
    network = TokenDetection(*both, None, 50.0).train()

    def loss():
        slots, shown = batch.draw()
        original = batch.tokens.gather(1, slots)
        labels = torch.full_like(batch.tokens, -100).scatter(1, slots, torch.where(batch.used, original, -100))
        masked = batch.tokens.scatter(1, slots, torch.where(batch.used & shown, rows.MASK, original))
        return network(masked, labels, batch.real.long())[0]

    return _training(both, loss, batch, steps)


def checkpoint(stored: Mapping[str, Any]) -> Run:
    """A turn is torch.save of weights and optimizer, and reading them back into the models."""
    import torch

    both = models(_model(Recipe.parse(stored)), "sdpa")
    rule = _optimizer(both)
    for parameter in rule.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    rule.step()
    keep = {**both._asdict(), "rule": rule}
    folder = tempfile.TemporaryDirectory()

    def run() -> dict[str, float]:
        start, path = time.monotonic(), os.path.join(folder.name, "checkpoint.pt")
        torch.save({name: kept.state_dict() for name, kept in keep.items()}, path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        saved = time.monotonic()
        found = torch.load(path, map_location=_device())
        for name, kept in keep.items():
            kept.load_state_dict(found[name])
        done, size = time.monotonic(), os.path.getsize(path)
        return {"blocked": saved - start, "saved": saved - start, "restored": done - saved, "bytes": size}

    return run


def finetune(model: str, task: str, batch_rows: int, steps: int) -> Run:
    """A turn is so many steps of ElectraForSequenceClassification, as the Trainer with group_by_length makes them: the rows of a batch are
    of similar lengths and padded to the longest, and the order is drawn anew when an epoch ends."""
    import torch
    import transformers
    from transformers.trainer_pt_utils import get_length_grouped_indices

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="sdpa").to(_device()).train()
    texts, labels = zip(*labelled.examples(task), strict=True)
    config = formats.read(model).config
    features = [{"input_ids": ids, "labels": label} for ids, label in zip(tokenizer(list(texts))["input_ids"], labels, strict=True)]
    lengths, collate = [len(each["input_ids"]) for each in features], transformers.DataCollatorWithPadding(tokenizer)

    def epochs():
        while True:
            order = get_length_grouped_indices(lengths, batch_rows, mega_batch_mult=50)  # as in a training set of many rows
            for start in range(0, len(order), batch_rows):
                yield collate([features[i] for i in order[start : start + batch_rows]])

    batches, parameters = epochs(), list(network.parameters())
    rule, on_gpu = torch.optim.AdamW(parameters, lr=3e-4, eps=1e-6, weight_decay=0.0, fused=True), _device().type == "cuda"

    def run() -> dict[str, float]:
        flops, num_rows = 0.0, 0
        for _ in range(steps):
            batch = next(batches)
            flops += labelled.real_flops(config, batch["attention_mask"].sum(1).tolist(), 3.0)
            batch = batch.to(_device())
            with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                loss = network(**batch).loss
            rule.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            rule.step()
            num_rows += len(batch["labels"])
        return {"loss": float(loss.detach()), "steps": steps, "flops": flops, "rows": num_rows}

    return run


def predict(model: str, task: str, num_rows: int | None = None, batch_rows: int = 0, is_sorted: bool = False) -> Run:
    """A turn is the text-classification pipeline on the task's sentences, the first `num_rows` or all, as they come or sorted by their
    length. batch_rows: at a time; 0: the fastest of 1, 8, 32, 64 and 128."""
    import transformers

    texts = [text for text, _ in labelled.examples(task)[:num_rows]]
    texts = sorted(texts, key=len) if is_sorted else texts
    pipeline = transformers.pipeline("text-classification", model=model, device=_device())

    def once(size: int, stride: int = 1) -> float:
        start = time.perf_counter()
        pipeline(texts[::stride], batch_size=size)
        return time.perf_counter() - start

    size = batch_rows or min((1, 8, 32, 64, 128), key=lambda size: min(once(size, 4), once(size, 4)))

    def run() -> dict[str, float]:
        once(size)
        return {"rows": len(texts), "batch_rows": size}

    return run


def pll(model: str, sentences: str, num_rows: int) -> Run:
    """A turn scores the first sentences of a file as minicons does (`MaskedLMScorer.sequence_score`): of each batch of sentences, every
    token masked in a row of its own, padded to the batch's longest, all positions projected onto the vocabulary."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForMaskedLM.from_pretrained(model, attn_implementation="sdpa").to(_device()).eval()
    texts = pathlib.Path(sentences).read_text(encoding="utf-8").splitlines()[:num_rows]

    @torch.no_grad()
    def score(batch) -> list[float]:
        encoded = tokenizer(list(batch), padding=True, return_tensors="pt").to(_device())
        counts = encoded["attention_mask"].sum(1) - 2
        owners = torch.repeat_interleave(torch.arange(len(batch), device=_device()), counts)
        places = torch.cat([torch.arange(1, int(count) + 1) for count in counts]).to(_device())
        ids, each = encoded["input_ids"][owners], torch.arange(len(owners), device=_device())
        targets = ids[each, places]
        ids = ids.index_put((each, places), torch.tensor(tokenizer.mask_token_id, device=_device()))
        logits = network(ids, attention_mask=encoded["attention_mask"][owners]).logits
        parts = logits[each, places].log_softmax(-1)[each, targets]
        return torch.zeros(len(batch), device=_device()).index_add(0, owners, parts).tolist()

    def run() -> dict[str, float]:
        found = [total for start in range(0, len(texts), SCORED_AT_ONCE) for total in score(texts[start : start + SCORED_AT_ONCE])]
        return {"rows": len(found), "total": sum(found)}

    return run


def _training(both: Sequence[Any], loss: Callable, batch: Given, steps: int) -> Run:
    import torch

    rule, on_gpu = _optimizer(both), batch.device.type == "cuda"
    parameters = rule.param_groups[0]["params"]
    work = {"steps": steps, **{name: steps * value for name, value in batch.figures.items()}}
    precision = torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()

    def run() -> dict[str, float]:
        for _ in range(steps):
            with precision:
                value = loss()
            rule.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            rule.step()
        if on_gpu:
            torch.cuda.synchronize()
        memory = {"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if on_gpu else {}
        return {"loss": float(value.detach()), **work, **memory}

    return run


def _optimizer(both: Sequence[Any]):
    import torch

    parameters = list({id(p): p for network in both for p in network.parameters()}.values())
    return torch.optim.AdamW(parameters, lr=5e-4, eps=1e-6, weight_decay=0.01, fused=True)


def _model(recipe: Recipe) -> ElectraConfig:
    if recipe.model.positions == "rotary":
        raise ValueError("transformers' ELECTRA has no rotary positions")
    return dataclasses.replace(recipe.model, dtype="float32")


def _device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
