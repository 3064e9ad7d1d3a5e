"""Model shapes: the networks, and the rules that size them. Plain Python, no jax; what they cost: costs.py.

Sizes: google-research/electra `util/training_utils.py:get_bert_config` and `configure_pretraining.py`; the generator's rule:
`run_pretraining.py:get_generator_config`; which run used what: the paper (arXiv 2003.10555), tables 6 and 7.
"""

import dataclasses
from collections.abc import Mapping

from electra_jax.cli import UserError
from electra_jax.models.attention import PATHS
from electra_jax.models.backbones import BACKBONES
from electra_jax.options import from_zero_up, one_of, option

POSITIONS = ("learned", "sinusoidal_init", "rotary")
REMAT = ("none", "dots", "full")
SHARING = ("shared", "none", "all", "gdes")
DTYPES = ("auto", "float32", "bfloat16", "float64")
PARAM_DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """One network over embeddings of width `embedding_size`: what ElectraConfig makes of its own fields for it."""

    backbone: str
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    embedding_size: int
    positions: str
    dropout: float
    attention_dropout: float
    init_std: float
    layer_norm_eps: float
    dtype: str
    param_dtype: str
    scan_layers: bool
    remat: str
    attention: str

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def projects(self) -> bool:
        """Embeddings of another width than the network pass through a dense layer first (no activation)."""
        return self.embedding_size != self.hidden_size


@dataclasses.dataclass(frozen=True)
class ElectraConfig:
    """A model: embeddings and the networks that share them. The defaults are the published Small.

    Raises UserError where the fields contradict each other.
    """

    backbone: str = option("transformer", f"the layers between embeddings and head: {', '.join(BACKBONES)}")
    vocab_size: int = option(30522, "rows of the table of word embeddings; as the tokenizer of the data")
    max_length: int = option(512, "rows of the position table, tokens; rotary positions have none: it is then at least data.length")
    type_vocab_size: int = option(2, "rows of the table of segment types, at least 2")
    embedding_size: int = option(128, "width of the embeddings, which all networks share")
    hidden_size: int = option(256, "width of the network")
    num_layers: int = option(12, "layers of the network")
    head_size: int = option(64, "width of one attention head, of every network")
    ffn_size: int = option(0, "width of the feed-forward layers; 0 = four times hidden_size")
    generator_hidden_fraction: float = option(0.25, "the generator's width, in parts of hidden_size")
    generator_layers_fraction: float = option(1.0, "the generator's layers, in parts of num_layers; as published it is narrow, not shallow")
    generator_ffn_size: int = option(0, "width of the generator's feed-forward layers; 0 = four times its width")
    sharing: str = option("shared", f"of embeddings among the networks, {', '.join(SHARING)} (all weights; differences, as DeBERTaV3)")
    positions: str = option("learned", f"{', '.join(POSITIONS)} (learned, and sinusoids at the start)")
    dropout: float = option(0.1, "rate of dropout on embeddings and on what a layer adds, from 0 to below 1")
    attention_dropout: float = option(0.1, "rate of dropout on attention weights; above 0 it means attention=xla")
    init_std: float = option(0.02, "standard deviation of the initial weights, before they are cut at two of it")
    layer_norm_eps: float = option(1e-12, "added to the variance in LayerNorm")
    dtype: str = option("float32", f"of matrix products, {', '.join(DTYPES)}; sums, norms and losses are at least float32")
    param_dtype: str = option("float32", f"of parameters and the optimizer's state: {', '.join(PARAM_DTYPES)}")
    scan_layers: bool = option(False, "layers as one loop: compiles sooner, runs a little slower")
    remat: str = option("none", f"what the backward pass computes again, {', '.join(REMAT)}: less memory, more time")
    attention: str = option("auto", f"auto, {', '.join(PATHS)}; auto: a fused kernel from 256 tokens on where one can run, else xla")

    def __post_init__(self):
        one_of("model.backbone", self.backbone, BACKBONES)
        one_of("model.positions", self.positions, POSITIONS)
        one_of("model.sharing", self.sharing, SHARING)
        one_of("model.remat", self.remat, REMAT)
        one_of("model.attention", self.attention, ("auto", *PATHS))
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.param_dtype", self.param_dtype, PARAM_DTYPES)
        if self.type_vocab_size < 2:
            raise UserError(f"model.type_vocab_size is {self.type_vocab_size}: rows have two types of segment")
        for name in ("vocab_size", "max_length", "embedding_size", "hidden_size", "num_layers", "head_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("ffn_size", "generator_ffn_size"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1, or 0 for four times the network's width")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be from 0 to below 1")
        from_zero_up(self, "model", "init_std", "layer_norm_eps", "generator_hidden_fraction", "generator_layers_fraction")
        self.encoder("discriminator")

    def encoder(self, network: str) -> EncoderConfig:
        """The network of this name: one whose name begins with "generator" is sized by the generator's rule, and every other has the
        model's own sizes.

        UserError where these make no network. Not before: an objective may have no generator.
        """
        hidden_size, num_layers, ffn_size = self.hidden_size, self.num_layers, self.ffn_size
        if network.startswith("generator"):
            hidden_size = round(self.hidden_size * self.generator_hidden_fraction)
            num_layers = round(self.num_layers * self.generator_layers_fraction)
            ffn_size = self.generator_ffn_size
        num_heads = max(1, hidden_size // self.head_size)
        if not (0 < hidden_size < 2**31 and 0 < num_layers < 2**31):
            raise UserError(f"the {network} has {num_layers} layers of width {hidden_size}: choose another model.generator_*_fraction")
        if network == "generator" and self.sharing == "all" and (hidden_size, num_layers) != (self.hidden_size, self.num_layers):
            raise UserError(
                f"model.sharing=all needs a generator as large as the discriminator; it has {num_layers} layers of width {hidden_size}: "
                "--config.model.generator_hidden_fraction=1.0 --config.model.generator_layers_fraction=1.0"
            )
        if hidden_size % num_heads:
            raise UserError(
                f"the {network} is {hidden_size} wide, which {num_heads} heads do not divide: "
                "choose a width that is a multiple of model.head_size"
            )
        if self.positions == "rotary" and (hidden_size // num_heads) % 2:
            raise UserError(f"the {network}'s heads are {hidden_size // num_heads} wide: rotary positions need an even width")
        sizes = dict(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_size=ffn_size or 4 * hidden_size,
        )
        shared = [field.name for field in dataclasses.fields(EncoderConfig) if field.name not in sizes]
        return EncoderConfig(**sizes, **{name: getattr(self, name) for name in shared})

    @property
    def discriminator(self) -> EncoderConfig:
        return self.encoder("discriminator")

    @property
    def generator(self) -> EncoderConfig:
        return self.encoder("generator")


PRESETS: Mapping[str, ElectraConfig] = {
    # Ours, not published: what learns within minutes (positions found from the first step).
    "tiny": ElectraConfig(
        vocab_size=4096,
        max_length=64,
        embedding_size=128,
        hidden_size=128,
        num_layers=2,
        head_size=32,
        generator_hidden_fraction=0.5,
        positions="rotary",
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "small": ElectraConfig(),
    # The released 'electra_small': the generator is as wide as the discriminator (google-research/electra#39).
    "small_pp": ElectraConfig(generator_hidden_fraction=1.0),
    "base": ElectraConfig(embedding_size=768, hidden_size=768, generator_hidden_fraction=0.33333),
    "base_pp": ElectraConfig(embedding_size=768, hidden_size=768, generator_hidden_fraction=0.33333),
    "large": ElectraConfig(embedding_size=1024, hidden_size=1024, num_layers=24),
}
