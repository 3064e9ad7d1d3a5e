"""Files in Google Cloud Storage by their gs:// URLs, through gcsfs: where they are, and each failure in one line.

An object store has no folders and no renames: a file appears whole or not at all, a "folder" is the names that begin alike, and to
rename it is to copy and delete every one.
"""

import base64
import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from electra_jax.cli import UserError, one_line
from electra_jax.files import whole_file

SCHEME = "gs://"
INSTALL = "pip install 'electra_jax[gcs]'"
_LOGIN = "log in (gcloud auth application-default login), or have this account given the right"
# TensorStore puts the service's status before its words. Others (NOT_FOUND, DATA_LOSS ...) speak of the files.
_STATUS = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b")
_AGAIN = {"None", "408", "429", *map(str, range(500, 600))}  # the service's own troubles; None: gcsfs's words for a broken transfer
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it is a gs:// URL. Raises UserError for other URLs, which would pass for odd local paths."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(path))
    if scheme is None:
        return False
    if scheme.group() != SCHEME:
        raise UserError(f"{path}: {scheme.group()} is not known here: give a folder, or gs://BUCKET/FOLDER")
    if not re.match(r"gs://[^/]+/+[^/]", os.fspath(path)):
        raise UserError(f"{path}: name a bucket and a folder in it, gs://BUCKET/FOLDER")
    return True


def clean(url: str | os.PathLike) -> str:
    """One spelling for each folder: no slash at its end, none doubled."""
    return SCHEME + re.sub(r"/+", "/", os.fspath(url)[len(SCHEME) :]).strip("/")


def scratch_folder(given: str | os.PathLike | None) -> pathlib.Path:
    """Where local copies of remote files lie: the folder given, or one of this user's own among the temporary files."""
    return pathlib.Path(given or os.path.join(tempfile.gettempdir(), f"electra_jax-{os.getuid()}")).absolute()


def local_name(url: str) -> str:
    """A file name for a URL, the same on every machine, another for every other URL, with the URL's end to be read."""
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', url[len(SCHEME) :])[-60:].strip('-.')}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


@functools.cache
def filesystem() -> Any:
    """The process's connection, Orbax's too. Raises UserError where the extra is missing or the credentials cannot be read."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # else Orbax's paths go through TensorFlow where it happens to be installed
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import google_crc32c  # noqa: F401
    except ImportError as error:
        raise UserError(f"gs:// needs the package {error.name}: {INSTALL}") from error
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log, with traces, what they then raise
    # A listing that is remembered hides what TensorStore or another machine has written since.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with explained(SCHEME):
        return fsspec.filesystem("gcs", finalize_on_close=True)  # as epath asks for it: fsspec gives both the same object


def trouble(error: BaseException | None) -> str | None:
    """Why the store could not be used, in a few words: no connection, no right; None where the files themselves are at fault."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text, code = one_line(error), getattr(error, "code", None)
        module, status = type(error).__module__.split(".")[0], _STATUS.search(text)
        refused = (isinstance(error, OSError) and text.startswith("Forbidden:")) or (module == "gcsfs" and code in (401, 403))
        if refused or (status and status.group() in _REFUSED):
            return f"access is refused ({_short(text)}): {_LOGIN}"
        if str(type(error).__module__).startswith("google.auth"):
            return f"there are no credentials that work ({_short(text)}): {_LOGIN}"
        unreachable = module in ("aiohttp", "requests", "urllib3") or isinstance(error, ConnectionError | TimeoutError)
        if unreachable or status or (module == "gcsfs" and str(code) in _AGAIN):
            return f"the store cannot be reached ({type(error).__name__}: {_short(text)}): wait, or mend the connection"
        error = error.__cause__ or error.__context__
    return None


def _short(text: str) -> str:
    text = re.sub(r" \[http_response.*", "", text)
    return text if len(text) <= 160 else text[:157] + "..."


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Raises UserError, in one line that names the URL, for what `trouble` knows."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if words := trouble(error):
            raise UserError(f"{url}: {words}; then run the same command again") from error
        raise


def listing(url: str) -> dict[str, dict[str, Any]]:
    """{name below the folder: its `size`, `crc32c` ...}, empty where nothing is there.

    Raises UserError where there is no such bucket or access is refused.
    """
    with explained(url):
        try:
            found = filesystem().find(url, detail=True)
        except FileNotFoundError:
            bucket = url[len(SCHEME) :].split("/")[0]
            raise UserError(f"{url}: there is no bucket {bucket}: create it, or mend the name") from None
    start = len(url) - len(SCHEME) + 1
    return {path[start:]: about for path, about in found.items() if not path.endswith("/")}  # "/": a folder that a console made


def read(url: str) -> bytes:
    """A small file. Raises FileNotFoundError where it is not there, and UserError as `explained`."""
    with explained(url):
        return filesystem().cat_file(url)


def download(url: str, path: pathlib.Path, about: dict[str, Any]) -> None:
    """The file, whole or not at all, with the bytes that `listing` tells of. Raises UserError where others arrive, OSError ENOSPC."""
    import google_crc32c

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        with explained(url):
            filesystem().get_file(url, str(temporary))
        crc = google_crc32c.Checksum()
        with open(temporary, "rb") as file:
            while block := file.read(1 << 22):
                crc.update(block)
        if base64.b64encode(crc.digest()).decode() != about["crc32c"]:
            raise UserError(f"{url}: other bytes arrived than lie there: run the same command again")


def upload(path: pathlib.Path, url: str) -> None:
    """The file as it is now, in the place of what was there. Raises UserError as `explained`."""
    with explained(url):
        filesystem().put_file(str(path), url, consistency="md5")
