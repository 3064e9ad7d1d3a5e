"""The files of weights in a folder of transformers: safetensors in one file or in parts, and PyTorch's pickle."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors

from electra_jax.cli import UserError, one_line
from electra_jax.files import read_ordinary

WEIGHTS, INDEX, TORCH_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
ALL = (WEIGHTS, INDEX, TORCH_WEIGHTS)  # the first that is there is read

Shapes = dict[str, tuple[int, ...]]
Tensor = Callable[[str], np.ndarray]


@contextlib.contextmanager
def opened(folder: pathlib.Path, name: str | None = None) -> Iterator[tuple[Shapes, Tensor]]:
    """({name: shape}, name -> its values in float32) of the weights in `folder`, or of its safetensors file `name`.

    The files are open until the context ends. UserError, in one line, for whatever is wrong with them.
    """
    if name is None and not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        yield _torch_weights(folder / TORCH_WEIGHTS)
        return
    home, shapes = {}, {}
    with contextlib.ExitStack() as stack:
        for path in [folder / name] if name else _parts(folder):
            try:
                if path.exists() and not path.is_file():
                    raise OSError("it is no ordinary file")
                file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
                for key in file.keys():
                    home[key], shapes[key] = file, tuple(file.get_slice(key).get_shape())
            except (OSError, safetensors.SafetensorError, ValueError) as error:
                raise UserError(f"{path}: no whole safetensors file ({one_line(error)}): copy it anew") from None

        def tensor(key: str) -> np.ndarray:
            try:
                x = home[key].get_tensor(key)
                if not np.issubdtype(x.dtype, np.floating) and x.dtype.name != "bfloat16":
                    raise ValueError(f"its type is {x.dtype}, which no parameter has")
                return x.astype(np.float32)
            except Exception as error:  # a type that numpy has not, a file that shrank
                raise UserError(f"{folder}: {key} cannot be read ({one_line(error)}): copy the file anew") from None

        yield shapes, tensor


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file of JSON. UserError where there is none."""
    try:
        fields = json.loads(read_ordinary(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}: name a folder that transformers wrote") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(error)}): copy the file anew") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object: copy the file anew")
    return fields


def _parts(folder: pathlib.Path) -> list[pathlib.Path]:
    """The one file, or those that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    files = read_json(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and pathlib.PurePath(f).name == f for f in files.values()):
        raise UserError(f"{folder / INDEX}: it does not say which file holds which tensor: copy the file anew")
    return [folder / file for file in sorted(set(files.values()))]


def _torch_weights(path: pathlib.Path) -> tuple[Shapes, Tensor]:
    """A pickle of PyTorch's, through its loader that runs no code. UserError where PyTorch is missing or refuses."""
    try:
        import torch
    except ImportError:
        words = f"a pickle, which PyTorch alone opens safely: pip install torch, or save it as {WEIGHTS} elsewhere"
        raise UserError(f"{path}: {words}") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tuple(x.shape) for name, x in tensors.items() if isinstance(x, torch.Tensor)}
        if any(not isinstance(name, str) for name in shapes):
            raise ValueError("its keys are no names")
    except Exception as error:  # whatever PyTorch's loader says of hostile or damaged bytes
        words = one_line(error)
        words = words if len(words) <= 200 else words[:197] + "..."
        raise UserError(f"{path}: PyTorch's weights-only loader refuses it ({words}): get a {WEIGHTS} of the model") from None
    if not shapes:
        listed = ", ".join(str(name) for name in list(tensors)[:4])
        raise UserError(f"{path}: it names no tensors ({listed}): save model.state_dict() itself")

    def tensor(name: str) -> np.ndarray:
        try:
            if not tensors[name].is_floating_point():
                raise ValueError(f"its type is {tensors[name].dtype}, which no parameter has")
            return tensors[name].detach().to(torch.float32).numpy()
        except Exception as error:  # sparse, quantized, without values
            raise UserError(f"{path}: {name} cannot be read ({one_line(error)}): save it as an ordinary tensor") from None

    return shapes, tensor
