"""Locks the output folder, and refuses one that another command made or that holds anything else."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.data.prepare.options import PrepareOptions
from electra_jax.data.prepare.split import RULE
from electra_jax.data.readers import scheme_of
from electra_jax.data.readers.corpus import Corpus
from electra_jax.data.rows import records
from electra_jax.files import locked, make_folder, remove_empty, write_whole

# What the folder is being, or was, made from. It names paths of this machine, so it is no part of the data.
MARK = ".prepared_from.json"


@contextlib.contextmanager
def claimed(output: Path, options: PrepareOptions, corpus: Corpus, given: tokenizers.Tokenizer | None) -> Iterator[bool]:
    """Holds the folder for this process and marks it as this command's; yields whether its rows are finished already.

    UserError, with nothing touched, if it is a file, holds anything else, or another process works there.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose a folder as --output")
    mark = _mark(options, corpus, given)
    names = {path.name for path in output.iterdir()} if output.exists() else set()
    if not any(name == MARK for name in names) and any(not name.startswith(f".{MARK}") for name in names):
        what = "rows made elsewhere" if records.MANIFEST in names else "something else"
        raise UserError(f"{output} is not empty and holds {what}: choose another --output")
    new = make_folder(output)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(output, wait=False, is_folder=True))
        except BlockingIOError:
            raise UserError(f"{output}: another process is preparing rows there: wait for it, or choose another --output") from None
        finished = (output / records.MANIFEST).exists()
        before = _read_mark(output)
        if before is not None and before != mark:
            _refuse_others(output, before, mark, finished)
            print(f"{output}: the input has changed since this preparation began: starting over", file=sys.stderr)
            _clear(output)
            before = None
        if before is None:
            write_whole(output / MARK, json.dumps(mark, indent=1))
        try:
            yield finished
        except UserError:
            work = output / ".work"
            trained = given is None and work.exists() and (output / "tokenizer" / tokenizers.CONFIG).exists()
            if not (finished or trained or any(path.is_file() for path in work.rglob("*"))):
                _clear(output)  # nothing was made yet, so the mended command may have other options
                remove_empty(new)
            raise


def _mark(options: PrepareOptions, corpus: Corpus, given: tokenizers.Tokenizer | None) -> dict:
    """What decides the rows, as far as it can be told without reading the corpus: files by path, size and time of change."""
    digest = hashlib.sha256()
    for source in corpus.sources:
        path, changed = source.path, 0
        if not scheme_of(path):
            path, changed = os.path.abspath(path), os.stat(path).st_mtime_ns
        digest.update(json.dumps([source.name, path, source.num_bytes, changed]).encode())
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if name != "output"}
    chosen["inputs"] = [item if scheme_of(item) else os.path.abspath(item) for item in options.inputs]
    chosen["tokenizer"] = given.sha256 if given else options.tokenizer
    chosen |= {"format": records.FORMAT, "split_rule": RULE}
    return {"options": chosen, "sources": len(corpus.sources), "sources_sha256": digest.hexdigest()}


def _read_mark(output: Path) -> dict | None:
    try:
        mark = json.loads((output / MARK).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        mark = None
    if not isinstance(mark, dict) or not isinstance(mark.get("options"), dict):
        raise UserError(f"{output / MARK} is damaged: choose another --output, or delete this folder")
    return mark


def _refuse_others(output: Path, before: dict, mark: dict, finished: bool) -> None:
    old, new = before["options"], mark["options"]
    changed = [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in {**old, **new} if old.get(name) != new.get(name)]
    what = "finished rows" if finished else "unfinished work"
    if changed:
        raise UserError(f"{output} holds {what} made with other options ({'; '.join(changed)}): choose another --output, or delete it")
    if finished:
        raise UserError(f"{output} holds rows, and the input has changed since: choose another --output, or delete it")


def _clear(output: Path) -> None:
    """Removes unfinished work; the mark last."""
    for folder in (".work", "tokenizer"):
        shutil.rmtree(output / folder, ignore_errors=True)
    for path in [*output.glob("*.array_record"), output / records.TOKEN_COUNTS, output / MARK]:
        path.unlink(missing_ok=True)
