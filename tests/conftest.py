"""Strictness for every test, and where the larger real data lies."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data sets (../shared/data beside the project) is not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def strict_shapes():
    """A silent broadcast of [N] against [N, M] is a bug; jax is imported late so that data tests stay without it."""
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
