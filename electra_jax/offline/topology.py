"""The devices of a TPU that is not there, for the compiler alone."""

import contextlib
import difflib
import os
import re
from typing import Any

import jax

from electra_jax.cli import UserError, one_line

# Some of the names that libtpu knows.
EXAMPLES = (
    "v4:2x2x1",
    "v4:2x2x4",
    "v4:4x4x4",
    "v5e:2x2",
    "v5e:4x4",
    "v5e:8x8",
    "v5e:16x16",
    "v5p:2x2x1",
    "v5p:2x2x4",
    "v5p:4x4x4",
    "v5p:4x8x8",
    "v6e:2x2",
    "v6e:4x4",
    "v6e:8x8",
    "v6e:16x16",
    "tpu7x:2x2x1",
    "tpu7x:4x4x4",
)


def offline() -> None:
    """Tells libtpu that this machine has no TPU and no metadata server to ask. To be called before jax uses a device."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # any will do: without one libtpu warns
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")


def devices(name: str) -> tuple[int, list[Any]]:
    """(number of slices, the devices) of "v5e:4x4", or of several slices, "2*v5e:4x4". Raises UserError for an unknown name."""
    offline()
    match = re.fullmatch(r"(?:([1-9]\d*)\*)?((\w+):(\d+(?:x\d+)*))", name)
    if not match:
        raise _unknown(name)
    from jax.experimental import topologies

    slices, options = int(match[1] or 1), {}
    if match[3] == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip
    if match[4] in ("1x1", "1x1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=match[2], num_slices=slices, **options).devices
    except (ModuleNotFoundError, ImportError) as error:
        raise UserError("the TPU's compiler is not installed: pip install 'electra_jax[tpu]'") from error
    except Exception as error:
        if "libtpu" in str(error).lower() and "not" in str(error).lower():
            raise UserError(f"the TPU's compiler cannot be loaded ({one_line(error)[:200]}): pip install 'electra_jax[tpu]'") from error
        raise _unknown(name, one_line(error)) from error
    return slices, list(found)


@contextlib.contextmanager
def quiet():
    """Drops what libtpu writes to file descriptor 2 while it starts: warnings that concern machines with a TPU."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _unknown(name: str, why: str = "") -> UserError:
    near = difflib.get_close_matches(name, EXAMPLES, n=3, cutoff=0.3)
    reason = f" ({why[:160]})" if why else ""
    return UserError(f"topology {name!r} is unknown{reason}: such as {', '.join(near or EXAMPLES[4:8])}, or 2*v5e:4x4 for two slices")
