"""A workdir in a bucket: a local folder holds the run's small files, and the bucket a copy of them as of the last save.

metrics.jsonl grows line by line and TensorBoard's files too, which an object store cannot do. So the run writes them as ever, into a
local folder, and they are copied whole. The checkpoints are not here: Orbax writes them into the bucket itself.
"""

import pathlib
import shutil
from collections.abc import Iterable

from electra_jax import gcs
from electra_jax.store import names

_LARGE = (names.CHECKPOINTS, names.PROFILE)  # not needed to go on
_FIRST = (names.CONFIG, names.METRICS)  # whose run it is, before anything else


class Mirror:
    """Copies between `folder` and the URL. Use it from one thread, and hold the folder's lock."""

    def __init__(self, url: str, folder: pathlib.Path):
        self._url, self._folder = url, folder
        self._known: dict[str, tuple[int, int]] = {}  # what both sides hold: name -> (bytes, time of the last change)

    def fetch(self, listed: dict[str, dict]) -> None:
        """Makes the folder what the bucket holds, as `gcs.listing` tells: what an earlier session left here goes.

        Raises UserError where the bucket cannot be read.
        """
        for path in self._folder.iterdir():
            if path.name != names.LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in _ordered(name for name in listed if name.split("/")[0] not in _LARGE):
            gcs.download(f"{self._url}/{name}", self._folder / name, listed[name])
            self._known[name] = _version(self._folder / name)

    def publish(self) -> None:
        """Copies what has changed into the bucket. Raises UserError where it cannot be written."""
        paths = [path for path in self._folder.rglob("*") if path.is_file()]
        found = (path.relative_to(self._folder).as_posix() for path in paths)
        for name in _ordered(name for name in found if not name.startswith(".") and not name.endswith(".tmp")):
            version = _version(self._folder / name)
            if self._known.get(name) != version:
                gcs.upload(self._folder / name, f"{self._url}/{name}")
                self._known[name] = version


def _ordered(found: Iterable[str]) -> list[str]:
    return sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _version(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
