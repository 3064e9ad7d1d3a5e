"""Opens and locks a workdir, and refuses one that holds something else or in which another process works."""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from electra_jax import files, gcs
from electra_jax.cli import UserError
from electra_jax.parallel import multihost
from electra_jax.store import names
from electra_jax.store.mirror import Mirror

_SHARED = ".shared."  # the start of a file's name by which processes find out that they see one folder


class Workdir(NamedTuple):
    """Where a run lives."""

    name: str  # as its user knows it
    path: pathlib.Path  # a local folder for config.json, metrics.jsonl, tensorboard/, profile/ and report.html
    checkpoints: str  # a folder or a gs:// URL
    publish: Callable[[], None]  # puts what lies in `path` where `name` says, if that is elsewhere


@contextlib.contextmanager
def opened(workdir: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Iterator[Workdir]:
    """The workdir, held by this process until the block ends; its files are published then, also after an error.

    One of a gs:// URL has its local folder under `scratch`, and only that is locked: a second process on this machine is refused, one
    on another machine is not. Two of them at once would delete each other's unfinished checkpoints and overwrite each other's metrics.

    Raises UserError where another process holds it, where it holds what is not a run of ours, or where it cannot be reached.
    """
    if not gcs.is_remote(workdir):
        with claimed(pathlib.Path(workdir)) as path:
            yield Workdir(str(path), path, str(path / names.CHECKPOINTS), lambda: None)
        return
    url = gcs.clean(workdir)
    listed = gcs.listing(url)
    _refuse_foreign(url, {name.split("/")[0] for name in listed})
    with _locked(gcs.scratch_folder(scratch) / "runs" / gcs.local_name(url), url) as path:
        mirror = Mirror(url, path)
        mirror.fetch(listed)
        try:
            yield Workdir(url, path, f"{url}/{names.CHECKPOINTS}", mirror.publish)
        except BaseException:
            with contextlib.suppress(UserError):  # the first error is the one to hear of
                mirror.publish()
            raise
        mirror.publish()


def visited(workdir: str | os.PathLike) -> Workdir:
    """The workdir as every process but the first sees it: nothing is claimed, fetched or published. `path` is for checks alone."""
    if gcs.is_remote(workdir):
        url = gcs.clean(workdir)
        return Workdir(url, pathlib.Path(os.devnull), f"{url}/{names.CHECKPOINTS}", lambda: None)
    path = pathlib.Path(workdir)
    return Workdir(str(path), path, str(path / names.CHECKPOINTS), lambda: None)


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes the folder and holds it: a second run there is refused in a line. The lock ends with the process, however it ends. A block
    that fails before it writes anything leaves no folder behind that it made."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose a folder as --workdir")
    if workdir.exists():
        _refuse_foreign(str(workdir), {path.name for path in workdir.iterdir()})
    with _locked(workdir, str(workdir)):
        yield workdir


def _refuse_foreign(workdir: str, found: set[str]) -> None:
    def passing(name: str) -> bool:
        """Left by a start that came no further."""
        return name == names.LOCK or name.startswith((_SHARED, f".{names.CONFIG}."))

    if names.CONFIG not in found and not all(map(passing, found)):
        raise UserError(f"{workdir} is not empty and holds no run of ours: choose another --workdir")


@contextlib.contextmanager
def _locked(folder: pathlib.Path, workdir: str) -> Iterator[pathlib.Path]:
    new = files.make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder / names.LOCK, wait=False))
        except BlockingIOError:
            raise UserError(f"another process trains in {workdir}: wait for it or stop it, or choose another --workdir") from None
        try:
            yield folder
        except BaseException:
            if {path.name for path in folder.iterdir()} == {names.LOCK}:  # it failed before it wrote anything
                (folder / names.LOCK).unlink()
                files.remove_empty(new)
            raise


def check_shared(place: Workdir, wait_secs: float = 10.0) -> None:
    """AgreedError where processes name the workdir differently (Orbax compares the names), or where one cannot see in it what process 0
    writes there. A network file system may take seconds."""
    if multihost.count() == 1:
        return
    name = place.name if gcs.is_remote(place.name) else str(place.path.absolute())
    multihost.agree("--workdir", name, "write it alike for all, and mount it at the same place")
    if gcs.is_remote(place.name):
        return
    workdir = place.path
    mark = workdir / f"{_SHARED}{multihost.from_lead(os.urandom(8).hex())}"

    def seen() -> None:
        deadline = time.monotonic() + wait_secs
        while not mark.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{workdir} on {socket.gethostname()} is not the folder that process 0 writes to: choose a --workdir on a file "
                    "system that all hosts share (or gs://)"
                )
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                os.listdir(workdir)  # makes a network file system look again

    if multihost.is_lead():
        mark.touch()
    try:
        multihost.meet("marked")
        multihost.together(seen)
    finally:
        if multihost.is_lead():
            mark.unlink()


def read_config(place: Workdir) -> dict[str, Any] | None:
    """What config.json holds; None where there is none. Raises UserError where it is damaged."""
    path = place.path / names.CONFIG
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place.name}/{names.CONFIG} is damaged ({error}): restore it, or start in another --workdir") from error
    return config


def write_config(place: Workdir, config: Mapping[str, Any]) -> None:
    files.write_whole(place.path / names.CONFIG, json.dumps(config, indent=1) + "\n")
