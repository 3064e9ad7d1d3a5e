"""The tokenizer of a preparation: given by the user, or trained on the documents of the training split."""

import os
from collections.abc import Iterator
from pathlib import Path

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.prepare.options import PrepareOptions
from electra_jax.data.prepare.split import document_hash, is_heldout, text_hash
from electra_jax.data.prepare.totals import empty_split
from electra_jax.data.prepare.workers import Meter
from electra_jax.data.readers.corpus import Corpus

MOST_PIECES = 30_522  # of BERT's vocabulary
TEXT_BYTES = 1 << 30  # of the training documents, on which a vocabulary is trained


def given_tokenizer(options: PrepareOptions) -> tokenizers.Tokenizer | None:
    """The tokenizer that the options name; None where one is to be trained. UserError if there is none, or it does not fit them."""
    names = tokenizers.trained_names()
    if options.tokenizer in names:
        return None
    try:
        given = tokenizers.load(options.tokenizer, lower_case=options.lower_case, strip_accents=options.strip_accents)
    except UserError as error:
        if os.path.exists(options.tokenizer):
            raise
        raise UserError(f"{error}; or one to train: {', '.join(names)}") from None
    if options.vocab_size not in (None, given.vocab_size):
        raise UserError(f"vocab_size={options.vocab_size}, but {options.tokenizer} has {given.vocab_size:,}: leave vocab_size out")
    return given


def saved_tokenizer(options: PrepareOptions, corpus: Corpus, given: tokenizers.Tokenizer | None, progress: bool) -> tokenizers.Tokenizer:
    """The tokenizer that lies beside the rows. At the first time it is put there: the given one, or one that is trained."""
    folder = Path(options.output) / "tokenizer"
    if (folder / tokenizers.CONFIG).exists():  # the last of its files to be written
        return tokenizers.load(folder)
    if given is None:
        with Meter("vocabulary", min(corpus.text_bytes, TEXT_BYTES), "B", progress) as meter:
            try:
                given = _trained(options, corpus, meter, options.vocab_size or default_vocab_size(corpus.text_bytes))
            except tokenizers.AlphabetTooLarge:  # as of Chinese, whose characters alone are more
                if options.vocab_size is not None:
                    raise
                given = _trained(options, corpus, meter, MOST_PIECES)
    given.save(folder)
    return given


def _trained(options: PrepareOptions, corpus: Corpus, meter: Meter, vocab_size: int) -> tokenizers.Tokenizer:
    texts = _training_texts(options, corpus, meter)
    return tokenizers.train(options.tokenizer, texts, vocab_size, lower_case=options.lower_case, strip_accents=options.strip_accents)


def _training_texts(options: PrepareOptions, corpus: Corpus, meter: Meter) -> Iterator[str]:
    """Documents of the training split, sources in the order of a hash, until there is text enough."""
    left, total = TEXT_BYTES, 0
    for source in sorted(corpus.sources, key=lambda source: text_hash(source.name.encode())):
        for document in corpus.read(source):
            data = document.text.encode()
            total += 1
            if not is_heldout(document_hash(document.text), options.heldout):
                yield document.text
                left -= len(data)
                meter.add(len(data))
                if left <= 0:
                    return
    if total and left == TEXT_BYTES:
        raise empty_split(options, corpus, total, 0)


def default_vocab_size(num_bytes: int) -> int:
    """Pieces that so much text can fill: the published 30,522 from 100 MB on, and fewer below, where most would hardly occur."""
    return next((size for most, size in ((10 << 20, 4_096), (30 << 20, 8_192), (100 << 20, 16_384)) if num_bytes < most), MOST_PIECES)
