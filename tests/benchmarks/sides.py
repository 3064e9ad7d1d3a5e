"""Sides for these tests: what their children import is this alone."""

import os
import pathlib
import tempfile

ENVIRONMENT = {"platform": "cpu", "kind": "cpu", "cores": 2, "instructions": "AVX2", "peak_bfloat16": None, "versions": {"jax": "1.2.3"}}


def counting(fails_at: int = 0, broken: bool = False):
    if broken:
        raise RuntimeError("no such | device")
    print("what a library prints is no answer")
    turns = 0

    def run():
        nonlocal turns
        turns += 1
        if turns == fails_at:
            raise RuntimeError("lost the device")
        return {"turn": turns, "work": 10.0}

    return run


def untidy():
    folder = tempfile.TemporaryDirectory()

    def run():
        pathlib.Path(folder.name, "file").touch()
        return {"left": len(os.listdir(folder.name))}

    return run
