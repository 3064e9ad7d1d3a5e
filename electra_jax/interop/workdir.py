"""Our own format: a workdir, or one of its steps, read without the config that made it; and a model written as one."""

import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax import gcs
from electra_jax.cli import UserError
from electra_jax.data import tokenizers
from electra_jax.files import read_ordinary
from electra_jax.interop import names
from electra_jax.interop.model import NETWORKS, Model, Slots, check_arrays, check_vocabulary
from electra_jax.models import heads
from electra_jax.models.config import ElectraConfig
from electra_jax.store import apart
from electra_jax.store.checkpoints import Checkpoints
from electra_jax.store.names import CHECKPOINTS, CONFIG, METRICS, MODEL, TOKENIZER
from electra_jax.watch.telemetry import parse_line

MOMENT = re.compile(r"^(opt_state/(?:.*/)?)(mu|nu)/(.+)$")


def place_of(path: str) -> tuple[str, int | None] | None:
    """(the folder or gs:// URL of the checkpoints, the step asked for) where `path` is a workdir, its checkpoints/, or one step of it.

    Of a workdir where a fine-tuning is complete they are those of the model that it left.
    """
    if gcs.is_remote(path):
        url = gcs.clean(path)
        parent, _, last = url.rpartition("/")
        if last.isdigit():
            return parent, int(last)
        if last == CHECKPOINTS:
            return url, None
        with contextlib.suppress(FileNotFoundError):
            gcs.read(f"{url}/{MODEL}/{CONFIG}")
            url = f"{url}/{MODEL}"
        return f"{url}/{CHECKPOINTS}", None
    folder = pathlib.Path(path)
    for place in (folder / MODEL / CHECKPOINTS, folder / CHECKPOINTS):
        if place.is_dir():
            return str(place), None
    if folder.name == CHECKPOINTS and folder.is_dir():
        return str(folder), None
    if folder.name.isdigit() and (folder / "state").is_dir() and (folder / "metadata").is_dir():
        return str(folder.parent), int(folder.name)
    return None


def refuse_unfinished(config: Any, path: str, workdir: str) -> None:
    """UserError if the config is that of a fine-tuning: its checkpoints hold the states of all seeds, and its model is in model/."""
    if isinstance(config, dict) and "finetune" in config and "task" in config:
        if not gcs.is_remote(workdir) and (pathlib.Path(workdir) / MODEL / CHECKPOINTS).is_dir():
            raise UserError(f"{path}: these are the checkpoints of a fine-tuning, with all its seeds: name its workdir, {workdir}")
        raise UserError(
            f"{path}: its fine-tuning is not complete, there is no {MODEL}/ in it yet: run launch/finetune.py with this workdir again"
        )


def read(path: str, with_slots: bool = True) -> Model:
    """The newest whole step, or the one that `path` names: parameters, Adam's slots, tokenizer, and what the run's files say of it."""
    checkpoints, step = place_of(path)
    wanted = "params/|opt_state/" if with_slots else "params/"
    found = Checkpoints(checkpoints, description={}).read(lambda name: re.match(wanted, name) is not None, step)
    if found is None:
        which = "" if step is None else f" of step {step}"
        other = ", or copy a model of another format here first" if gcs.is_remote(path) else ""
        raise UserError(f"{path}: there is no checkpoint in it{which}: name a workdir that has one{other}")
    arrays, run = {name: np.asarray(x) for name, x in found.state.items()}, found.description
    above = checkpoints.rpartition("/")[0] if gcs.is_remote(path) else str(pathlib.Path(checkpoints).absolute().parent)
    refuse_unfinished(run["config"], path, above)
    config = _config(run["config"]["model"], path)
    files = _Files(above)
    tokenizer = files.tokenizer()
    if tokenizer is not None and tokenizer.sha256 != run.get("identity", {}).get("tokenizer", tokenizer.sha256):
        raise UserError(f"{path}: the tokenizer there is not the one that the run was trained with: put that there again")
    check_vocabulary(tokenizer, config, path)
    about = {
        "source": path,
        "name": run["config"].get("preset"),
        # Step 0 marks a model that was converted from another program: how long it was trained there is unknown.
        "step": found.step or None,
        "metrics": files.metrics(found.step) or run.get("metrics"),
        "data": run.get("data"),
        "config": run["config"],
        "training": run.get("training"),
        "labels": run.get("labels"),
        "task": run.get("task"),
    }
    notes = () if tokenizer else (f"{path}: there is no tokenizer in it: copy one from the prepared data to its tokenizer/",)
    params = {name.removeprefix("params/"): x for name, x in arrays.items() if name.startswith("params/")}
    known = ("embeddings", *NETWORKS, *heads.TASKS)
    if others := sorted({name.split("/")[0] for name in params} - set(known)):
        if not any(name.startswith("discriminator/") for name in params):
            raise UserError(
                f"{path}: its objective has networks of its own, {', '.join(others)}: what is read here is a {' and a '.join(NETWORKS)}"
            )
        notes += (f"{path}: {', '.join(others)} of its objective are left out",)
        params = {name: x for name, x in params.items() if name.split("/")[0] in known}
        arrays = {name: x for name, x in arrays.items() if name in params}  # the optimizer's memory is of all of them
    model = Model(config, names.nested(params), tokenizer, _slots(arrays), about=about, notes=notes)
    check_arrays(model, path)
    return model


def _config(fields: Mapping[str, Any], where: str) -> ElectraConfig:
    """For any machine: the type of products and the path of attention that the run's machine had are not the model's.

    Products are then in the type of the parameters. Configs of earlier versions have one factor for both networks' feed-forward layers,
    `ffn_factor`.
    """
    try:
        fields = {**fields, "attention": "auto", "dtype": fields["param_dtype"]}
        factor = fields.pop("ffn_factor", 4)
        config = ElectraConfig(**fields)
        if factor == 4:
            return config
        sizes = {"ffn_size": factor * config.hidden_size, "generator_ffn_size": factor * config.generator.hidden_size}
        return dataclasses.replace(config, **sizes)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{where}: its config is not one of this version's ({error}): read it with the version that wrote it") from None


def _slots(arrays: Mapping[str, np.ndarray]) -> Slots | None:
    moments: dict[str, dict[str, np.ndarray]] = {"mu": {}, "nu": {}}
    count = 0
    for name, x in arrays.items():
        if match := MOMENT.match(name):
            moments[match[2]][match[3]] = x
            count = max(count, int(arrays.get(f"{match[1]}count", 0)))
    return Slots(moments["mu"], moments["nu"], count) if moments["mu"] else None


class _Files:
    """What lies beside the checkpoints, on a disk or in a bucket."""

    def __init__(self, workdir: str):
        self._workdir = workdir

    def _read(self, name: str) -> bytes | None:
        try:
            if gcs.is_remote(self._workdir):
                return gcs.read(f"{self._workdir}/{name}")
            return read_ordinary(pathlib.Path(self._workdir) / name)
        except FileNotFoundError:
            return None

    def metrics(self, step: int) -> dict[str, float]:
        """The last held-out figures up to `step`."""
        last: dict[str, float] = {}
        for line in (self._read(METRICS) or b"").splitlines():
            values = parse_line(line) or _before_checks(line)
            if values and values["step"] <= step and (held := {k: v for k, v in values.items() if k.startswith("eval/")}):
                last = held
        return last

    def tokenizer(self) -> tokenizers.Tokenizer | None:
        found = {name: data for name in tokenizers.file_names() if (data := self._read(f"{TOKENIZER}/{name}")) is not None}
        if not found:
            return None
        with tempfile.TemporaryDirectory() as folder:
            for name, data in found.items():
                (pathlib.Path(folder) / name).write_bytes(data)
            try:
                return tokenizers.load(folder)
            except UserError as error:  # it names the copy
                raise UserError(str(error).replace(folder, f"{self._workdir}/{TOKENIZER}")) from None


def _before_checks(line: bytes) -> dict[str, Any] | None:
    """A line of a metrics.jsonl that was written before lines had a check."""
    try:
        values = json.loads(line)
        return None if "crc32" in values else {"step": int(values["step"])} | {k: float(v) for k, v in values.items() if k != "step"}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def write(folder: pathlib.Path, model: Model) -> None:
    """The model as one step of a workdir, without a run: `init_from` and `read` open it. The folder is there and empty."""
    state: dict[str, Any] = {"params": model.params}
    if model.slots:
        adam = {"mu": names.nested(model.slots.mu), "nu": names.nested(model.slots.nu), "count": np.int32(model.slots.count)}
        state["opt_state"] = {"adam": adam}
    fields = dataclasses.asdict(model.config)
    config = {"preset": model.about.get("name"), "model": fields}
    if objective := (model.about.get("config") or {}).get("objective"):
        config["objective"] = objective  # which says what the heads mean
    description = {
        "config": config,
        "identity": {"tokenizer": model.tokenizer.sha256} if model.tokenizer else {},
        "parameters": {name: int(sum(x.size for x in names.flat(tree).values())) for name, tree in model.params.items()},
        "training": {"converted from": model.about.get("source"), **(model.about.get("training") or {})},
        "data": model.about.get("data"),
        "labels": model.about.get("labels"),
        "task": model.about.get("task"),
        "metrics": model.about.get("metrics"),
    }
    apart.save(folder / CHECKPOINTS, int(model.about.get("step") or 0), state, description)
    if model.tokenizer is not None:
        model.tokenizer.save(folder / TOKENIZER)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
