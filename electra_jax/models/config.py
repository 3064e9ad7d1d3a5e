"""Model shapes: the two networks, the rules that size them, and what they cost. Plain Python, no jax.

Sizes: google-research/electra `util/training_utils.py:get_bert_config` and `configure_pretraining.py`; the generator's rule:
`run_pretraining.py:get_generator_config`; which run used what: the paper (arXiv 2003.10555), tables 6 and 7.
"""

import dataclasses
import difflib
from collections.abc import Mapping

from electra_jax.cli import UserError

POSITIONS = ("learned", "sinusoidal_init", "rotary")
REMAT = ("none", "dots", "full")
ATTENTION = ("auto", "xla", "rows", "splash", "cudnn")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}{hint}")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """One network: a stack of post-LayerNorm transformer layers over embeddings of width `embedding_size`."""

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

    def num_params(self) -> int:
        """Parameters of the network without embeddings and heads."""
        h, f = self.hidden_size, self.ffn_size
        layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
        return self.num_layers * layer + (self.embedding_size * h + h if self.projects else 0)

    def forward_flops(self, length: int) -> float:
        """Floating-point operations of matrix products, forward, for one row of `length` tokens."""
        h, f = self.hidden_size, self.ffn_size
        layer = 2 * length * (4 * h * h + 2 * h * f) + 4 * length * length * h
        return float(self.num_layers * layer + (2 * length * self.embedding_size * h if self.projects else 0))


@dataclasses.dataclass(frozen=True)
class ElectraConfig:
    """Both networks. The defaults are the published Small; `generator` and `discriminator` are what the rules make of them.

    Raises UserError where the fields contradict each other.
    """

    vocab_size: int = 30522
    max_length: int = 512  # rows of the position table
    type_vocab_size: int = 2
    embedding_size: int = 128
    hidden_size: int = 256
    num_layers: int = 12
    head_size: int = 64
    ffn_factor: int = 4
    generator_hidden_fraction: float = 0.25
    generator_layers_fraction: float = 1.0  # full depth: the generator is narrow, not shallow
    positions: str = "learned"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    layer_norm_eps: float = 1e-12
    dtype: str = "float32"  # of matrix products; sums, norms and losses are at least float32
    param_dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "auto"  # see models.attention.choose

    def __post_init__(self):
        one_of("model.positions", self.positions, POSITIONS)
        one_of("model.remat", self.remat, REMAT)
        one_of("model.attention", self.attention, ATTENTION)
        one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float64"))
        one_of("model.param_dtype", self.param_dtype, ("float32", "float64"))
        if self.type_vocab_size < 2:
            raise UserError(f"model.type_vocab_size is {self.type_vocab_size}: rows have two types of segment")
        for name in ("vocab_size", "max_length", "embedding_size", "hidden_size", "num_layers", "head_size", "ffn_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be from 0 to below 1")
        for network in ("discriminator", "generator"):
            encoder = getattr(self, network)
            if encoder.hidden_size < 1 or encoder.num_layers < 1:
                raise UserError(f"the {network} has no width or no layers: raise model.generator_*_fraction")
            if encoder.hidden_size % encoder.num_heads:
                raise UserError(
                    f"the {network} is {encoder.hidden_size} wide, which {encoder.num_heads} heads do not divide: "
                    "choose a width that is a multiple of model.head_size"
                )
            if self.positions == "rotary" and encoder.head_size % 2:
                raise UserError(f"the {network}'s heads are {encoder.head_size} wide: rotary positions need an even width")

    def _encoder(self, hidden_size: int, num_layers: int) -> EncoderConfig:
        same = {f.name for f in dataclasses.fields(EncoderConfig)} & {f.name for f in dataclasses.fields(self)}
        same -= {"hidden_size", "num_layers"}
        return EncoderConfig(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=max(1, hidden_size // self.head_size),
            ffn_size=self.ffn_factor * hidden_size,
            **{name: getattr(self, name) for name in sorted(same) if name != "head_size"},
        )

    @property
    def discriminator(self) -> EncoderConfig:
        return self._encoder(self.hidden_size, self.num_layers)

    @property
    def generator(self) -> EncoderConfig:
        return self._encoder(
            round(self.hidden_size * self.generator_hidden_fraction),
            round(self.num_layers * self.generator_layers_fraction),
        )

    def num_params(self) -> Mapping[str, int]:
        """Parameters by part. 'discriminator' with 'embeddings' is what the literature counts as the model."""
        e, positions = self.embedding_size, 0 if self.positions == "rotary" else self.max_length
        generator, discriminator = self.generator, self.discriminator
        return {
            "embeddings": (self.vocab_size + positions + self.type_vocab_size + 2) * e,
            "discriminator": discriminator.num_params(),
            "rtd_head": discriminator.hidden_size * (discriminator.hidden_size + 1) + discriminator.hidden_size + 1,
            "generator": generator.num_params(),
            "mlm_head": generator.hidden_size * e + 3 * e + self.vocab_size,
        }

    def train_flops_by_part(self, length: int, num_slots: int) -> Mapping[str, float]:
        """Floating-point operations of one training step for one row, by part: 3 x forward, matrix products alone.

        "vocabulary" is the MLM head, counted at the `num_slots` masked places, as it is computed; the look-ups and sampling are not.
        """
        h, g = self.discriminator.hidden_size, self.generator.hidden_size
        rtd_head = 2 * length * (h * h + h)
        return {
            "generator": 3.0 * self.generator.forward_flops(length),
            "vocabulary": 3.0 * 2 * num_slots * self.embedding_size * (g + self.vocab_size),
            "discriminator": 3.0 * (self.discriminator.forward_flops(length) + rtd_head),
        }

    def train_flops(self, length: int, num_slots: int) -> float:
        """The sum over the parts."""
        return sum(self.train_flops_by_part(length, num_slots).values())


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


def parse_arg(arg: str | None, *, default: str, flags: tuple[str, ...]) -> tuple[str, frozenset[str]]:
    """Splits a config file's argument, `small` or `base,flash`, into a preset and its variants.

    Raises UserError for a word that is neither, naming the nearest.
    """
    words = [word for word in (arg or default).split(",") if word]
    preset = words[0] if words else default
    one_of("the config's first word", preset, tuple(PRESETS))
    for word in words[1:]:
        one_of("the config's variant", word, flags)
    return preset, frozenset(words[1:])
