"""The whole combined step against PyTorch transformers on shared random weights: `make parity`.

transformers computes every document alone in a padded row; ours packs them. Errors are relative to the largest value of their
kind: of the tensor for activations, of the network for gradients (a key's bias has gradient 0 in exact arithmetic).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the extra [parity]: make parity")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra [parity]: make parity")

from benchmarks import peers  # noqa: E402
from electra_jax import rng  # noqa: E402
from electra_jax.models import electra as models  # noqa: E402
from electra_jax.models.config import PRESETS  # noqa: E402
from electra_jax.objectives import electra, masking  # noqa: E402
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig  # noqa: E402
from electra_jax.types import Batch, Vocabulary  # noqa: E402

pytestmark = pytest.mark.parity
CLS, SEP, MASK = 101, 102, 103
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


def documents(vocab_size, seed=0):
    """Six documents of 5 to 30 tokens, [CLS] and [SEP] included, with the paper's two segments in half of them."""
    r = np.random.default_rng(seed)
    out = []
    for i, n in enumerate((30, 21, 27, 5, 17, 12)):
        tokens = r.integers(999, vocab_size, n)
        tokens[0], tokens[-1] = CLS, SEP
        types = np.zeros(n, int)
        if i % 2 == 0:
            tokens[n // 2] = SEP
            types[n // 2 + 1 :] = 1
        out.append((tokens, types))
    return out


def rows(docs, packed):
    """([B, 32] or [B, 64] batch, [(row, start)] of each document)."""
    groups = [[0, 1], [2, 3, 4], [5]] if packed else [[i] for i in range(len(docs))]
    L = 64 if packed else 32
    fields = {name: np.zeros((len(groups), L), np.int32) for name in ("tokens", "segments", "positions", "types")}
    places = {}
    for b, group in enumerate(groups):
        at = 0
        for number, i in enumerate(group, start=1):
            tokens, types = docs[i]
            n = len(tokens)
            fields["tokens"][b, at : at + n], fields["types"][b, at : at + n] = tokens, types
            fields["segments"][b, at : at + n], fields["positions"][b, at : at + n] = number, np.arange(n)
            places[i] = (b, at)
            at += n
    return Batch(**fields, row=np.arange(len(groups), dtype=np.int32)), [places[i] for i in range(len(docs))]


def hf_config(config, encoder, **more):
    return peers.config_of(config, encoder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **more)


def encoder_names(encoder, ours, theirs):
    """our path (with a layer number where stacked) -> (transformers name, transposed)"""
    names = {}
    if encoder.projects:
        names[(f"{ours}/project/kernel", None)] = (f"{theirs}.embeddings_project.weight", True)
        names[(f"{ours}/project/bias", None)] = (f"{theirs}.embeddings_project.bias", False)
    parts = {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/output": "attention.output.dense",
        "ffn/intermediate": "intermediate.dense",
        "ffn/output": "output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "ffn_norm": "output.LayerNorm",
    }
    for i in range(encoder.num_layers):
        for a, b in parts.items():
            norm = a.endswith("norm")
            names[(f"{ours}/layers/{a}/{'scale' if norm else 'kernel'}", i)] = (f"{theirs}.encoder.layer.{i}.{b}.weight", not norm)
            names[(f"{ours}/layers/{a}/bias", i)] = (f"{theirs}.encoder.layer.{i}.{b}.bias", False)
    return names


def dense_names(ours, theirs, norm=False):
    weight = (f"{ours}/{'scale' if norm else 'kernel'}", None)
    return {weight: (f"{theirs}.weight", not norm), (f"{ours}/bias", None): (f"{theirs}.bias", False)}


EMBEDDINGS = {
    ("embeddings/word", None): ("electra.embeddings.word_embeddings.weight", False),
    ("embeddings/position", None): ("electra.embeddings.position_embeddings.weight", False),
    ("embeddings/type", None): ("electra.embeddings.token_type_embeddings.weight", False),
    **dense_names("embeddings/norm", "electra.embeddings.LayerNorm", norm=True),
}


def all_names(config):
    generator = {
        **encoder_names(config.generator, "generator", "electra"),
        **dense_names("generator/head/dense", "generator_predictions.dense"),
        **dense_names("generator/head/norm", "generator_predictions.LayerNorm", norm=True),
        ("generator/head/bias", None): ("generator_lm_head.bias", False),
    }
    discriminator = {
        **encoder_names(config.discriminator, "discriminator", "electra"),
        **dense_names("discriminator/head/dense", "discriminator_predictions.dense"),
        **dense_names("discriminator/head/out", "discriminator_predictions.dense_prediction"),
    }
    return generator, discriminator


def flatten(tree):
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def pick(flat, key):
    path, layer = key
    return flat[path] if layer is None else flat[path][layer]


def load(model, params, names):
    """Copies ours into a transformers model; every one of its parameters must be named."""
    state = dict(model.named_parameters())
    unnamed = set(state) - {theirs for theirs, _ in names.values()} - {"generator_lm_head.weight"}
    assert not unnamed
    with torch.no_grad():
        for key, (theirs, transposed) in names.items():
            value = pick(params, key)
            state[theirs].copy_(torch.from_numpy(np.ascontiguousarray(value.T if transposed else value)))


def torch_models(config, params, dtype):
    generator_names, discriminator_names = all_names(config)
    generator = transformers.ElectraForMaskedLM(hf_config(config, config.generator)).to(getattr(torch, dtype))
    discriminator = transformers.ElectraForPreTraining(hf_config(config, config.discriminator)).to(getattr(torch, dtype))
    load(generator, params, {**EMBEDDINGS, **generator_names})
    load(discriminator, params, {**EMBEDDINGS, **discriminator_names})
    discriminator.electra.embeddings = generator.electra.embeddings  # all embeddings are shared
    assert generator.generator_lm_head.weight is generator.electra.embeddings.word_embeddings.weight
    return generator.eval(), discriminator.eval()


def worst(ours, theirs, scale=None):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.abs(ours - theirs).max() / (np.abs(theirs).max() if scale is None else scale)


def random_params(config, seed):
    """Every parameter away from its start: biases and LayerNorms too."""
    shapes = jax.eval_shape(lambda key: models.init_params(key, config), rng.root_key(0))
    r = np.random.default_rng(seed)
    centre = lambda path: 1.0 if path[-1].key == "scale" else 0.0  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: (centre(path) + r.normal(0, 0.05, x.shape)).astype(config.param_dtype), shapes)


@pytest.mark.parametrize("preset", ["small", "base"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_combined_step(preset, packed, dtype):
    with jax.enable_x64(dtype == "float64"):
        config = dataclasses.replace(PRESETS[preset], dropout=0.0, attention_dropout=0.0, dtype=dtype, param_dtype=dtype)
        docs = documents(config.vocab_size)
        batch, places = rows(docs, packed)
        params = random_params(config, seed=1)
        vocabulary = Vocabulary(CLS, SEP, MASK, np.ones(config.vocab_size, bool))
        goal = electra.make(config, MaskingConfig(), ObjectiveConfig(), vocabulary, slots_multiple=8)
        plan, weights = jax.jit(lambda b: goal.plan(b, rng.StepRng(rng.root_key(0), jnp.int32(3)), True))(batch)

        def loss(params):
            terms = goal.terms(params, batch, plan)
            means = {name: terms.losses[name] / weights[name] for name in terms.losses}
            return sum(goal.scales(0)[name] * means[name] for name in means), (means, terms.outputs)

        (total, (means, outputs)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        masked = jax.tree.map(np.asarray, masking.mask(batch, plan.generator.slots, vocabulary))
        corrupted = batch.replace(tokens=np.asarray(outputs["tokens"]))
        slots = np.asarray(plan.generator.slots.positions)
        hidden = {
            name: np.asarray(jax.jit(lambda p, n=name, b=b: models.hidden_states(p, config, b, network=n))(params))
            for name, b in (("generator", masked), ("discriminator", corrupted))
        }
        mlm_logits = np.asarray(jax.jit(lambda p: models.generator_apply(p, config, masked, slots))(params))
        rtd_logits = np.asarray(outputs["logits"])

        flat_params = flatten(params)
        generator, discriminator = torch_models(config, flat_params, dtype)
        longest = max(len(tokens) for tokens, _ in docs)

        def padded(batch):
            out = np.zeros((3, len(docs), longest), np.int64)
            for i, (b, at) in enumerate(places):
                n = len(docs[i][0])
                out[0, i, :n], out[1, i, :n], out[2, i, :n] = batch.tokens[b, at : at + n], batch.types[b, at : at + n], 1
            tokens, types, mask = map(torch.from_numpy, out)
            return dict(input_ids=tokens, token_type_ids=types, attention_mask=mask, output_hidden_states=True)

        theirs_g, theirs_d = generator(**padded(masked)), discriminator(**padded(corrupted))
        # Where a slot stands in transformers' rows.
        document_of = {(b, at + j): (i, j) for i, (b, at) in enumerate(places) for j in range(len(docs[i][0]))}
        used = [(b, k) for b in range(len(slots)) for k in range(slots.shape[1]) if plan.generator.slots.weights[b, k] > 0]
        at_slots = [document_of[(b, int(slots[b, k]))] for b, k in used]
        index = tuple(torch.tensor(x) for x in zip(*at_slots, strict=True))
        targets = torch.tensor([int(batch.tokens[b, slots[b, k]]) for b, k in used])
        mlm_loss = torch.nn.functional.cross_entropy(theirs_g.logits[index], targets)
        labels = torch.zeros(len(docs), longest)
        real = torch.zeros(len(docs), longest, dtype=torch.bool)
        for i, (b, at) in enumerate(places):
            n = len(docs[i][0])
            labels[i, :n] = torch.from_numpy(np.asarray(corrupted.tokens[b, at : at + n] != batch.tokens[b, at : at + n], np.float32))
            real[i, :n] = True
        assert labels.sum() > 5
        rtd_loss = torch.nn.functional.binary_cross_entropy_with_logits(theirs_d.logits[real], labels[real].to(theirs_d.logits.dtype))
        theirs_total = mlm_loss + 50 * rtd_loss
        theirs_total.backward()

        errors = {
            "mlm_loss": abs(float(means["mlm"]) / float(mlm_loss) - 1),
            "rtd_loss": abs(float(means["rtd"]) / float(rtd_loss) - 1),
            "loss": abs(float(total) / float(theirs_total) - 1),
            "mlm_logits": worst([mlm_logits[b, k] for b, k in used], theirs_g.logits[index].detach()),
        }
        for name, out in (("generator", theirs_g), ("discriminator", theirs_d)):
            theirs = out.hidden_states[-1].detach().numpy()
            ours = [hidden[name][b, at : at + len(docs[i][0])] for i, (b, at) in enumerate(places)]
            errors[f"{name} hidden"] = worst(np.concatenate(ours), np.concatenate([theirs[i, : len(x)] for i, x in enumerate(ours)]))
        ours = np.concatenate([rtd_logits[b, at : at + len(docs[i][0])] for i, (b, at) in enumerate(places)])
        errors["rtd_logits"] = worst(ours, theirs_d.logits.detach()[real])

        flat_grads = flatten(grads)
        generator_names, discriminator_names = all_names(config)
        compared = set()
        for network, model, names in (
            ("embeddings", generator, EMBEDDINGS),
            ("generator", generator, generator_names),
            ("discriminator", discriminator, discriminator_names),
        ):
            theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
            largest = max(np.abs(theirs[name]).max() for name, _ in names.values())
            for key, (name, transposed) in names.items():
                value = pick(flat_grads, key)
                error = worst(value.T if transposed else value, theirs[name], largest)
                errors[f"{network} gradients"] = max(errors.get(f"{network} gradients", 0.0), error)
                compared.add(key[0])
        assert compared == set(flat_grads)  # every parameter
        print(preset, "packed" if packed else "padded", dtype, *(f"{name} {error:.0e}," for name, error in errors.items()))
        assert {name: error for name, error in errors.items() if not error <= TOLERANCE[dtype]} == {}


def test_rotary_is_roformer():
    """arXiv 2104.09864 as transformers has it: its neighbouring pairs are our halves, by one permutation of query and key rows."""
    with jax.enable_x64(True):
        config = dataclasses.replace(
            PRESETS["small"],
            num_layers=2,
            vocab_size=1200,
            positions="rotary",
            dropout=0.0,
            attention_dropout=0.0,
            dtype="float64",
            param_dtype="float64",
        )
        docs = documents(config.vocab_size)
        batch, places = rows(docs, packed=True)
        params = random_params(config, seed=2)
        ours = np.asarray(jax.jit(lambda p: models.hidden_states(p, config, batch))(params))
        encoder = config.discriminator
        half = encoder.head_size // 2
        order = np.stack([np.arange(half), np.arange(half) + half], 1).ravel()
        rows_of = np.concatenate([head * encoder.head_size + order for head in range(encoder.num_heads)])
        flat_params = flatten(params)
        for name in ("query", "key"):
            for leaf in ("kernel", "bias"):
                path = f"discriminator/layers/attention/{name}/{leaf}"
                flat_params[path] = flat_params[path][..., rows_of]
        model = (
            transformers.RoFormerModel(
                transformers.RoFormerConfig(
                    vocab_size=config.vocab_size,
                    embedding_size=128,
                    hidden_size=256,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=1024,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                    layer_norm_eps=1e-12,
                    max_position_embeddings=64,
                    rotary_value=False,
                )
            )
            .double()
            .eval()
        )
        names = {
            key: (name.removeprefix("electra."), t)
            for key, (name, t) in {
                **{k: v for k, v in EMBEDDINGS.items() if k[0] != "embeddings/position"},
                **encoder_names(encoder, "discriminator", "electra"),
            }.items()
        }
        positions = {k for k, _ in model.named_parameters() if "embed_positions" in k}
        load_named = {theirs for theirs, _ in names.values()}
        assert {k for k, _ in model.named_parameters()} - positions == load_named
        state = dict(model.named_parameters())
        with torch.no_grad():
            for key, (theirs, transposed) in names.items():
                value = pick(flat_params, key)
                state[theirs].copy_(torch.from_numpy(np.ascontiguousarray(value.T if transposed else value)))
        for i, (b, at) in enumerate(places):
            tokens, types = docs[i]
            out = model(input_ids=torch.tensor(tokens)[None], token_type_ids=torch.tensor(types)[None]).last_hidden_state
            # RoFormer keeps its sinusoids in float32.
            assert worst(ours[b, at : at + len(tokens)], out[0].detach()) < 1e-5
