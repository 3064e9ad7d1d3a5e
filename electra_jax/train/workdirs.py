"""Whose run a workdir holds, and that one process at a time works in it."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

from electra_jax.cli import UserError
from electra_jax.parallel import multihost

# What a resume may change, by regex over "section.field": anything else would be another run under the old one's name.
MAY_CHANGE = (
    r"^(log|eval|checkpoint|parallel)\.|^model\.(remat|scan_layers|attention)$|^train\.(accumulation_steps|max_non_finite_steps|hang_secs)$"
)
CONFIG = "config.json"
_OURS = {CONFIG, "config.tmp", ".lock"}


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes the folder and holds it: a second run there is refused in a line. The lock ends with the process, however it ends."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose a folder as --workdir")
    if workdir.exists() and not (workdir / CONFIG).exists() and {path.name for path in workdir.iterdir()} - _OURS:
        raise UserError(f"{workdir} is not empty and holds no run of ours: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {workdir}: wait for it or stop it, or choose another --workdir") from None
        yield workdir


def check_shared(workdir: pathlib.Path, wait_secs: float = 10.0) -> None:
    """AgreedError where a process cannot see in the workdir what process 0 writes there. A network file system may take seconds."""
    mark = workdir / f".shared.{multihost.from_lead(os.urandom(8).hex())}"

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


def check_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Refuses a silent change of model, data or objective where the workdir holds a run; writes nothing.

    What a resume may change: MAY_CHANGE, and train.steps where the schedule names its own decay_steps.
    """
    path = workdir / CONFIG
    if not path.exists():
        return
    try:
        before = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or start in another --workdir") from error
    now = _flat(config)
    fixed_decay = before.get("schedule.decay_steps") and now["schedule.decay_steps"]
    may_change = MAY_CHANGE + (r"|^train\.steps$" if fixed_decay else "")
    changed = [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not re.search(may_change, name)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed[:6])}{'; ...' if len(changed) > 6 else ''}): "
            "take these back, or start in another --workdir. A resume may change log, eval, checkpoint and parallel fields, "
            "accumulation, remat, scan_layers and attention; train.steps where schedule.decay_steps is set"
        )


def write_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = workdir / "config.tmp"
    with open(temporary, "w") as file:
        file.write(json.dumps(config, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, workdir / CONFIG)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: value for key, sub in tree.items() for name, value in _flat(sub, f"{prefix}.{key}" if prefix else key).items()}
