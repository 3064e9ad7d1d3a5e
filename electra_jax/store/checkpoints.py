"""Checkpoints: everything that a run needs to go on after its death. The only file that imports Orbax.

`<directory>/<step>/` holds two Orbax items: `state`, a flat dict {path: array} (ocdbt and zarr3, readable by any Orbax), and
`metadata`, one JSON object that describes it, with a checksum of every array and a SHA-256 of itself. What counts as damaged: damage.py.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from electra_jax import gcs
from electra_jax.cli import UserError
from electra_jax.parallel import multihost
from electra_jax.store import damage, folders
from electra_jax.store.checksums import checksums
from electra_jax.store.damage import Damaged
from electra_jax.types import Array

FORMAT = 3  # 1 had no root key in its state, 2 a schedule's own count: their parameters can be read, and no run goes on from them
READABLE = (1, 2, FORMAT)
LISTED = 6  # names in one message

_ORBAX = f"{os.sep}orbax{os.sep}"


class Restored(NamedTuple):
    step: int
    state: Any  # a tree like the abstract state, placed as it says
    clock: dict[str, Any]
    description: dict[str, Any]


class Checkpoints:
    """The steps saved in one directory. Use it from one thread.

    keep: the newest so many steps stay, and each multiple of `keep_every_steps` (0 = none) for good. Older ones go when the
      next save begins, or at `wait`, so that `keep` whole steps stand at any time, and at most one more.
    directory: a folder, or a gs:// URL.
    description: what the state is of (config, tokenizer, manifest hash ...): JSON values, stored with every step.
    warn: gets one line about each damaged step.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int = 3,
        keep_every_steps: int = 0,
        description: Mapping[str, Any],
        warn: Callable[[str], None] = multihost.say_once,
    ):
        if keep < 1:
            raise UserError(f"checkpoint.keep={keep} would keep nothing to go on from: 1 or more")
        self._folder = folders.at(directory)
        self._directory = self._folder.path
        self._keep, self._keep_every_steps = keep, keep_every_steps
        self._description, self._warn = json.loads(json.dumps(description)), warn
        self._saving: tuple[int, ocp.AsyncResponse] | None = None
        registry = ocp.handlers.local_registry(include_global_registry=True)
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="metadata")
        self._context = ocp.Context()
        self._context.checkpointables.registry = registry
        self._context.pytree.loading.partial_load = True  # for `read`; `restore` compares the names itself, before it loads
        # In the background, a folder that cannot be made leaves threads that wait for it, and the process, for 5 minutes.
        self._context.asynchronous.create_directories_asynchronously = False

    # --- Saving

    def save(self, step: int, state: Any, clock: Mapping[str, Any]) -> None:
        """Starts to write `state` (a tree of jax arrays) as `step`, and returns as soon as its values are safe from the caller.

        The caller may donate or delete the arrays at once. Writing goes on in the background, one save at a time; what
        goes wrong there is raised by the next `save`, `wait` or `close`. Does nothing where the step is there already:
        the same run saves the same values. Raises UserError where it cannot be written (a full disk, no permission);
        earlier steps are never touched before a new one is whole.
        """
        self.wait()
        if step in self._folder.steps():
            return
        arrays, _ = flatten(state)
        metadata = {
            "format": FORMAT,
            "step": step,
            "clock": dict(clock),
            "description": self._description,
            "checksums": checksums(_plain(arrays)),
            "shapes": {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()},
        }
        metadata = json.loads(json.dumps(metadata))  # as it will be read: tuples become lists, keys strings
        try:
            self._folder.make()
            self._folder.sweep()  # here, not when opened: who only reads must not sweep away the save of a living run
            with self._context:
                items = {"state": _plain(arrays), "metadata": {**metadata, "sha256": _sha256(metadata)}}
                self._saving = step, ocp.save_checkpointables_async(self._directory / str(step), items)
        except Exception as error:
            raise self._explained(step, error) from error

    def wait(self) -> None:
        """Returns when nothing is being written. Raises UserError where the last save failed."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        try:
            response.result()
        except Exception as error:
            raise self._explained(step, error) from error
        self._prune()

    close = wait

    def leave(self, secs: float = 60.0) -> None:
        """Gives a save under way its last chance where this process ends by an error of its own: the others may train on, so that nothing
        is agreed with them, nothing removed, and after `secs` nothing waited for. Raises nothing."""
        if self._saving is not None:
            with contextlib.suppress(Exception):
                self._saving[1].result(timeout=secs if multihost.count() > 1 else None)

    def _explained(self, step: int, error: Exception) -> Exception:
        """The partial save is removed, because it may be what fills the disk; a person's business becomes a UserError."""
        with contextlib.suppress(UserError):
            self._folder.alone.sweep(step)  # the other processes may have met no error
        if gcs.is_remote(self._directory) and (words := gcs.trouble(error)):
            return UserError(
                f"step {step} could not be saved in {self._directory}: {words}; the steps before it are whole: run the same command again"
            )
        number = damage.error_number(error)
        if number is None:
            return error
        full = number in (errno.ENOSPC, errno.EDQUOT)
        return UserError(
            f"{'the disk is full' if full else os.strerror(number)}: step {step} could not be saved in {self._directory}; the steps "
            f"before it are whole: {'free some space' if full else 'mend this'} and run the same command again"
        )

    def _prune(self) -> None:
        for step in self._folder.steps()[: -self._keep]:
            if not self._keep_every_steps or step % self._keep_every_steps:
                self._folder.remove(step)

    # --- Restoring

    @property
    def latest_step(self) -> int | None:
        """The newest step on disk, not looked into."""
        steps = self._folder.steps()
        return steps[-1] if steps else None

    def description(self) -> dict[str, Any] | None:
        """The newest step's description whose metadata is whole, without its arrays; None where there is none."""
        for step in reversed(self._folder.steps()):
            try:
                return self._read_metadata(step)["description"]
            except Damaged:
                continue
        return None

    def read(self, wanted: Callable[[str], bool], step: int | None = None) -> Restored | None:
        """Of the newest whole step, or of `step`: the arrays whose path `wanted` accepts, as {path: array} on the default device.

        For who does not know the state's structure. Renames nothing. None where nothing was saved; UserError where all are damaged.
        """

        def load(number: int, metadata: dict[str, Any]) -> dict[str, Array]:
            shapes = {name: about for name, about in metadata["shapes"].items() if wanted(name)}
            if any(dtype == "float64" for dtype, _ in shapes.values()) and not jax.config.jax_enable_x64:
                raise UserError(f"step {number} in {self._directory} is float64: start with JAX_ENABLE_X64=1 in the environment")
            abstract = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (dtype, shape) in shapes.items()}
            return self._read_state(number, abstract, metadata["checksums"])

        found, damaged = self._newest_whole(load, step)
        if found is None and damaged:
            raise UserError(f"no checkpoint in {self._directory} is whole: {_listed(_with_reasons(damaged))}: put a good copy there")
        for bad_step, why in damaged.items():
            self._warn(f"checkpoint {bad_step} is damaged ({why}): step {found.step} is read instead")
        return found

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest step whose every byte is what was saved; None where nothing was saved yet.

        abstract_state: a tree of `jax.ShapeDtypeStruct`; their shardings decide where everything goes (none: the default
          device), whatever mesh and number of processes it was saved from.

        A damaged step is reported in one line and renamed `<step>.damaged`, so that the step can be saved again. Raises
        UserError, and renames nothing, where a checkpoint does not fit the abstract state, cannot be read for want of
        permission and the like, or where every one is damaged: never a silent start from scratch.
        """
        self.wait()

        def load(step: int, metadata: dict[str, Any]) -> Any:
            if metadata["format"] != FORMAT:
                raise UserError(
                    f"{self._directory / str(step)} was saved by an earlier version (format {metadata['format']}): finish the "
                    "run with that version, or begin another --workdir with its model (--config.init_from)"
                )
            self._refuse_misfit(step, metadata["shapes"], abstract_state)
            return self._read_state(step, abstract_state, metadata["checksums"])

        found, damaged = self._newest_whole(load)
        if found is not None:
            for bad_step, why in damaged.items():
                name = self._folder.set_aside(bad_step)
                self._warn(f"checkpoint {bad_step} is damaged ({why}): renamed to {name}, going on from step {found.step}")
            return found
        if names := [*_with_reasons(damaged), *self._folder.aside()]:
            raise UserError(
                f"no checkpoint in {self._directory} is whole: {_listed(names)}: put a good copy there, "
                "or remove them to start from scratch"
            )
        return None

    def _newest_whole(self, load: Callable[[int, dict[str, Any]], Any], only: int | None = None) -> tuple[Restored | None, dict[int, str]]:
        """(the newest step, or the step `only`, that `load(step, metadata)` does not find damaged; those that were damaged, and why)."""
        damaged: dict[int, str] = {}
        for step in reversed(self._folder.steps()):
            if only not in (None, step):
                continue
            try:
                metadata = self._read_metadata(step)
                state = load(step, metadata)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            return Restored(step, state, metadata["clock"], metadata["description"]), damaged
        return None, damaged

    def _read(self, step: int, load: Callable[[Any], Any]) -> Any:
        """One of Orbax's loads. Raises Damaged, on every process, for any failure on one that can come from the files' bytes."""
        loaded, why = None, None
        try:
            loaded = self._read_here(step, load)
        except Damaged as error:
            why = str(error)
        if whys := [why for why in multihost.gather(why) if why]:
            raise Damaged(whys[0])
        return loaded

    def _read_here(self, step: int, load: Callable[[Any], Any]) -> Any:
        path = self._directory / str(step)
        with damage.seen(path), self._context:
            return load(path)

    def _read_metadata(self, step: int) -> dict[str, Any]:
        metadata = self._read(step, lambda path: ocp.load_checkpointables(path, {"metadata": None}))["metadata"]
        if not isinstance(metadata, dict) or metadata.pop("sha256", None) != _sha256(metadata):
            raise Damaged("its metadata differ from their SHA-256")
        if metadata["format"] not in READABLE:
            raise UserError(
                f"{self._directory / str(step)} has format {metadata['format']} and this program reads {FORMAT}: "
                "use the version that wrote it"
            )
        if metadata["step"] != step:
            raise UserError(f"{self._directory / str(step)} holds step {metadata['step']}: give the folder its own name back")
        return metadata

    def _refuse_misfit(self, step: int, stored: dict[str, list], abstract_state: Any) -> None:
        wanted = {name: [str(x.dtype), list(x.shape)] for name, x in flatten(abstract_state)[0].items()}
        misfits = [f"{name} is missing" for name in wanted if name not in stored]
        misfits += [f"{name} is not expected" for name in stored if name not in wanted]
        misfits += [
            f"{name} is {''.join(map(str, stored[name]))} there and {''.join(map(str, wanted[name]))} here"
            for name in wanted
            if name in stored and stored[name] != wanted[name]
        ]
        if misfits:
            raise UserError(
                f"{self._directory / str(step)} holds another model or optimizer: {_listed(misfits)}: "
                "run it with the config that wrote it, or start in another directory"
            )

    def _read_state(self, step: int, abstract_state: Any, stored: dict[str, int]) -> Any:
        wanted, treedef = flatten(abstract_state)
        loaded = self._read(step, lambda path: ocp.load_checkpointables(path, {"state": _plain(wanted)}))["state"]
        arrays = {
            name: jax.random.wrap_key_data(loaded[name], impl=_key_impl(x)) if _is_key(x) else loaded[name] for name, x in wanted.items()
        }
        found = checksums(_plain(arrays))
        if wrong := [name for name in arrays if found[name] != stored[name]]:
            raise Damaged(f"other values than were saved in {_listed(wrong)}")
        return jax.tree.unflatten(treedef, list(arrays.values()))


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """{path: leaf} in the tree's order, and its structure."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves of the state have one path name")
    return named, treedef


def _keep_console_clean() -> None:
    """Orbax logs each step of its work, and each failure with its trace, which reaches us as an exception too. Where one read or
    write fails, it leaves the others to complain: to asyncio's log, as unraisable exceptions, as coroutines that nobody awaited.
    All that we say in one line."""
    logging.getLogger("absl").addFilter(lambda record: _ORBAX not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    next_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        orphan = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
        code = getattr(unraisable.object, "cr_code", None)
        if not (orphan or code and _ORBAX in code.co_filename):
            next_hook(unraisable)

    sys.unraisablehook = hook


_keep_console_clean()


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_impl(x: jax.ShapeDtypeStruct) -> Any:
    impls: list[Any] = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), x)
    return impls[0]


def _plain(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """As Orbax gets them: typed keys as their words, and every abstract leaf with a sharding, so that it reads none from a file."""
    plain = {}
    for name, x in leaves.items():
        if isinstance(x, jax.ShapeDtypeStruct):
            sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            words = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
            plain[name] = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)
        else:
            plain[name] = jax.random.key_data(x) if _is_key(x) else x
    return plain


def _sha256(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _with_reasons(damaged: Mapping[int, str]) -> list[str]:
    return [f"{step} ({why})" for step, why in damaged.items()]


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
