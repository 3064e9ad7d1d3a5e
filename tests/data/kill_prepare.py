"""launch/prepare.py killed at moments of one's choice, then run to its end."""

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / "prepare.py"), *arguments]


def finish(*arguments: str) -> float:
    """Runs it to its end; returns the seconds it took."""
    start = time.monotonic()
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def kill_and_finish(arguments: list[str], moments: list[Callable[[float], bool]]) -> int:
    """kill -9 at each of the moments, then the same command until it is done; returns how many it hit alive.

    A moment is a function of the seconds since the start: whether it has come.
    """
    hit = 0
    for moment in moments:
        process, start = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), time.monotonic()
        while process.poll() is None:
            if moment(time.monotonic() - start):
                process.kill()
                hit += 1
                break
            time.sleep(0.002)
        process.wait()
    finish(*arguments)
    return hit


def after(secs: float) -> Callable[[float], bool]:
    return lambda elapsed_secs: elapsed_secs >= secs


def files(folder: pathlib.Path, count: int) -> Callable[[float], bool]:
    """When so many files lie in the folder, whatever they are."""
    return lambda _: sum(1 for path in folder.rglob("*") if path.suffix) >= count


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
