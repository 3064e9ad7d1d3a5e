"""The losses once more, written from their equations for rows of one document, without anything that makes them fast: every token is
projected onto the whole vocabulary, and gradients are jax's own. Dropout is off."""

import math

import jax
import jax.numpy as jnp


def gelu(x):
    return x * 0.5 * (1 + jax.scipy.special.erf(x / math.sqrt(2)))


def norm(x, p):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def hidden(embeddings, network, tokens, real, head_size, direction=0):
    """[B, L, H] of post-LayerNorm layers (arXiv 1810.04805). real: [B, L] bool. direction: 1 hides what comes after a token, -1 what stands
    before it."""
    B, L = tokens.shape
    x = embeddings["word"][tokens] + embeddings["position"][None, :L] + embeddings["type"][0]
    x = norm(x, embeddings["norm"])
    if "project" in network:
        x = dense(x, network["project"])
    place = jnp.arange(L)
    seen = real[:, None, :] & (jnp.asarray(direction).reshape(-1, 1, 1) * (place[:, None] - place[None]) >= 0)
    layers = network["layers"]
    for i in range(layers["ffn"]["output"]["bias"].shape[0]):
        p = jax.tree.map(lambda a, i=i: a[i], layers)
        q, k, v = (dense(x, p["attention"][name]) for name in ("query", "key", "value"))
        heads = []
        for h in range(0, x.shape[-1], head_size):
            part = slice(h, h + head_size)
            scores = q[..., part] @ jnp.swapaxes(k[..., part], 1, 2) / math.sqrt(head_size)
            heads.append(jax.nn.softmax(jnp.where(seen, scores, -1e30)) @ v[..., part])
        x = norm(x + dense(jnp.concatenate(heads, -1), p["attention"]["output"]), p["attention_norm"])
        x = norm(x + dense(gelu(dense(x, p["ffn"]["intermediate"])), p["ffn"]["output"]), p["ffn_norm"])
    return x


def words(x, head, embeddings):
    """Logits over the vocabulary: dense, GELU, LayerNorm, the transposed table of words and a bias."""
    return norm(gelu(dense(x, head["dense"])), head["norm"]) @ embeddings["word"].T + head["bias"]


def tied(x, head, embeddings):
    """The same without a transform; projected to the width of the words."""
    return dense(x, head["project"]) @ embeddings["word"].T + head["bias"]


def binary(x, head):
    """Logits that a token was replaced."""
    return dense(gelu(dense(x, head["dense"])), head["out"])[..., 0]


def log_p(logits, tokens):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
