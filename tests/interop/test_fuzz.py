"""Mutated files through the readers: each opens, or is refused in one line; nothing else is raised, run, or left behind."""

import io
import json
import os
import pathlib
import pickle
import random
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from electra_jax.cli import UserError
from electra_jax.interop import formats
from tests.interop.models import model
from tests.interop.test_formats import vocabulary

TF1 = pathlib.Path(__file__).parent / "tf1"


class Evil:
    """What a pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def cut(data: bytes, r: random.Random) -> bytes:
    return data[: r.randrange(len(data) + 1)]


def flip(data: bytes, r: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(r.choice((1, 1, 3, 30))):
        # The headers, where a byte means most, as often as all the rest.
        at = r.randrange(min(len(changed), r.choice((16, 400, len(changed)))))
        changed[at if r.random() < 0.7 else -1 - at] ^= 1 << r.randrange(8)
    return bytes(changed)


def swell(data: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(data) + 1)
    return data[:at] + r.randbytes(r.choice((1, 8, 1000))) + data[at:]


def odd(r: random.Random):
    numbers = (-1, 0, 1, 3, 10**12, 2**70, 0.5, float("nan"), True)
    return r.choice((*numbers, None, "", "x", [], {}, [[]], "gelu_new", ["ElectraModel"], {"0": 1}))


def change_json(path: pathlib.Path, r: random.Random) -> None:
    fields = json.loads(path.read_text())
    for _ in range(r.choice((1, 2, 5))):
        place, key = fields, r.choice(list(fields))
        if isinstance(place[key], dict) and place[key] and r.random() < 0.7:
            place, key = place[key], r.choice(list(place[key]))
        if r.random() < 0.2:
            del place[key]
        else:
            place[key] = odd(r)
    path.write_text(json.dumps(fields))


def change_tensors(path: pathlib.Path, r: random.Random) -> None:
    tensors = safetensors.numpy.load_file(path)
    name = r.choice(list(tensors))
    x = tensors.pop(name)
    choice = r.randrange(6)
    if choice == 0:
        tensors[r.choice((name + "x", name[1:], "", "a/b", name.replace("layer.0", "layer.99999999"), "electra." + name))] = x
    elif choice == 1:
        tensors[name] = np.zeros(r.choice(((), (0,), (1,), x.shape + (1,), x.shape[::-1], tuple(n + 1 for n in x.shape))), x.dtype)
    elif choice == 2:
        tensors[name] = x.astype(r.choice((np.float16, np.float64, np.int8, np.uint64, bool)))
    elif choice == 3:
        tensors[name], tensors["generator_lm_head.weight"] = x, x
    elif choice == 4:
        tensors[name] = np.full_like(x, np.nan)
    safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)


def hostile_pickle(folder: pathlib.Path, r: random.Random) -> None:
    (folder / "model.safetensors").unlink()
    plain = pickle.dumps({"electra.embeddings.word_embeddings.weight": Evil()}, protocol=r.choice((0, 2, 4)))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3\n")
    content = r.choice((plain, data.getvalue(), b"", b"\x80\x02."))
    (folder / "pytorch_model.bin").write_bytes(content if r.random() < 0.7 or not content else flip(content, r))


def mutate(folder: pathlib.Path, r: random.Random) -> tuple[pathlib.Path, str]:
    """(the folder of the file that was changed, what was done)."""
    path = r.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("README.md", "checkpoint")))
    kinds = ["cut", "flip", "flip", "swell", "remove", "rename"]
    kinds += ["json"] * 6 if path.name == "config.json" else ["tensors", "tensors", "pickle"] if path.suffix == ".safetensors" else []
    kind = r.choice(kinds)
    if kind in ("cut", "flip", "swell"):
        path.write_bytes({"cut": cut, "flip": flip, "swell": swell}[kind](path.read_bytes(), r))
    elif kind == "remove":
        path.unlink()
    elif kind == "rename":
        path.rename(path.with_name(r.choice(sorted(p.name for p in folder.rglob("*") if p.is_file()))))
    elif kind == "json":
        change_json(path, r)
    elif kind == "tensors":
        change_tensors(path, r)
    else:
        hostile_pickle(path.parent, r)
    return path.parent, f"{kind} {path.name}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    formats.write(folder / "huggingface", model(tokenizer=vocabulary()), "huggingface")
    shutil.copytree(TF1, folder / "tf1")
    return folder


def check(sources, tmp_path, monkeypatch, seeds):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    opened = 0
    for seed in seeds:
        r = random.Random(seed)
        folder = tmp_path / "mutated"
        shutil.copytree(sources / r.choice(("huggingface", "huggingface", "tf1")), folder)
        changed, what = mutate(folder, r)
        source = r.choice((folder, changed))
        try:
            formats.convert(str(source), str(tmp_path / "out"), format="huggingface")
            opened += 1
        except UserError as error:
            assert "\n" not in str(error), (seed, what)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {what}: {type(error).__name__}: {error}") from error
        else:
            formats.read(tmp_path / "out")  # whole
        assert not list(pathlib.Path().iterdir()), (seed, what)  # nothing was run here
        left = {path.name for path in tmp_path.iterdir()} - {"here", "mutated", "out"}
        assert not left, (seed, what, left)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    return opened


def test_some_mutated_files(sources, tmp_path, monkeypatch):
    assert 20 < check(sources, tmp_path, monkeypatch, range(150)) < 130  # some open: a flipped weight is another weight


@pytest.mark.slow
def test_two_thousand_mutated_files(sources, tmp_path, monkeypatch):
    opened = check(sources, tmp_path, monkeypatch, range(1000, 3000))
    print(f"2,000 mutated folders: {opened} opened, {2000 - opened} refused in one line")
