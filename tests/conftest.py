"""Strictness for every test, and where the larger real data lies."""

import importlib.util
import itertools
import os
import pathlib
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # nothing comes from the user's cache or goes there; runs.py has caches of its own

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


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell without job control starts a background job with SIGINT ignored, and so would be all that the tests start and interrupt."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def real_text(tmp_path_factory) -> pathlib.Path:
    """English that every Python brings: the language reference's topics, 0.7 MB, a topic a document."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    documents = ("\n".join(line.strip() for line in text.splitlines() if line.strip()) for _, text in sorted(topics.items()))
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows(real_text, tmp_path_factory) -> pathlib.Path:
    """A prepared folder of that text: rows of 32, a vocabulary of 600, densely packed."""
    from electra_jax.data.prepare import PrepareOptions, prepare

    output = tmp_path_factory.mktemp("rows") / "topics"
    prepare(
        PrepareOptions(
            inputs=(str(real_text),), output=str(output), tokenizer="wordpiece", vocab_size=600, length=32, packing="dense", heldout=0.1
        )
    )
    return output


@pytest.fixture(scope="session")
def gcs():
    """The stand-in for Google Cloud Storage; this process and those that it starts find it in the place of the real one."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed: pip install 'electra_jax[gcs]'")
    import fsspec

    from tests.gcs_server import serve

    with serve() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # read from the environment when fsspec was imported
        yield server


_BUCKETS = itertools.count()


@pytest.fixture
def bucket(gcs) -> str:
    """The name of a new one."""
    name = f"bucket-{next(_BUCKETS)}"
    gcs.buckets[name] = {}
    yield name
    gcs.on_write, gcs.read_only, gcs.forbidden = lambda name: None, False, None
