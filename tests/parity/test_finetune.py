"""Fine-tuning against PyTorch: heads, losses, gradients and whole steps with layer-wise rates: `make parity`.

The encoder is transformers' ElectraModel with the same weights. All else is written again here, from the published description
(google-research/electra `finetune/`, `model/optimization.py`): rows from words, heads, losses, clip, AdamW, rates, schedules. Each real row
is given to PyTorch with the others of its batch, padded to the longest; rows that are none are not there at all.

Errors are relative to the largest value of their kind: of the tensor for outputs, of the part of the model for gradients and steps.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the extra [parity]: make parity")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra [parity]: make parity")

from benchmarks import peers  # noqa: E402
from electra_jax import rng  # noqa: E402
from electra_jax.build import Devices, build  # noqa: E402
from electra_jax.data.tokenizers import SPECIALS, WordPiece  # noqa: E402
from electra_jax.finetune import objective, rates  # noqa: E402
from electra_jax.finetune import rows as finetune_rows  # noqa: E402
from electra_jax.finetune.config import FinetuneConfig  # noqa: E402
from electra_jax.finetune.examples import Answers, Example  # noqa: E402
from electra_jax.finetune.readers.layout import Layout  # noqa: E402
from electra_jax.finetune.recipe import FinetuneRecipe  # noqa: E402
from electra_jax.finetune.tasks import Task  # noqa: E402
from electra_jax.interop import names  # noqa: E402
from electra_jax.models.config import PRESETS  # noqa: E402
from electra_jax.train.config import OptimizerConfig, ScheduleConfig, TrainConfig  # noqa: E402

pytestmark = pytest.mark.parity
F = torch.nn.functional
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
LENGTH, BATCH = 72, 8
VOCABULARY = [*SPECIALS, "play", "##ing", "##s", *(f"w{number}" for number in range(60))]
CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
IDS = {f"w{number}": [VOCABULARY.index(f"w{number}")] for number in range(60)}
IDS |= {"playing": [VOCABULARY.index("play"), VOCABULARY.index("##ing")], "plays": [VOCABULARY.index("play"), VOCABULARY.index("##s")]}
LABELS = ("A", "B", "C")
LOW, HIGH = -1.0, 7.0
HEADS = {
    "class": ("classification", "sequence_classification"),
    "classes": ("classification",),
    "number": ("classification",),
    "tags": ("token_classification",),
    "answer": ("joint_answer", "question_answering"),
}


# --- Examples, and the rows that they are


def words(r, count) -> list[str]:
    return [str(word) for word in r.choice(list(IDS), count)]


def make_examples(kind: str) -> list[Example]:
    """Every other one short. Of answers, one question in three has none."""
    r, found = np.random.default_rng(5), []
    for number in range(10):
        short = number % 2 == 0
        if kind == "tags":
            texts = tuple(words(r, r.integers(2, 6) if short else r.integers(10, 20)))
            label = tuple(str(each) for each in r.choice(LABELS, len(texts)))
        elif kind == "answer":
            context = words(r, 10 if short else r.integers(70, 90))
            first = int(r.integers(0, len(context) - 2))
            answer = " ".join(context[first : first + 3])
            start = len(" ".join([*context[:first], ""]))
            texts = " ".join(words(r, r.integers(1, 5))), " ".join(context)
            label = Answers((), ()) if number % 3 == 2 else Answers((answer,), (start,))
        else:
            texts = tuple(" ".join(words(r, r.integers(1, 4) if short else r.integers(8, 16))) for _ in range(2))
            label = {
                "class": str(r.choice(LABELS)),
                "classes": tuple(each for each in LABELS if r.random() < 0.5),
                "number": LOW + float(r.integers(0, 65)) / 8,  # whose share of the range float32 has exactly
            }[kind]
        found.append(Example(str(number), texts, label, f"file:{number}"))
    return found


class Row(NamedTuple):
    tokens: list[int]
    types: list[int]
    label: Any  # a number of a class; a 0 or 1 for each; a share; (place, class) of each word; (start, end, impossible)


def reference_rows(kind: str, examples: list[Example]) -> list[Row]:
    found = []
    for example in examples:
        if kind == "tags":
            tokens, label = [CLS], []
            for word, tag in zip(example.texts, example.label, strict=True):
                label.append((len(tokens), LABELS.index(tag)))
                tokens += IDS[word]
            found.append(Row([*tokens, SEP], [0] * (len(tokens) + 1), label))
            continue
        first, second = ([IDS[word] for word in text.split()] for text in example.texts)
        before = [CLS, *sum(first, []), SEP]
        if kind != "answer":
            label = {
                "class": lambda label: LABELS.index(label),
                "classes": lambda label: [float(each in label) for each in LABELS],
                "number": lambda label: (label - LOW) / (HIGH - LOW),
            }[kind](example.label)
            tokens = [*before, *sum(second, []), SEP]
            found.append(Row(tokens, [0] * len(before) + [1] * (len(tokens) - len(before)), label))
            continue
        pieces, room, at = sum(second, []), LENGTH - 1 - len(before), 0
        while True:
            window = pieces[at : at + room]
            begin = end = -1
            if example.label.texts:
                word = len(example.texts[1][: example.label.starts[0]].split())
                begin = sum(map(len, second[:word]))
                end = begin + sum(map(len, second[word : word + 3])) - 1
            inside = at <= begin and 0 <= end < at + room
            label = (begin - at + len(before), end - at + len(before), 0) if inside else (0, 0, 1)
            found.append(Row([*before, *window, SEP], [0] * len(before) + [1] * (len(window) + 1), label))
            if at + room >= len(pieces):
                break
            at += min(room, 128)
    return found


# --- Heads and losses in PyTorch


class Reference(torch.nn.Module):
    def __init__(self, config, params, head: str):
        super().__init__()
        encoder, dtype = config.discriminator, getattr(torch, config.param_dtype)
        no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.encoder = transformers.ElectraModel(peers.config_of(config, encoder, **no_dropout))
        self.head = torch.nn.ModuleDict()
        for name, leaf in params[head].items():
            self.head[name] = torch.nn.Linear(*leaf["kernel"].shape)
        self.to(dtype).eval()
        parameters = dict(self.named_parameters())
        values = torch_values(config, params, head)
        assert set(parameters) == set(values)
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(torch.from_numpy(value))

    def forward(self, kind: str, head: str, rows: list[Row]):
        """(sum of the losses, what counts, {output of ours: what it should be})."""
        longest = max(len(row.tokens) for row in rows)
        tokens, types, real = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
        for b, row in enumerate(rows):
            n = len(row.tokens)
            tokens[b, :n], types[b, :n], real[b, :n] = torch.tensor(row.tokens), torch.tensor(row.types), 1
        h = self.encoder(input_ids=tokens, attention_mask=real, token_type_ids=types).last_hidden_state
        labels = [row.label for row in rows]
        if kind == "answer":
            may = real * types
            may[:, 0] = 1
            forbidden = 1000.0 * (may.to(h.dtype) - 1.0)
            return (self.joint if head == "joint_answer" else self.independent)(h, forbidden, torch.tensor(labels))
        if kind == "tags":
            at = [(b, place) for b, label in enumerate(labels) for place, _ in label]
            logits = self.head["out"](h[tuple(torch.tensor(at).T)])
            target = torch.tensor([each for label in labels for _, each in label])
            best = torch.zeros(len(rows), longest, dtype=h.dtype)
            best[tuple(torch.tensor(at).T)] = torch.log_softmax(logits, -1).max(-1).values.detach()
            return F.cross_entropy(logits, target, reduction="sum"), len(at), {"log_p": best}
        first = h[:, 0]
        if head == "sequence_classification":
            first = F.gelu(self.head["dense"](first))
        logits = self.head["out"](first)
        if kind == "class":
            return F.cross_entropy(logits, torch.tensor(labels), reduction="sum"), len(rows), {"log_p": torch.log_softmax(logits, -1)}
        target = torch.tensor(labels, dtype=h.dtype)
        if kind == "classes":
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            return loss, len(rows), {"log_p": F.logsigmoid(logits)}
        return ((logits[:, 0] - target) ** 2).sum(), len(rows), {"value": logits[:, 0]}

    def joint(self, h, forbidden, labels):
        start, end, impossible = labels.T
        B, L, _ = h.shape
        of_start = self.head["start"](h)[..., 0] + forbidden
        h_start = h[torch.arange(B), start][:, None].expand(-1, L, -1)
        of_end = self.head["end"](F.gelu(self.head["end_hidden"](torch.cat([h_start, h], -1))))[..., 0] + forbidden
        mean = (torch.softmax(of_start, -1)[..., None] * h).sum(1)
        none = self.head["no_answer"](F.gelu(self.head["no_answer_hidden"](torch.cat([h[:, 0], mean], -1))))[:, 0]
        loss = (F.cross_entropy(of_start, start, reduction="sum") + F.cross_entropy(of_end, end, reduction="sum")) / 2
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(none, impossible.to(h.dtype), reduction="sum")
        best = torch.log_softmax(of_start, -1).topk(5).values
        return loss, B, {"start_log_p": best, "no_answer": none}

    def independent(self, h, forbidden, labels):
        of_start, of_end = (self.head["out"](h)[..., i] + forbidden for i in range(2))
        loss = (F.cross_entropy(of_start, labels[:, 0], reduction="sum") + F.cross_entropy(of_end, labels[:, 1], reduction="sum")) / 2
        return loss, len(h), {"start_logits": of_start, "end_logits": of_end}


def torch_values(config, params, head: str) -> dict[str, np.ndarray]:
    """Ours under the names of Reference's parameters."""
    tensors = names.torch_tensors(config, "discriminator", "encoder.", None)
    found = names.disassemble(tensors, names.flat(params))
    for name, leaf in params[head].items():
        found |= {f"head.{name}.weight": np.ascontiguousarray(leaf["kernel"].T), f"head.{name}.bias": np.asarray(leaf["bias"])}
    return found


def part(name: str) -> str:
    return re.match(r"encoder\.embeddings|encoder\.encoder|head", name).group()


def worst(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """By part of the model."""
    assert set(ours) == set(theirs)
    largest, errors = {}, {}
    for name, value in theirs.items():
        largest[part(name)] = max(largest.get(part(name), 0.0), np.abs(value).max())
    for name, value in theirs.items():
        error = np.abs(np.asarray(ours[name], np.float64) - np.asarray(value, np.float64)).max() / largest[part(name)]
        errors[part(name)] = max(errors.get(part(name), 0.0), float(error))
    return errors


# --- Ours


def make_config(dtype: str):
    return dataclasses.replace(
        PRESETS["small"],
        num_layers=2,
        vocab_size=len(VOCABULARY),
        max_length=LENGTH,
        dropout=0.0,
        attention_dropout=0.0,
        dtype=dtype,
        param_dtype=dtype,
    )


def random_params(goal, dtype: str, seed: int):
    """Every parameter away from its start: biases and LayerNorms too."""
    r, shapes = np.random.default_rng(seed), jax.eval_shape(goal.init, rng.root_key(0))
    centre = lambda path: 1.0 if path[-1].key == "scale" else 0.0  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: (centre(path) + r.normal(0, 0.05, x.shape)).astype(dtype), shapes)


class Case(NamedTuple):
    """Two batches of other lengths, with rows that are none among them, as both know them."""

    ours: list[objective.Labelled]
    theirs: list[list[Row]]
    places: list[list[int]]  # where theirs stand in ours


def make_case(kind: str) -> Case:
    examples = make_examples(kind)
    task = Task("own", "own", Layout("csv", kind, labels=LABELS, range=(LOW, HIGH), scheme="tokens"), {})
    made = finetune_rows.KINDS[kind].rows(task, examples, WordPiece(VOCABULARY), FinetuneConfig(), LENGTH, True)
    theirs = reference_rows(kind, examples)
    assert len(theirs) == len(made.tokens)
    by_length = sorted(range(len(theirs)), key=lambda number: len(theirs[number].tokens))
    batches = []
    for numbers, places in ((by_length[:5], [0, 1, 3, 4, 7]), (by_length[-6:], [1, 2, 4, 5, 6, 7])):
        chosen = np.full(BATCH, -1)
        chosen[places] = numbers
        length = -(-max(len(theirs[number].tokens) for number in numbers) // 8) * 8
        batches.append((finetune_rows.pad(made, kind, chosen, length, 0, np.arange(BATCH)), [theirs[i] for i in numbers], places))
    case = Case(*map(list, zip(*batches, strict=True)))
    assert case.ours[0].tokens.shape[1] < case.ours[1].tokens.shape[1] <= LENGTH
    return case


def make_goal(config, kind: str, head: str, sum_over_batch: bool = False):
    num_labels = {"number": 1, "answer": 2}.get(kind, len(LABELS))
    return objective.make(config, kind, head, num_labels, None, lambda outputs: {}, sum_over_batch=sum_over_batch)


def check(errors: dict[str, float], dtype: str, *told: Any) -> None:
    print(*told, dtype, *(f"{name} {error:.0e}," for name, error in errors.items()))
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE[dtype]} == {}


SLOW = pytest.mark.slow  # make finetune


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=SLOW)])
@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind, of_kind in HEADS.items() for head in of_kind])
def test_heads_losses_and_gradients(kind, head, dtype):
    with jax.enable_x64(dtype == "float64"):
        config, case = make_config(dtype), make_case(kind)
        goal = make_goal(config, kind, head)
        params = random_params(goal, dtype, seed=1)
        reference = Reference(config, params, head)

        def loss(params, batch, train):
            plan, weights = goal.plan(batch, rng.StepRng(rng.root_key(0), jnp.int32(3)), train)
            terms = goal.terms(params, batch, plan)
            return terms.losses["task"] / weights["task"], (weights["task"], terms.outputs)

        errors: dict[str, float] = {}
        for batch, rows, places in zip(*case, strict=True):
            (mean, (weight, _)), grads = jax.jit(jax.value_and_grad(lambda p, b: loss(p, b, True), has_aux=True))(params, batch)
            evaluated, (_, outputs) = jax.jit(lambda p, b: loss(p, b, False))(params, batch)
            reference.zero_grad()
            total, count, wanted = reference(kind, head, rows)
            (total / count).backward()
            theirs = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
            ours = torch_values(config, jax.tree.map(np.asarray, grads), head)
            found = {f"gradients of {name}": error for name, error in worst(ours, theirs).items()}
            found |= {"loss": abs(float(mean) / (total.item() / count) - 1), "count": abs(float(weight) - count)}
            found["loss of an evaluation"] = abs(float(evaluated) / (total.item() / count) - 1)
            for name, value in wanted.items():
                value = value.detach().numpy()
                value = np.where(value < -900, 0.0, value)  # the forbidden places say nothing
                mine = np.asarray(outputs[name])[places]
                mine = mine[:, : value.shape[1]] if value.ndim > 1 else mine
                if kind == "tags":  # ours has something to say of pieces that carry no tag
                    mine = np.where(value != 0.0, mine, 0.0)
                mine = np.where(mine < -900, 0.0, mine)
                found[name] = np.abs(mine - value).max() / np.abs(value).max()
            errors = {name: max(errors.get(name, 0.0), error) for name, error in found.items()}
        check(errors, dtype, kind, head)


# --- Whole steps

RATE, STEPS, WARMUP = 2.0**-10, 8, 4  # as float32 has them exactly


class Rules(NamedTuple):
    kind: str
    sum_over_batch: bool
    pooler_slot: bool
    bias_correction: bool
    product: bool
    weight_decay: float = 0.01
    decay: float = 0.8
    clip: float = 1.0


RULES = {
    "mended": Rules("class", False, False, True, False),
    "faithful": Rules("class", True, True, False, True),
    "tags, their sum": Rules("tags", True, False, False, False),
    "tags, their mean": Rules("tags", False, False, False, False, clip=1000.0),  # which no gradient here reaches
    "answers": Rules("answer", False, True, True, True),
}


class AdamW:
    """The published optimizer, and with bias correction Adam's."""

    def __init__(self, model: Reference, rules: Rules, num_layers: int):
        self.model, self.rules, self.num_layers = model, rules, num_layers
        self.mean = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        self.square = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def rate(self, name: str, step: int) -> float:
        """Depths as published: the embeddings at 0, layer i at i + 1, then a pooler, if it has a slot, and the task's head."""
        top = self.num_layers + (2 if self.rules.pooler_slot else 1)
        layer = re.search(r"\.layer\.(\d+)\.", name)
        depth = int(layer.group(1)) + 1 if layer else top if name.startswith("head.") else 0
        if self.rules.product:
            factor = min(1.0, step / WARMUP) * (1.0 - step / STEPS)
        else:
            factor = min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
        return RATE * factor * self.rules.decay ** (top - depth)

    @torch.no_grad()
    def step(self, step: int) -> float:
        """The norm of the gradients before they are clipped."""
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.model.named_parameters()}
        norm = math.sqrt(sum(float((grad**2).sum(dtype=torch.float64)) for grad in grads.values()))
        for name, p in self.model.named_parameters():
            grad = grads[name] / max(norm / self.rules.clip, 1.0)
            self.mean[name] = 0.9 * self.mean[name] + 0.1 * grad
            self.square[name] = 0.999 * self.square[name] + 0.001 * grad**2
            mean, square = self.mean[name], self.square[name]
            if self.rules.bias_correction:
                mean, square = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
            update = mean / (square.sqrt() + 1e-6)
            if "LayerNorm" not in name and not name.endswith(".bias"):
                update = update + self.rules.weight_decay * p
            p -= self.rate(name, step) * update
        return norm


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=SLOW)])
@pytest.mark.parametrize("name", [name if name in ("mended", "answers") else pytest.param(name, marks=SLOW) for name in RULES])
def test_whole_steps(name, dtype):
    """Three of them, over both lengths of rows."""
    rules = RULES[name]
    head = HEADS[rules.kind][0]
    with jax.enable_x64(dtype == "float64"):
        config, case = make_config(dtype), make_case(rules.kind)
        finetune = FinetuneConfig(layer_decay=rules.decay, pooler_slot=rules.pooler_slot)
        plain = OptimizerConfig(
            learning_rate=RATE, weight_decay=rules.weight_decay, bias_correction=rules.bias_correction, clip_norm=rules.clip
        )
        recipe = FinetuneRecipe(
            model=config,
            optimizer=rates.by_layer(plain, finetune, "discriminator", config.num_layers),
            schedule=ScheduleConfig(warmup_steps=WARMUP, product=rules.product),
            train=TrainConfig(steps=STEPS, batch_rows=BATCH),
        )
        goal = make_goal(config, rules.kind, head, rules.sum_over_batch)
        parts = build(recipe, Devices.of(recipe, jax.devices()[:1]), goal)
        params = random_params(goal, dtype, seed=2)
        reference = Reference(config, params, head)
        theirs = AdamW(reference, rules, config.num_layers)
        before = torch_values(config, params, head)
        state, programs = parts.init(parts.root).replace(params=jax.tree.map(jnp.asarray, params)), parts.programs()
        errors: dict[str, float] = {}
        norms = []
        for step, which in enumerate((0, 1, 0)):
            program = programs.of(case.ours[which])
            state, metrics = program.run(state, program.place(case.ours[which]))
            reference.zero_grad()
            loss, count, _ = reference(rules.kind, head, case.theirs[which])
            loss = loss if rules.sum_over_batch else loss / count
            loss.backward()
            norms.append(theirs.step(step))
            told = {"loss": loss.item(), "grad_norm": norms[-1]}  # metrics are float32 whatever the model is
            for metric, value in told.items():
                assert float(metrics[metric]) == pytest.approx(value, rel=2e-5), metric
            ours = torch_values(config, jax.tree.map(np.asarray, state.params), head)
            now = {key: p.detach().numpy().copy() for key, p in reference.named_parameters()}
            found = {f"parameters of {key}": error for key, error in worst(ours, now).items()}
            if step or not rules.product:  # whose first step has a rate of 0
                moved = worst({key: ours[key] - before[key] for key in ours}, {key: now[key] - before[key] for key in now})
                if dtype == "float64":
                    found |= {f"steps of {key}": error for key, error in moved.items()}
                else:
                    print(name, step, *(f"float32 steps of {key} {error:.0e}," for key, error in moved.items()))
            errors = {key: max(errors.get(key, 0.0), error) for key, error in found.items()}
        assert min(norms) > 1.0 == rules.clip or max(norms) < rules.clip  # the clip does something, or nothing
        check(errors, dtype, name, "norms", *(f"{norm:.2f}" for norm in norms))
