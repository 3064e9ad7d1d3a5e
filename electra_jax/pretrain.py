"""Pretraining: config -> model, objective, data, optimizer -> train.loop."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from electra_jax import gcs, rng
from electra_jax.cli import Preempted, UserError
from electra_jax.data import tokenizers as tokenizer
from electra_jax.data.rows import loader, records, staging
from electra_jax.interop import formats, start
from electra_jax.interop.model import NETWORKS
from electra_jax.interop.workdir import TOKENIZER
from electra_jax.models import attention, costs
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import electra, masking
from electra_jax.objectives import electra_health as health
from electra_jax.options import one_of
from electra_jax.parallel import executors, mesh, multihost, sharding
from electra_jax.store import workdirs
from electra_jax.store.checkpoints import Checkpoints
from electra_jax.train import evaluation, loop, optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from electra_jax.types import Array, Batch, Objective
from electra_jax.watch import clock, report
from electra_jax.watch.guard import NonFinitePolicy, PreemptionSignal, ProfilerWindow, Watchdog
from electra_jax.watch.telemetry import Silent, Telemetry, format_count, format_secs

EXPECTED_UTILISATION = 0.5  # of the peak, for the hours that the plan expects; the progress bar shows the measured one


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run found. `metrics` are the last `eval/*`; `examples` as train.report wants them."""

    steps: int
    metrics: dict[str, float]
    examples: list[dict]
    report: str  # where it lies: a path, or a gs:// URL


@dataclasses.dataclass(frozen=True)
class Data:
    stream: loader.Stream
    tokenizer: tokenizer.Tokenizer
    vocabulary: masking.Vocabulary
    heldout: list[tuple[Batch, np.ndarray]]
    unigram_entropy: float


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that follows from the config, the data and the devices, before anything is compiled or written."""

    mesh: jax.sharding.Mesh
    executor: str
    platform: mesh.Platform
    model: ElectraConfig
    data: Data
    objective: Objective
    schedule: ScheduleConfig
    rule: optax.GradientTransformation
    root: Array


def pretrain(config: Mapping[str, Any], workdir: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Result:
    """Trains in `workdir`, or goes on training there, until `config.train.steps`; `config` is configs/pretrain.py's.

    `workdir` and the folders of `config.data.path` may be gs:// URLs. Their local copies lie under `scratch`, by default among the
    temporary files, and may be deleted between runs: the bucket has all that a resume needs.
    Where several processes run (parallel.multihost.connected), each calls it with the same arguments.

    Raises UserError for what a person must mend, and Preempted after a stop signal, once everything is saved.
    """
    config = json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config))
    multihost.agree("config", _sha256(config), "give every process the same command")
    multihost.agree("number of devices", str(jax.local_device_count()), "give every process as many")
    with PreemptionSignal() as preemption, contextlib.ExitStack() as stack:
        lead = multihost.is_lead()
        place = multihost.together(lambda: stack.enter_context(workdirs.opened(workdir, scratch)) if lead else workdirs.visited(workdir))
        workdirs.check_shared(place)
        return _pretrain(config, place, gcs.scratch_folder(scratch), preemption)


def setup(config: dict[str, Any], scratch: pathlib.Path) -> Setup:
    """Raises UserError where the parts do not fit one another."""
    for name in ("init_network", "init_slots"):
        if config[name] and not config["init_from"]:
            raise UserError(f"{name} is {config[name]} and there is no init_from: name the model to begin with, or leave it out")
    section = config["parallel"]
    devices = mesh.make_mesh(section["slices"], section["data"], section["fsdp"])
    executor = executors.choose(section["executor"], devices)
    executors.check_batch(devices, config["train"]["batch_rows"], config["train"]["accumulation_steps"])
    platform = mesh.Platform.of(devices)
    model = model_config(config, platform)
    data = open_data(config, model, devices.size, scratch)
    objective = make_objective(config, model, data.vocabulary, platform)
    schedule = schedule_config(config)
    rule = optimizer.make_optimizer(optimizer_config(config), schedule, config["train"]["steps"])
    return Setup(devices, executor, platform, model, data, objective, schedule, rule, rng.root_key(config["seed"]))


def make_step(config: dict[str, Any], objective: Objective, rule, schedule, root: Array, executor: str) -> Callable:
    """The train step that the executor runs."""
    peak_rate, factor = config["optimizer"]["learning_rate"], optimizer.schedule(schedule, config["train"]["steps"])
    return step.make_train_step(
        objective,
        rule,
        root,
        config["train"]["accumulation_steps"],
        reduce=executors.reduction(executor),
        learning_rate=lambda at: peak_rate * factor(at),
    )


def make_init(objective: Objective, rule, devices: jax.sharding.Mesh, root: Array) -> tuple[Callable, Any]:
    """(init(root) -> the first state, born where it belongs; the state as shapes with their shardings)."""
    shapes = jax.eval_shape(lambda key: step.init_state(key, objective, rule), root)
    shardings = sharding.shardings(shapes, devices)
    init = jax.jit(lambda key: step.init_state(key, objective, rule), out_shardings=shardings)
    return init, jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def _pretrain(config: dict[str, Any], place: workdirs.Workdir, scratch: pathlib.Path, preemption: PreemptionSignal) -> Result:
    run_clock, train, workdir = clock.Clock(), config["train"], place.path
    with run_clock.section("init"):
        parts = multihost.together(lambda: setup(config, scratch))
        devices, platform, model, data, objective = parts.mesh, parts.platform, parts.model, parts.data, parts.objective
        identity = {"data": [manifest["sha256"] for manifest in data.stream.manifests], "tokenizer": data.tokenizer.sha256}
        multihost.agree("data set", _sha256(identity), "give every host the same prepared folders")
        whole_config = {**config, "identity": identity}
        multihost.together(lambda: workdirs.check_config(workdir, whole_config, place.name))
        init, abstract_state = multihost.together(lambda: make_init(objective, parts.rule, devices, parts.root))
        summaries = [records.summary(manifest) for manifest in data.stream.manifests]
        description = {"config": config, "identity": identity, "parameters": costs.num_params(model), "data": summaries}
        checkpoints = Checkpoints(
            place.checkpoints,
            keep=config["checkpoint"]["keep"],
            keep_every_steps=config["checkpoint"]["keep_every_steps"],
            description=description,
        )
        begin = {}, []
        if config["init_from"] and checkpoints.latest_step is None:
            begin = multihost.together(lambda: first_values(config, parts, abstract_state))
    multihost.say_once("compiling the step (the first start takes a minute or so)")
    with run_clock.section("compile"):
        body = make_step(config, objective, parts.rule, parts.schedule, parts.root, parts.executor)
        rows = abstract_batch(train["batch_rows"], data.stream.length)
        program = multihost.together(lambda: executors.compile_step(body, abstract_state, rows, devices, parts.executor))
    with run_clock.section("init"):
        dtype = model.dtype
        run_clock.flops_per_step = objective.flops(train["batch_rows"])
        peak = clock.peak_flops(platform.device_kind, dtype)
        run_clock.peak_flops_per_sec = peak * devices.size if peak else multihost.count() * clock.measure_matmul_peak(dtype)
        restored = checkpoints.restore(abstract_state)
        start_step = restored.step if restored else 0
        if preemption.requested and multihost.count() == 1:  # several agree on a step to stop after, the first at the earliest
            raise Preempted(f"stopped before step {start_step + 1}: the same command starts it")
        if start_step > train["steps"]:
            raise UserError(f"{place.name} is at step {start_step} already, past train.steps={train['steps']}: raise it")
        if multihost.is_lead():
            workdirs.write_config(workdir, whole_config)  # last of the checks: a mistake must not claim the folder
            data.tokenizer.save(workdir / TOKENIZER)  # it travels with the weights
            telemetry = Telemetry(workdir, total_steps=train["steps"], start_step=start_step, tensorboard=config["log"]["tensorboard"])
        else:
            telemetry = Silent()
        if restored:
            run_clock.from_dict(restored.clock)
        run_clock.resumed(start_step, telemetry.reached)
        if restored or telemetry.reached.step > start_step:
            telemetry.write(start_step, run_clock.summary())  # so that sessions which die before a checkpoint add up
        state = restored.state if restored else start.placed(init(parts.root), begin[0])
        for line in (*plan_lines(config, parts, program, run_clock, start_step), *begin[1]):
            telemetry.note(line)
        place.publish()  # now, not at the first save: what may not be written there should be known before hours of training

    heldout = [mesh.to_devices(batch, devices) for batch in data.heldout]
    with run_clock.section("compile"):  # now, and all before any starts: a peer that compiles for half a minute would be taken for dead
        eval_step = jax.jit(evaluation.make_eval_step(objective, parts.root), out_shardings=mesh.replicated(devices))
        eval_step = mesh.on_mesh(eval_step.lower, devices)(state.params, *heldout[0])
        eval_step = eval_step.compile(compiler_options=executors.COMPILER_OPTIONS.get(platform.name))
        multihost.meet("ready")
    warned: set[str] = set()
    last: dict[str, float] = {}

    def evaluate(state, at_step: int) -> dict[str, float]:
        metrics = evaluation.evaluate(eval_step, state.params, heldout, objective.scales)
        metrics["eval/unigram_entropy"] = data.unigram_entropy
        last.update(metrics)
        telemetry.note(
            f"step {at_step}: held-out MLM loss {metrics['eval/mlm_loss']:.3f} (word frequencies alone: {data.unigram_entropy:.3f}), "
            f"RTD AUC {metrics['eval/rtd_auc']:.3f}, accuracy {metrics['eval/rtd_accuracy']:.3f} "
            f"(calling nothing replaced: {metrics['eval/majority_accuracy']:.3f})"
        )
        found = dict(health.warnings(metrics, step=at_step, warmup_steps=parts.schedule.warmup_steps, total_steps=train["steps"]))
        for name in found.keys() - warned:
            telemetry.note(f"warning: {found[name]}")
        warned.clear()
        warned.update(found)
        return metrics

    batches = loader.batches(
        data.stream, start_step=start_step, global_batch=train["batch_rows"], rows=mesh.host_rows(devices, train["batch_rows"])
    )
    services = loop.Services(
        checkpoints=checkpoints,
        telemetry=telemetry,
        clock=run_clock,
        watchdog=Watchdog(train["hang_secs"]),
        preemption=preemption,
        non_finite=NonFinitePolicy(
            train["max_non_finite_steps"], batch_rows=train["batch_rows"], latest_step=lambda: checkpoints.latest_step
        ),
        profiler=ProfilerWindow(workdir / "profile", *config["log"]["profile_steps"]),
        publish=place.publish,
    )
    intervals = loop.Intervals(
        log_steps=config["log"]["every_steps"],
        eval_steps=config["eval"]["every_steps"],
        checkpoint_steps=config["checkpoint"]["every_steps"],
    )

    def write_report(examples: list[dict]) -> str:
        summary = {"preset": config["preset"], "steps": train["steps"], **last}
        name = place.name.rsplit("/", 1)[-1]
        path = report.write(workdir, title=f"{config['preset']} in {name}", summary=summary, examples=examples)
        return f"{place.name}/{path.name}"

    try:
        state = loop.train(
            state,
            program.run,
            map(program.place, batches),
            total_steps=train["steps"],
            tokens_per_step=train["batch_rows"] * data.stream.length,
            intervals=intervals,
            evaluate=evaluate,
            services=services,
        )
        checkpoints.close()
    except Preempted:
        if multihost.is_lead():
            write_report([])
        raise
    except BaseException:
        checkpoints.leave()
        raise
    if not last:  # the run was complete before this command
        evaluate(state, train["steps"])
    examples = marked_examples(eval_step, state.params, data, heldout[0])
    return Result(train["steps"], dict(last), examples, write_report(examples) if multihost.is_lead() else place.name)


def first_values(config: Mapping[str, Any], parts: Setup, abstract_state: Any) -> tuple[dict[str, np.ndarray], list[str]]:
    """What config.init_from gives the first state, and lines for a person: see interop.start."""
    if config["init_network"]:
        one_of("init_network", config["init_network"], NETWORKS)
    source = formats.read(config["init_from"], network=config["init_network"], with_slots=config["init_slots"])
    found, notes = start.values(
        abstract_state, parts.model, source, parts.data.tokenizer, with_slots=config["init_slots"], seed=config["seed"]
    )
    return found, [*notes, *source.notes]


def model_config(config: Mapping[str, Any], platform: mesh.Platform) -> ElectraConfig:
    fields = dict(config["model"])
    if fields["dtype"] == "auto":
        fields["dtype"] = platform.dtype
    if "float64" in (fields["dtype"], fields["param_dtype"]) and not jax.config.jax_enable_x64:
        raise UserError("float64 needs JAX_ENABLE_X64=1 in the environment; or choose model.dtype=float32")
    wanted = fields.pop("attention")
    networks = ElectraConfig(**fields).discriminator, ElectraConfig(**fields).generator
    return ElectraConfig(**fields, attention=attention.choose(wanted, platform.name, config["data"]["length"], networks))


def optimizer_config(config: Mapping[str, Any]) -> OptimizerConfig:
    fields = dict(config["optimizer"])
    frozen = lambda value: tuple(map(frozen, value)) if isinstance(value, list) else value  # noqa: E731
    rates = frozen(fields["rates"])
    return OptimizerConfig(**fields | {"rates": rates})


def schedule_config(config: Mapping[str, Any]) -> ScheduleConfig:
    return ScheduleConfig(**config["schedule"])


def make_objective(config: Mapping[str, Any], model: ElectraConfig, vocabulary: masking.Vocabulary, platform: mesh.Platform) -> Objective:
    weights = electra.ElectraWeights(config["objective"]["mlm_weight"], config["objective"]["rtd_weight"])
    masks = masking.MaskingConfig(**config["masking"], slots_multiple=platform.slots_multiple)
    return electra.make(model, masks, vocabulary, config["data"]["length"], weights)


def open_data(config: Mapping[str, Any], model: ElectraConfig, num_devices: int, scratch: pathlib.Path) -> Data:
    """The rows, their tokenizer and the held-out set, in batches that `num_devices` divide; folders in a bucket are staged under `scratch`.

    Raises UserError where they do not fit the config.
    """
    section, train = config["data"], config["train"]
    folders = [folder for folder in section["path"].split(",") if folder]
    if not folders:
        raise UserError("no data: --config.data.path=FOLDER, a folder that launch/prepare.py wrote (several: A,B)")
    for name, value, least in (
        ("eval.batch_rows", config["eval"]["batch_rows"], 1),
        ("eval.max_rows", config["eval"]["max_rows"], 0),
        ("eval.every_steps", config["eval"]["every_steps"], 0),
        ("log.every_steps", config["log"]["every_steps"], 0),
        ("checkpoint.every_steps", config["checkpoint"]["every_steps"], 0),
        ("checkpoint.keep_every_steps", config["checkpoint"]["keep_every_steps"], 0),
        ("train.max_non_finite_steps", train["max_non_finite_steps"], 0),
        ("train.hang_secs", train["hang_secs"], 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"seed is {config['seed']}: it must be from 0 to 2**32 - 1")
    window = config["log"]["profile_steps"]
    if len(window) != 2 or not all(isinstance(number, int) for number in window):
        raise UserError(f"log.profile_steps is {tuple(window)}: it must be two step numbers, (first, last)")
    weights = section["weights"]
    if weights is not None and not all(isinstance(weight, int | float) for weight in weights):
        raise UserError(f"data.weights is {tuple(weights)}: it must be one number for each folder, such as (0.7, 0.3)")
    folders = [staging.local_folder(folder, scratch) for folder in folders]
    stream = loader.Stream(folders, weights, config["seed"])
    manifest = stream.manifests[0]
    if stream.length != section["length"]:
        raise UserError(
            f"the rows in {folders[0]} are {stream.length} tokens long and the config says {section['length']}: "
            f"--config.data.length={stream.length}, or prepare the data again with --length={section['length']}"
        )
    vocab_size = manifest["tokenizer"]["vocab_size"]
    if vocab_size != model.vocab_size:
        raise UserError(
            f"the rows in {folders[0]} were made with a vocabulary of {vocab_size} and the config says {model.vocab_size}: "
            f"--config.model.vocab_size={vocab_size}, or prepare the data again with the other tokenizer"
        )
    if model.positions != "rotary" and stream.length > model.max_length:
        raise UserError(
            f"rows of {stream.length} tokens need as many positions and model.max_length is {model.max_length}: "
            f"--config.model.max_length={stream.length}"
        )
    tokens = tokenizer.load(pathlib.Path(folders[0]) / "tokenizer")
    if tokens.sha256 != manifest["tokenizer"]["sha256"]:
        raise UserError(f"{folders[0]}/tokenizer is not the tokenizer that made the rows there: prepare the data again")
    vocabulary = masking.Vocabulary(tokens.cls_id, tokens.sep_id, tokens.mask_id, tokens.word_starts)
    heldout_rows = -(-config["eval"]["batch_rows"] // num_devices) * num_devices
    heldout = list(loader.heldout_batches(folders, batch=heldout_rows, max_rows=config["eval"]["max_rows"] or None))
    counts_V = sum(records.load_token_counts(folder) for folder in folders)
    heldout_counts_V = np.zeros_like(counts_V)
    for batch, valid_B in heldout:
        heldout_counts_V += np.bincount(batch.tokens[valid_B].ravel(), minlength=vocab_size)
    special = [tokens.pad_id, tokens.cls_id, tokens.sep_id, tokens.mask_id]
    counts_V[special], heldout_counts_V[special] = 0, 0
    return Data(stream, tokens, vocabulary, heldout, evaluation.unigram_entropy(counts_V, heldout_counts_V))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def abstract_batch(rows: int, length: int) -> Batch:
    table = jax.ShapeDtypeStruct((rows, length), np.int32)
    return Batch(table, table, table, table, jax.ShapeDtypeStruct((rows,), np.int32))


def plan_lines(config, parts: Setup, program, run_clock, start_step: int) -> list[str]:
    """What the run will cost, before its first step."""
    train, counts = config["train"], costs.num_params(parts.model)
    stream, devices = parts.data.stream, parts.mesh
    tokens = train["steps"] * train["batch_rows"] * stream.length
    flops = train["steps"] * parts.objective.flops(train["batch_rows"])
    peak = run_clock.peak_flops_per_sec
    left = (train["steps"] - start_step) / train["steps"]
    sizes = " x ".join(f"{name}={size}" for name, size in devices.shape.items() if size > 1)
    where = f"{devices.size} x {parts.platform.device_kind} ({sizes}; {multihost.count()} process(es); {parts.executor})"
    return [
        f"plan: {config['preset']}, {format_count(sum(counts.values()))} parameters (discriminator "
        f"{format_count(counts['embeddings'] + counts['discriminator'])} with embeddings, generator "
        f"{format_count(counts['generator'])} more)",
        f"      {train['steps']:,} steps x {train['batch_rows']} rows x {stream.length} tokens = {format_count(tokens)} tokens, "
        f"{train['steps'] * train['batch_rows'] / stream.num_rows:.2f} epochs over {stream.num_rows:,} rows; {flops:.2e} FLOPs",
        f"      {where if sizes else parts.platform.device_kind}, {parts.model.dtype}, peak {peak / 1e12:.2f} TFLOP/s: about "
        f"{format_secs(left * flops / peak / EXPECTED_UTILISATION)} at {EXPECTED_UTILISATION:.0%} of it; "
        f"{program.peak_bytes / 2**30:.2f} GiB a step; compiled in {program.compile_secs:.0f}s",
        *([f"      going on from step {start_step}"] if start_step else []),
    ]


def marked_examples(eval_step: Callable, params, data: Data, placed, number: int = 6) -> list[dict]:
    """Some held-out rows as the discriminator saw them, for people: pieces, originals, what was replaced, its probability."""
    batch, valid_B = data.heldout[0]
    outputs = jax.device_get(eval_step(params, *placed)[1].outputs)
    examples = []
    for b in np.flatnonzero(valid_B)[:number]:
        real = batch.segments[b] > 0
        probability = 1.0 / (1.0 + np.exp(-outputs["logits"][b][real].astype(np.float64)))
        examples.append(
            {
                "tokens": data.tokenizer.pieces(outputs["tokens"][b][real].tolist()),
                "original": data.tokenizer.pieces(batch.tokens[b][real].tolist()),
                "replaced": outputs["replaced"][b][real].tolist(),
                "scores": probability.tolist(),
            }
        )
    return examples
