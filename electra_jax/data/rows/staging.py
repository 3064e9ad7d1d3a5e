"""Prepared folders in a bucket, staged to local disk: ArrayRecord reads at random, which a bucket answers too slowly.

A staged folder is named by its manifest's SHA-256, so that whatever is in it belongs to that preparation. Data that is prepared again is
staged beside it. Nothing here deletes old folders.
"""

import errno
import pathlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from electra_jax import gcs
from electra_jax.cli import UserError
from electra_jax.data.rows import records
from electra_jax.files import locked, write_whole

_TOGETHER = 8  # files copied at a time


def local_folder(folder: str, scratch: pathlib.Path) -> str:
    """The folder itself, or the local copy of a gs:// one under `scratch`, made or completed first.

    One process of a machine copies while the others wait. Every file is compared with the store's checksum as it arrives, and the
    shards' sizes with the manifest. Raises UserError where the folder is absent, unfinished or damaged, or the disk too small.
    """
    if not gcs.is_remote(folder):
        return folder
    url = gcs.clean(folder)
    listed = gcs.listing(url)
    if not listed:
        raise UserError(f"{url}: no such folder: name one that launch/prepare.py wrote, copied there")
    if records.MANIFEST not in listed:
        raise records.unfinished(url)
    content = gcs.read(f"{url}/{records.MANIFEST}")
    manifest = records.parse_manifest(content, f"{url}/{records.MANIFEST}")
    shards = {shard["file"]: shard["bytes"] for split in manifest["splits"].values() for shard in split["shards"]}
    for name, size in {**shards, records.TOKEN_COUNTS: None}.items():
        if name not in listed:
            raise records.damaged(f"{url}/{name}", "it is missing")
        if size not in (None, listed[name]["size"]):
            raise records.damaged(f"{url}/{name}", f"it has {listed[name]['size']:,} bytes, not {size:,}")
    wanted = [name for name in listed if name in shards or name == records.TOKEN_COUNTS or name.startswith("tokenizer/")]
    staged = scratch / "data" / f"{url.rsplit('/', 1)[-1]}-{manifest['sha256'][:16]}"
    try:
        staged.mkdir(parents=True, exist_ok=True)
        with locked(staged / ".lock", wait=True):
            for litter in staged.rglob(".*.tmp"):  # of a process that died
                litter.unlink()
            missing = {name: listed[name] for name in wanted if not _is_there(staged / name, listed[name]["size"])}
            if missing:
                _copy(url, staged, missing)
            if not _is_there(staged / records.MANIFEST, len(content)):
                write_whole(staged / records.MANIFEST, content)  # last: the mark that the folder is finished
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the disk is full: {url} does not fit into {staged}: free some space, or choose another --scratch") from error
    return str(staged)


def _is_there(path: pathlib.Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _copy(url: str, staged: pathlib.Path, files: dict[str, dict]) -> None:
    size, free = sum(about["size"] for about in files.values()), shutil.disk_usage(staged).free
    if size > free:
        raise UserError(
            f"{url} needs {size / 1e6:,.0f} MB and {staged} has {free / 1e6:,.0f} MB left: free some space, or choose another --scratch"
        )
    print(f"staging {url}: {size / 1e6:,.1f} MB to {staged}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        try:
            list(pool.map(lambda name: gcs.download(f"{url}/{name}", staged / name, files[name]), files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
