"""Files and folders that appear whole or not at all, and locks that end with their process.

Everything is written beside its place under a name of its own, put on the disk, and renamed: a death at any moment leaves the old
content or the new. What a kill leaves behind is hidden: `.NAME.*.tmp`.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import pathlib
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Set
from typing import Any

from electra_jax.cli import UserError


def _aside(path: pathlib.Path) -> pathlib.Path:
    """A temporary name beside `path`. No two writers share one, whether they are processes of one machine or of several."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path that takes `path`'s place when the block ends, or is removed when it fails."""
    path = pathlib.Path(path)
    temporary = _aside(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_litter(path: str | os.PathLike) -> None:
    """Removes what killed writers of this file left beside it. Only for files whose writers hold `flock` on them while they write."""
    path = pathlib.Path(path)
    for litter in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), open(litter, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: somebody is writing it
            litter.unlink()


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """The file with this content (text in UTF-8), in the place of what was there."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def add_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """One more line of JSON. A death in between leaves a line that is cut off, which `read_rows` removes."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: str | os.PathLike, fields: Set[str]) -> list[dict[str, Any]]:
    """The rows that `add_row` wrote; none where there is no file. A last line that is cut off is removed from the file.

    UserError for a line that is no row with these fields.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    whole, cut = path.read_text(errors="replace").rpartition("\n")[::2]
    if cut:
        write_whole(path, whole + "\n" if whole else "")
    found = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found.append(row := json.loads(line))
            missing = fields - row.keys()
        except (ValueError, AttributeError):
            missing = True
        if missing:
            raise UserError(f"{path}:{number} is no row of this table: delete the line, and what it was about is done again")
    return found


def read_ordinary(path: str | os.PathLike) -> bytes:
    """What the file holds. OSError as of any read; UserError for a pipe, a socket or a device, because reading one may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path}: it is no ordinary file: give one")
    return pathlib.Path(path).read_bytes()


def refuse_taken(target: str | os.PathLike) -> pathlib.Path:
    """The real path of a folder to write. Raises UserError unless it is absent or empty."""
    path = pathlib.Path(os.path.realpath(target))
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"{target}: {above} is a file: name a new folder")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{target} is there already: name a new folder, or an empty one")
    return path


@contextlib.contextmanager
def whole_folder(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder that takes `target`'s place when the block ends; it and the parents made for it are removed when the block fails.

    Raises UserError unless `target` is absent or empty, before and after the block.
    """
    path = refuse_taken(target)
    temporary = _aside(path)
    new = make_folder(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        try:
            os.replace(temporary, path)  # also of an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise UserError(f"{target} is there already, since a moment ago: name a new folder") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(new)
        raise


def sync_folder(folder: str | os.PathLike) -> None:
    """The folder's list of names is on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Makes it, and those above it; returns what was not there, the innermost first."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def remove_empty(folders: list[pathlib.Path]) -> None:
    """Of these, the innermost first, as many as nobody uses."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _is_still_there(path: str | os.PathLike, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, wait: bool, is_folder: bool = False) -> Iterator[None]:
    """Holds a file, which is made, or a folder, which is there, for this process; the lock ends with it, however it ends.

    wait: until no other process holds it. Otherwise raises BlockingIOError where one does.
    """
    flags = os.O_RDONLY if is_folder else os.O_WRONLY | os.O_CREAT
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still_there(path, descriptor):  # who held it before may have removed it
                yield
                return
        finally:
            os.close(descriptor)
