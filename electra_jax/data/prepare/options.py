"""What decides the rows of a preparation, and where they go; launch/prepare.py makes it from its flags."""

from dataclasses import dataclass

from electra_jax.cli import UserError
from electra_jax.data.prepare.packing import PACKERS
from electra_jax.data.readers.corpus import MAX_DOCUMENT_BYTES


@dataclass(frozen=True)
class PrepareOptions:
    """All that decides the rows; `launch/prepare.py --help` says what each means."""

    inputs: tuple[str, ...]
    output: str
    tokenizer: str = "wordpiece"  # a path, or one of tokenizers.trained_names()
    vocab_size: int | None = None  # of a vocabulary to train; None: by the amount of text, see vocabulary.py
    lower_case: bool | None = None  # None: what the tokenizer says; trained: WordPiece True, SentencePiece False
    strip_accents: bool | None = None  # None: as lower_case
    length: int = 128
    packing: str = "dense"  # one of PACKERS
    heldout: float | None = None  # the share of documents that is held out; None: by the amount of text, see split.py
    documents: str = "auto"
    text_field: str = "text"
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    seed: int = 0
    buckets: int = 0
    parts: int = 0

    def check(self) -> None:
        """UserError for a value that cannot be."""
        if self.packing not in PACKERS:
            raise UserError(f"packing={self.packing!r}: choose {' or '.join(PACKERS)}")
        if not 8 <= self.length <= 1 << 15:
            raise UserError(f"length={self.length}: rows hold 8 to {1 << 15:,} tokens")
        if self.heldout is not None and not 0 < self.heldout < 1:
            raise UserError(f"heldout={self.heldout}: the held-out fraction lies between 0 and 1, such as 0.01")
        if self.seed < 0 or not 0 <= self.buckets <= 4096 or not 0 <= self.parts <= 99_999:
            raise UserError(f"seed={self.seed}, buckets={self.buckets}, parts={self.parts}: they are 0 or more; buckets at most 4,096")
        if self.vocab_size is not None and not 8 <= self.vocab_size <= 1 << 24:
            raise UserError(f"vocab_size={self.vocab_size}: a vocabulary has 8 to {1 << 24:,} pieces, such as 30522")
        if not self.output:
            raise UserError("no output: name the folder that is to hold the rows")
        if "," in self.output:
            raise UserError(f"output={self.output!r}: a comma would part it in --config.data.path: choose a name without one")
