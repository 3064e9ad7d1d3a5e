"""What a model costs: its parameters, and the floating-point operations of a training step."""

from electra_jax.models.backbones import backbone
from electra_jax.models.config import ElectraConfig
from electra_jax.models.electra import NETWORKS, Networks


def num_params(config: ElectraConfig, networks: Networks = NETWORKS) -> dict[str, int]:
    """Parameters by part: "embeddings", each network, and "mlm_head" or "rtd_head" by the heads that the networks have.

    ELECTRA's "discriminator" with "embeddings" is what the literature counts as the model.
    """
    e, positions = config.embedding_size, 0 if config.positions == "rotary" else config.max_length
    two = len(networks) > 1 and config.sharing in ("none", "gdes")
    counts = {"embeddings": (config.vocab_size + positions + config.type_vocab_size + 2) * e * (1 + two)}
    for name, of_network in networks.items():
        encoder = config.encoder(name)
        h = encoder.hidden_size
        shared = name == "generator" and len(networks) > 1 and config.sharing == "all"
        counts[name] = 0 if shared else backbone(config.backbone).num_params(encoder)
        for head in of_network.values():
            tied = (h * e + e) * encoder.projects
            of_head = {"mlm": h * e + 3 * e + config.vocab_size, "tied": tied + config.vocab_size, "rtd": h * (h + 1) + h + 1}[head]
            counts[f"{head}_head"] = counts.get(f"{head}_head", 0) + of_head
    return counts


def forward_flops(config: ElectraConfig, network: str, length: int) -> float:
    """Of matrix products, forward, for one row of `length` tokens through the network, without its head."""
    return backbone(config.backbone).flops(config.encoder(network), length)


def head_flops(config: ElectraConfig, network: str, head: str, num_tokens: int, width: int | None = None) -> float:
    """The same of the network's head, one of heads.PRETRAINING, at so many tokens. width: of what it is given, if not the network's own."""
    encoder = config.encoder(network)
    h, e, v = width or encoder.hidden_size, config.embedding_size, config.vocab_size
    return float(2 * num_tokens * {"mlm": e * (h + v), "tied": e * (h * encoder.projects + v), "rtd": h * h + h}[head])


def train_flops_by_part(config: ElectraConfig, length: int, num_slots: int) -> dict[str, float]:
    """Floating-point operations of one of ELECTRA's training steps for one row, by part: 3 x forward, matrix products alone.

    "vocabulary" is the MLM head, counted at the `num_slots` masked places, as it is computed; the look-ups and sampling are not.
    """
    discriminator = forward_flops(config, "discriminator", length) + head_flops(config, "discriminator", "rtd", length)
    return {
        "generator": 3.0 * forward_flops(config, "generator", length),
        "vocabulary": 3.0 * head_flops(config, "generator", "mlm", num_slots),
        "discriminator": 3.0 * discriminator,
    }


def train_flops(config: ElectraConfig, length: int, num_slots: int) -> float:
    """The sum over the parts."""
    return sum(train_flops_by_part(config, length, num_slots).values())
