"""One step saved by one process of a run of several, of which the others know nothing: Orbax saves only where all take part
(orbax-checkpoint 0.12, `_check_directory_consistency` waits for every process), so that a process of its own does it.

    python -m electra_jax.store.apart FOLDER      # FOLDER/arrays.npz and FOLDER/about.json, as `save` leaves them
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.store.checkpoints import Checkpoints

_ROOT = pathlib.Path(__file__).parents[2]


def save(directory: pathlib.Path, step: int, state: Any, description: Mapping[str, Any]) -> None:
    """state: a tree of dicts of numpy arrays. Returns when it is written."""
    if jax.process_count() == 1:
        checkpoints = Checkpoints(directory, description=description)
        checkpoints.save(step, jax.tree.map(jnp.asarray, state), {})
        checkpoints.close()
        return
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/arrays.npz", **flax.traverse_util.flatten_dict(state, sep="/"))
        about = {"directory": str(pathlib.Path(directory).absolute()), "step": step, "description": dict(description)}
        pathlib.Path(folder, "about.json").write_text(json.dumps(about))
        places = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": places}
        done = subprocess.run(
            [sys.executable, "-m", __name__, folder], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    if done.returncode:
        raise OSError(f"{directory} could not be written: {done.stderr.strip().rpartition(chr(10))[2]}")


def main(folder: str) -> None:
    about = json.loads(pathlib.Path(folder, "about.json").read_text())
    with np.load(f"{folder}/arrays.npz") as arrays:
        state = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    save(pathlib.Path(about["directory"]), about["step"], state, about["description"])


if __name__ == "__main__":
    main(sys.argv[1])
