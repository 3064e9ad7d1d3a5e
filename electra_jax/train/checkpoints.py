"""Checkpoints through Orbax: state, clock, step, the run's description of itself, and one checksum a leaf.

Orbax does not notice a flipped byte in array data: it restores silently wrong values. So each leaf has a checksum, computed on the
devices, the same on any mesh, and verified after a restore; a damaged step is named, set aside as `<step>.damaged`, and the newest
good one is taken.
"""

import errno
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from electra_jax.cli import UserError
from electra_jax.types import Array

FORMAT = 1


class Restored(NamedTuple):
    step: int
    state: Any
    clock: dict[str, Any]
    description: dict[str, Any]


def checksum(x: Array) -> Array:
    """uint32: the sum of (2i + 1) x bits_i mod 2**32 over the flattened array; 64-bit elements are two words each.

    The weights are odd, so that every flipped bit changes the sum; it wraps by design, and adds up in any order, on any mesh.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = x.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[width]
    words = jax.lax.bitcast_convert_type(x, unsigned).reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jax.lax.iota(jnp.uint32, words.size) + 1), dtype=jnp.uint32)


checksums = jax.jit(lambda leaves: [checksum(leaf) for leaf in leaves])


class Checkpoints:
    """The folder `<directory>/<step>/` of a run. `keep` newest steps stay, and each multiple of `keep_every_steps` (0 = none).

    `description` goes into every checkpoint. `warn` is told, in one line, of a step that is damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int = 3,
        keep_every_steps: int = 0,
        description: Mapping[str, Any],
        warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ):
        if keep < 1:
            raise UserError(f"checkpoint.keep is {keep}: at least one must be kept")
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells its every step
        self._directory = pathlib.Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep, self._keep_every_steps = keep, keep_every_steps
        self._description, self._warn = dict(description), warn
        self._saving: Any = None

    @property
    def steps(self) -> list[int]:
        """Finished ones, oldest first. A save that died left `<step>.orbax-checkpoint-tmp...`, which is none."""
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    @property
    def latest_step(self) -> int | None:
        return max(self.steps, default=None)

    def save(self, step: int, state: Any, clock: Mapping[str, Any]) -> None:
        """Returns when the state is copied from the devices, which may then be donated; the writing goes on behind.

        A step that is there already is left as it is. Raises UserError where this or the save before finds the disk full.
        """
        self.wait()
        if step in self.steps:
            return
        leaves = flatten(state)
        metadata = {
            "format": FORMAT,
            "step": step,
            "clock": dict(clock),
            "description": self._description,
            "leaves": {
                path: [str(leaf.dtype), list(leaf.shape), int(value)]
                for (path, leaf), value in zip(leaves.items(), jax.device_get(checksums(list(leaves.values()))), strict=True)
            },
        }
        for path in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)
        with _disk(self._directory):
            self._saving = ocp.save_checkpointables_async(
                self._directory / str(step), {"state": leaves, "metadata": {"json": json.dumps(metadata), "sha256": _sha256(metadata)}}
            )

    def wait(self) -> None:
        """Until the last save is on the disk and what is too old is gone. Raises UserError where it failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        with _disk(self._directory):
            saving.result()
        kept = set(self.steps[-self._keep :])
        for step in self.steps:
            if step not in kept and not (self._keep_every_steps and step % self._keep_every_steps == 0):
                shutil.rmtree(self._directory / str(step), ignore_errors=True)

    def close(self) -> None:
        self.wait()

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest good checkpoint, on the shardings of `abstract_state` (ShapeDtypeStructs); None if there was never one.

        Raises UserError where leaves are missing, extra or of another shape (all is left as it is), and where every step is damaged.
        """
        found = self.steps
        for step in reversed(found):
            try:
                metadata = self._metadata(step)
                wanted = flatten(abstract_state)
                _check_fit(self._directory / str(step), metadata["leaves"], wanted)
                leaves = ocp.load_checkpointables(self._directory / str(step), {"state": wanted})["state"]
                sums = jax.device_get(checksums([leaves[path] for path in wanted]))
                wrong = [path for path, value in zip(wanted, sums, strict=True) if int(value) != metadata["leaves"][path][2]]
                if wrong:
                    raise ValueError(f"the checksum of {wrong[0]} does not fit")
            except (UserError, MemoryError):
                raise
            except PermissionError as error:
                raise UserError(f"{error.filename or self._directory} may not be read: mend its permissions") from error
            except Exception as error:  # whatever a damaged file makes Orbax and its readers raise
                aside = self._set_aside(step)
                self._warn(f"checkpoint {step} is damaged ({_short(error)}): set aside as {aside}, the one before is taken")
                continue
            state = jax.tree.unflatten(jax.tree.structure(abstract_state), list(leaves[path] for path in wanted))
            return Restored(step, state, metadata["clock"], metadata["description"])
        if found:
            raise UserError(f"every checkpoint in {self._directory} is damaged: bring one back, or start in another --workdir")
        return None

    def _metadata(self, step: int) -> dict[str, Any]:
        stored = ocp.load_checkpointables(self._directory / str(step), {"metadata": None})["metadata"]
        metadata = json.loads(stored["json"])
        if _sha256(metadata) != stored["sha256"] or metadata["step"] != step:
            raise ValueError("its description does not fit its own checksum")
        if metadata["format"] != FORMAT:
            raise UserError(f"{self._directory / str(step)} is of format {metadata['format']}; this version reads {FORMAT}")
        return metadata

    def _set_aside(self, step: int) -> str:
        number = 1
        while True:
            name = f"{step}.damaged" + (f".{number}" if number > 1 else "")
            if not (self._directory / name).exists():
                os.rename(self._directory / str(step), self._directory / name)
                return name
            number += 1

    def restore_as_saved(self) -> dict[str, Array]:
        """The newest step's leaves by path, on this process's first device, whatever model they are of."""
        metadata = self._metadata(self.steps[-1])
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=device)
            for path, (dtype, shape, _) in metadata["leaves"].items()
        }
        return ocp.load_checkpointables(self._directory / str(self.steps[-1]), {"state": wanted})["state"]


def flatten(tree: Any) -> dict[str, Any]:
    """{"params/discriminator/...": leaf}: what is stored is flat, so that a message can name a leaf by its path."""

    def name(key: Any) -> str:
        return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))

    return {"/".join(map(name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_fit(where: pathlib.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    odd = [f"{path} is missing" for path in wanted if path not in stored]
    odd += [f"{path} is not in the model" for path in stored if path not in wanted]
    for path in stored.keys() & wanted.keys():
        dtype, shape, _ = stored[path]
        if (dtype, tuple(shape)) != (str(wanted[path].dtype), wanted[path].shape):
            odd.append(f"{path} is {dtype}{shape}, the model's {wanted[path].dtype}{list(wanted[path].shape)}")
    if odd:
        more = f" and {len(odd) - 6} more" if len(odd) > 6 else ""
        raise UserError(f"{where} does not fit the model: {'; '.join(sorted(odd)[:6])}{more}: use the config that it was made with")


def _sha256(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


class _disk:
    """A full disk is a person's business, and harms no earlier step."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, UserError):
            return
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error) or shutil.disk_usage(self._directory).free < 2**20
        if full:
            raise UserError(
                f"the disk of {self._directory} is full; the checkpoints before this one are whole: free some space, then run the same command again"
            ) from error
