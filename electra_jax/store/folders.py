"""The folders of a run's checkpoints, one a step, on a disk or in a bucket: which are whole, and how one goes away.

On a disk a folder under its own name is whole, because Orbax renames it when it is, and what we delete is renamed first. In a bucket,
where a rename is many copies, a folder is whole while Orbax's commit_success.txt is in it: that is written last, and deleted first.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from electra_jax import gcs
from electra_jax.cli import UserError
from electra_jax.parallel import multihost

DAMAGED = ".damaged"

# Orbax writes `<step>.orbax-checkpoint-tmp` and renames it when it is whole. What we delete takes the same ending first,
# so that a death in the middle of either leaves one kind of litter.
_PARTIAL = ".orbax-checkpoint-tmp"
_COMMIT = "commit_success.txt"
_TOGETHER = 16  # questions to the store at a time


def at(directory: str | os.PathLike) -> "Shared":
    """Raises UserError where it is a gs:// URL and the extra is missing."""
    return Shared(Bucket(directory) if gcs.is_remote(directory) else Disk(directory))


def _step(name: str) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]*", name) is not None


def _names_aside(step: int) -> Iterator[str]:
    return (f"{step}{DAMAGED}" + (f".{number}" if number > 1 else "") for number in itertools.count(1))


def _by_lead(name: str):
    def method(self, *args):
        lead = multihost.is_lead()
        return multihost.from_lead(multihost.together(lambda: getattr(self.alone, name)(*args) if lead else None))

    return method


class Shared:
    """A folder whose steps the first process alone lists, moves and deletes; all hear the same of it, and call alike."""

    def __init__(self, folder: "Disk | Bucket"):
        self.alone, self.path = folder, folder.path

    make, steps, aside, sweep, remove, set_aside = map(_by_lead, ("make", "steps", "aside", "sweep", "remove", "set_aside"))


class Disk:
    """`path` is the folder of the steps."""

    def __init__(self, directory: str | os.PathLike):
        self.path = pathlib.Path(directory).absolute()

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """Whole ones, ascending, damaged or not. Raises UserError where the folder cannot be read."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read {self.path} ({error.strerror}): mend this and run the same command again") from error
        return sorted(int(name) for name in names if _step(name))

    def aside(self) -> list[str]:
        """The names of damaged steps that were set aside."""
        return sorted(path.name for path in self.path.glob(f"*{DAMAGED}*"))

    def sweep(self, step: int | None = None) -> None:
        """Removes what unfinished writing or deleting has left, of this step or of all. What cannot be removed stays, unsaid."""
        for litter in self.path.glob(f"{'*' if step is None else step}{_PARTIAL}*"):
            shutil.rmtree(litter, ignore_errors=True)

    def remove(self, step: int) -> None:
        os.rename(self.path / str(step), self.path / f"{step}{_PARTIAL}")
        self.sweep(step)

    def set_aside(self, step: int) -> str:
        """Takes the step out of `steps`, keeps its files for people, and returns its new name."""
        name = next(name for name in _names_aside(step) if not (self.path / name).exists())
        os.rename(self.path / str(step), self.path / name)
        return name


class Bucket:
    """The same for a gs:// URL. Every method raises UserError where the store cannot be reached or refuses access."""

    def __init__(self, url: str | os.PathLike):
        self._url, self._files = gcs.clean(url), gcs.filesystem()
        from etils import epath  # after `filesystem`, which says through what it goes

        self.path = epath.Path(self._url)

    def make(self) -> None:
        """A folder in a bucket needs no making."""

    def steps(self) -> list[int]:
        steps = [name for name in self._names() if _step(name)]
        with gcs.explained(self._url), ThreadPoolExecutor(_TOGETHER) as pool:
            whole = pool.map(self._is_whole, steps)
            return sorted(int(name) for name, is_whole in zip(steps, whole, strict=True) if is_whole)

    def aside(self) -> list[str]:
        return sorted(name for name in self._names() if DAMAGED in name)

    def sweep(self, step: int | None = None) -> None:
        with gcs.explained(self._url):
            for name in self._names():
                if (name == str(step) or (step is None and _step(name))) and not self._is_whole(name):
                    self._delete(name)

    def remove(self, step: int) -> None:
        with gcs.explained(self._url):
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._url}/{step}/{_COMMIT}")
            self._delete(str(step))

    def set_aside(self, step: int) -> str:
        """The copy is whole before the step is not: a death in between leaves both, and the step is set aside once more."""
        with gcs.explained(self._url):
            name = next(name for name in _names_aside(step) if not self._is_whole(name))
            files = sorted(self._files.find(f"{self._url}/{step}"), key=lambda path: path.endswith(f"/{_COMMIT}"))
            start = f"{self._url}/{step}"[len(gcs.SCHEME) :]
            copies = [f"{self._url}/{name}{path[len(start) :]}" for path in files]
            if copies[:-1]:
                self._files.copy(files[:-1], copies[:-1])
            self._files.copy(files[-1], copies[-1])
        self.remove(step)
        return name

    def _names(self) -> list[str]:
        with gcs.explained(self._url):
            try:
                return [path.rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(self._url, detail=False)]
            except FileNotFoundError:
                return []

    def _is_whole(self, name: str) -> bool:
        return self._files.exists(f"{self._url}/{name}/{_COMMIT}")

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._url}/{name}", recursive=True)
