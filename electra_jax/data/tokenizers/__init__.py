"""Text -> token ids: tokenizers of several kinds, trained or read, behind one protocol; each kind has a module of its own here.

No tokenizer gives a special id for text: "[MASK]" in a document is ordinary text. So `[CLS]`, `[SEP]` and `[PAD]` in a row always
mean its structure.

To add a kind, write one module with the tokenizer's class and these names, as wordpiece.py has them, and give it a line in KINDS:

    FILES: the names of the files that the tokenizer's `save` writes, without CONFIG.
    ENDINGS: {ending of a file's name: what a person calls such a file}, of files that `read` takes under any other name too.
    TRAINED: {name: train(texts, vocab_size, *, lower_case, strip_accents) -> Tokenizer}, the names that `--tokenizer=` trains;
      `lower_case` and `strip_accents` are None where the user did not say.
    find(folder, config) -> the file in the folder that `read` should take, or None; `config` is the folder's CONFIG, or {}.
    read(path, data, config, lower_case, strip_accents) -> Tokenizer, from the file's bytes. Raises UserError without the path.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from electra_jax.cli import UserError
from electra_jax.data.tokenizers.base import CONFIG, SPECIALS, AlphabetTooLarge, Tokenizer
from electra_jax.data.tokenizers.sentencepiece import SentencePiece, train_sentencepiece
from electra_jax.data.tokenizers.wordpiece import WordPiece, train_wordpiece
from electra_jax.files import read_ordinary
from electra_jax.options import load as load_module

__all__ = [
    "AlphabetTooLarge",
    "CONFIG",
    "KINDS",
    "SPECIALS",
    "SentencePiece",
    "Tokenizer",
    "WordPiece",
    "file_names",
    "load",
    "train",
    "train_sentencepiece",
    "train_wordpiece",
    "trained_names",
]

KINDS = {
    "wordpiece": "electra_jax.data.tokenizers.wordpiece",
    "sentencepiece": "electra_jax.data.tokenizers.sentencepiece",
}


def _modules() -> list[ModuleType]:
    return [load_module(KINDS, kind) for kind in KINDS]


def file_names() -> tuple[str, ...]:
    """The names of all files that a saved tokenizer's folder may hold."""
    return (*(name for module in _modules() for name in module.FILES), CONFIG)


def trained_names() -> tuple[str, ...]:
    """What `train` can train."""
    return tuple(name for module in _modules() for name in module.TRAINED)


def train(
    name: str, texts: Iterable[str], vocab_size: int, *, lower_case: bool | None = None, strip_accents: bool | None = None
) -> Tokenizer:
    """Trains the tokenizer of this name, one of `trained_names()`, on the texts; None leaves an option to its kind."""
    module = next(module for module in _modules() if name in module.TRAINED)
    return module.TRAINED[name](texts, vocab_size, lower_case=lower_case, strip_accents=strip_accents)


def load(path: str | os.PathLike, *, lower_case: bool | None = None, strip_accents: bool | None = None) -> Tokenizer:
    """Reads a folder that `save` wrote or that Hugging Face did, or one file of a kind: a BERT vocab.txt, a SentencePiece .model ...

    A vocab.txt does not say how text is lowered: `lower_case=None` takes it as uncased if no piece has a capital. Where the
    file says it, another value is a UserError; so is a file that lacks a special token, or is of no kind.
    """
    path, config, module = Path(path), {}, None
    try:
        if path.is_dir():
            config = _config(path)
            module, path = _find(path, config)
        data = read_ordinary(path)
    except OSError as error:
        raise UserError(
            f"tokenizer {error.filename or path}: {error.strerror or error}: name a folder, {_known(' or ')} that exists"
        ) from None
    try:
        tokenizer = (module or _module_of(path)).read(path, data, config, lower_case, strip_accents)
        for name, wanted in {"lower_case": lower_case, "strip_accents": strip_accents}.items():
            if wanted is not None and tokenizer.options.get(name) != wanted:
                raise UserError(f"made with {name}={tokenizer.options.get(name)}, not {wanted}: leave the option out")
        if config.get("sha256", tokenizer.sha256) != tokenizer.sha256:
            raise UserError(f"its files do not fit the hash in {CONFIG}: they were changed or damaged; make them anew")
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None
    return tokenizer


def _config(folder: Path) -> dict:
    """What the folder's CONFIG says; {} where it has none."""
    path = folder / CONFIG
    try:
        config = json.loads(read_ordinary(path)) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"tokenizer {path} is not JSON ({error}): make the folder anew") from None
    if not isinstance(config, dict):
        raise UserError(f"tokenizer {path} is no JSON object: make the folder anew")
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if not isinstance(config.get(name), bool | None):
            raise UserError(f"tokenizer {path}: {name} is {config[name]!r}: it must be true or false")
    return config


def _find(folder: Path, config: dict) -> tuple[ModuleType, Path]:
    """The kind of the tokenizer in the folder, and the file to read."""
    options = config.get("options")
    kind = options.get("kind") if isinstance(options, dict) else None
    if isinstance(kind, str) and kind not in KINDS:
        raise UserError(
            f"tokenizer {folder}: its {CONFIG} says that it is of kind {kind!r}, and this version of electra_jax has {', '.join(KINDS)}: "
            "use the version that made it"
        )
    # A folder that Hugging Face wrote does not name a kind of ours. Other kinds' folders may hold a tokenizer.json too, which is
    # WordPiece's file here: WordPiece, the first of KINDS, is tried last.
    for name in [kind] if isinstance(kind, str) else reversed(KINDS):
        module = load_module(KINDS, name)
        if path := module.find(folder, config):
            return module, path
    raise UserError(f"tokenizer {folder}: no {_known(' or ')} in this folder: name one that has one")


def _module_of(path: Path) -> ModuleType:
    """The kind of a file that was given by itself: by its whole name, else by the name's ending."""
    modules = _modules()
    fits = [module for module in modules if path.name in module.FILES] or [module for module in modules if path.suffix in module.ENDINGS]
    if not fits:
        raise UserError(f"not a {_known(', a ')} or a folder with one of them")
    return fits[0]


def _known(last: str) -> str:
    """What a person calls the files that can be read; `last` joins the last name to the others."""
    *names, end = [name for module in _modules() for name in module.ENDINGS.values()]
    return (", a " if last == ", a " else ", ").join(names) + last + end
