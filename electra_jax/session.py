"""One session of a run, whatever its task: open it (begin, or go on), train with all that watches and stores, finish with a report.

A task brings its `Work`: the parts of its step (build.Parts), its rows, its held-out set. Pretraining is one (pretrain.py).
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_jax import gcs, resume
from electra_jax.build import Parts
from electra_jax.cli import Preempted, UserError
from electra_jax.data.config import ENOUGH_EPOCHS, FEWEST_STEPS
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.interop import start
from electra_jax.models.heads import NAMES as HEADS
from electra_jax.parallel import chips, executors, mesh, multihost, process
from electra_jax.parallel.executors import Program
from electra_jax.recipe import RunRecipe
from electra_jax.store import names, workdirs
from electra_jax.store.checkpoints import Checkpoints
from electra_jax.train import evaluation, loop, seeds
from electra_jax.train.optimizer import norm
from electra_jax.types import Batch, Objective, Params, TrainState
from electra_jax.views import Examples, Section
from electra_jax.watch import clock, report
from electra_jax.watch.profiler import ProfilerWindow
from electra_jax.watch.stopping import NonFinitePolicy, PreemptionSignal
from electra_jax.watch.telemetry import Silent, Telemetry, format_count, format_secs
from electra_jax.watch.watchdog import Watchdog

MANY_DAYS, MANY_EPOCHS = 30, 200  # of a run: more are most likely a preset's steps on too little text or too small a machine
EXPECTED_UTILISATION = 0.5  # of the peak, for the hours that the plan expects; the progress bar shows the measured one


class Work(NamedTuple):
    """What a task brings to a session, from a recipe that is resolved.

    first_batch: shapes of a global batch; of the longest rows where there are several lengths, so that memory is known to suffice.
    batches(start_step, rows) -> endless: this host's `rows` (places in the global batch) of each step.
    heldout: (batch, valid [B] bool), the same on every host; B is a multiple of the devices.
    reference: metrics that no step changes, shown beside an evaluation's: what a naive guess would reach.
    identity: which data and tokenizer, by their hashes: a resume with others is refused.
    about: JSON values that tell a person of the data; kept in checkpoints.
    num_rows: that an epoch has.
    evaluated: the objective by which held-out rows are measured, where it is not the one that is trained.
    inspect(held-out batches on the devices) -> what else an evaluation measures of the parameters, {metric: value}.
    begin(abstract state) -> ({path in the state: its first value}, lines for a person): what a run that begins takes from a model.
    finish(state, folder) leaves what the task makes of a complete run in the workdir's folder, and gives sections for the report. Every
      process calls it, since what it computes may take them all; the folder is None for all but one.
    """

    recipe: RunRecipe
    parts: Parts
    tokenizer: Tokenizer
    first_batch: Batch
    batches: Callable[[int, np.ndarray], Iterator[Batch]]
    heldout: Sequence[tuple[Batch, np.ndarray]]
    reference: Mapping[str, float]
    identity: Mapping[str, Any]
    about: Any
    num_rows: int
    evaluated: Objective | None = None
    inspect: Callable[[Sequence[tuple[Batch, Any]]], Callable[[Params], dict[str, float]]] = lambda heldout: lambda params: {}
    begin: Callable[[TrainState], tuple[dict[str, np.ndarray], list[str]]] = lambda state: ({}, [])
    finish: Callable[[TrainState, pathlib.Path | None], Sequence[Section]] = lambda state, folder: ()


class Result(NamedTuple):
    """What a finished run found. `metrics` are the last `eval/*`."""

    steps: int
    metrics: dict[str, float]
    examples: Examples
    report: str  # where it lies: a path, or a gs:// URL


class Opened(NamedTuple):
    """A session before its first step."""

    programs: executors.Programs  # with that of the first batch
    state: TrainState
    checkpoints: Checkpoints
    telemetry: Telemetry | Silent
    clock: clock.Clock


def run(
    recipe: RunRecipe,
    open_work: Callable[[RunRecipe, pathlib.Path], Work],
    workdir: str | os.PathLike,
    scratch: str | os.PathLike | None = None,
) -> Result:
    """Trains in `workdir`, or goes on training there, until `recipe.train.steps`.

    open_work(recipe, scratch folder) -> the task's Work; raises UserError where something does not fit, before anything is written.
    `workdir` may be a gs:// URL. Local copies of what lies in a bucket are put under `scratch`, by default among the temporary files,
    and may be deleted between runs: the bucket has all that a resume needs.
    Where several processes run (parallel.multihost.connected), each calls it with the same arguments.

    Raises UserError for what a person must mend, and Preempted after a stop signal, once everything is saved.
    """
    process.require_devices()
    multihost.agree("config", _sha256(recipe.stored()), "give every process the same command")
    multihost.agree("number of devices", str(jax.local_device_count()), "give every process as many")
    run_clock = clock.Clock()
    with PreemptionSignal() as preemption, contextlib.ExitStack() as stack:
        lead = multihost.is_lead()
        place = multihost.together(lambda: stack.enter_context(workdirs.opened(workdir, scratch)) if lead else workdirs.visited(workdir))
        workdirs.check_shared(place)
        with run_clock.section("init"):
            work = multihost.together(lambda: open_work(recipe, gcs.scratch_folder(scratch)))
        opened = _open(work, place, preemption, run_clock)
        return _train(work, place, preemption, opened)


def _open(work: Work, place: workdirs.Workdir, preemption: PreemptionSignal, run_clock: clock.Clock) -> Opened:
    """Everything is checked before config.json is written: a mistake leaves the workdir as it was."""
    recipe, parts, devices = work.recipe, work.parts, work.parts.devices
    with run_clock.section("init"):
        multihost.agree("data set", _sha256(work.identity), "give every host the same prepared folders")
        stored = {**recipe.stored(), "identity": dict(work.identity)}
        warnings = multihost.together(lambda: _check_resume(place, stored))
        checkpoints = Checkpoints(
            place.checkpoints,
            keep=recipe.checkpoint.keep,
            keep_every_steps=recipe.checkpoint.keep_every_steps,
            description={
                "config": recipe.stored(),
                "identity": work.identity,
                "parameters": _sizes(parts),
                "data": work.about,
            },
        )
        values, notes = {}, []
        if checkpoints.latest_step is None:
            values, notes = multihost.together(lambda: work.begin(parts.abstract_state))
        peak = chips.peak_flops(devices.platform.device_kind, recipe.model.dtype)
        measured = None if peak else multihost.count() * clock.measure_matmul_peak(recipe.model.dtype)
        run_clock.peak_flops_per_sec, run_clock.peak_is_measured = peak * devices.mesh.size if peak else measured, not peak
        if checkpoints.latest_step is None:
            for line in too_much(work, run_clock.peak_flops_per_sec):
                multihost.say_once(line)
    multihost.say_once("compiling the step (the first start takes a minute or so)")
    with run_clock.section("compile"):
        programs = parts.programs()
        program = multihost.together(lambda: programs.of(work.first_batch))
    with run_clock.section("init"):
        restored = checkpoints.restore(parts.abstract_state)
        start_step = restored.step if restored else 0
        if preemption.requested and multihost.count() == 1:  # several agree on a step to stop after, the first at the earliest
            raise Preempted(f"stopped before step {start_step + 1}: the same command starts it")
        if start_step > recipe.train.steps:
            raise UserError(f"{place.name} is at step {start_step} already, past train.steps={recipe.train.steps}: raise it")
        if multihost.is_lead():
            workdirs.write_config(place, stored)  # last of the checks: a mistake must not claim the folder
            work.tokenizer.save(place.path / names.TOKENIZER)  # it travels with the weights
            telemetry = Telemetry(
                place.path / names.METRICS,
                place.path / names.TENSORBOARD if recipe.log.tensorboard else None,
                total_steps=recipe.train.steps,
                start_step=start_step,
            )
        else:
            telemetry = Silent()
        if restored:
            run_clock.from_dict(restored.clock)
        run_clock.resumed(start_step, telemetry.reached)
        if restored or telemetry.reached.step > start_step:
            # A run may die several times before its next checkpoint; writing the summary at once makes the time lost in each attempt count.
            telemetry.write(start_step, run_clock.summary())
        if damaged := telemetry.reached.damaged:
            notes = [*notes, f"warning: {damaged} line(s) of {names.METRICS} were damaged and are dropped: the curves lack their steps"]
        state = restored.state if restored else start.placed(parts.init(parts.root), values)
        for line in (*plan_lines(work, program, run_clock, start_step), *recipe.notes, *warnings, *notes):
            telemetry.note(line)
        place.publish()  # now, not at the first save: what may not be written there should be known before hours of training
    return Opened(programs, state, checkpoints, telemetry, run_clock)


def _check_resume(place: workdirs.Workdir, stored: Mapping[str, Any]) -> list[str]:
    """Lines for a person on what changed. Raises UserError where the workdir holds another run. Of several processes, those that have no
    such file see nothing wrong."""
    before = workdirs.read_config(place)
    if before is None:
        return []
    resume.refuse_changes(before, stored, place.name)
    return resume.warnings(before, stored)


def plan_lines(work: Work, program: Program, run_clock: clock.Clock, start_step: int) -> list[str]:
    """What the run will cost, before its first step."""
    recipe, devices, objective, sizes = work.recipe, work.parts.devices, work.parts.objective, _sizes(work.parts)
    others = "".join(f", {name} {format_count(sizes[name])} more" for name in objective.networks if name != objective.encoder)
    steps, rows, length = recipe.train.steps, work.parts.batch_rows, work.first_batch.tokens.shape[1]
    flops, peak = steps * objective.flops(rows, length), run_clock.peak_flops_per_sec
    axes = " x ".join(f"{name}={size}" for name, size in devices.mesh.shape.items() if size > 1)
    kind, left = devices.platform.device_kind, (steps - start_step) / steps
    where = f"{devices.mesh.size} x {kind} ({axes}; {multihost.count()} process(es); {devices.executor})" if axes else kind
    secs = left * flops / peak / EXPECTED_UTILISATION
    return [
        f"plan: {recipe.preset}, {format_count(sum(sizes.values()))} parameters ({objective.encoder} "
        f"{format_count(sizes['embeddings'] + sizes[objective.encoder])} with embeddings{others})",
        f"      {steps:,} steps x {rows} rows x {length} tokens = {format_count(steps * rows * length)} tokens, "
        f"{steps * rows / work.num_rows:.2f} epochs over {work.num_rows:,} rows; {flops:.2e} FLOPs",
        f"      {where}, {recipe.model.dtype}, peak {peak / 1e12:.2f} TFLOP/s: about "
        f"{format_secs(secs)} at {EXPECTED_UTILISATION:.0%} of it; "
        f"{program.peak_bytes / 2**30:.2f} GiB a step; compiled in {program.compile_secs:.0f}s",
        *(
            [f"warning: the schedule ends at schedule.decay_steps={recipe.schedule.decay_steps}: the steps after it train at rate 0"]
            if 0 < recipe.schedule.decay_steps < steps
            else []
        ),
        *([f"      going on from step {start_step}"] if start_step else []),
    ]


def too_much(work: Work, peak_flops_per_sec: float) -> list[str]:
    """A warning of a run that hardly anybody means."""
    recipe, found = work.recipe, []
    flops = recipe.train.steps * work.parts.objective.flops(work.parts.batch_rows, work.first_batch.tokens.shape[1])
    days = flops / peak_flops_per_sec / EXPECTED_UTILISATION / 86400
    epochs = recipe.train.steps * recipe.train.batch_rows / work.num_rows
    if days > MANY_DAYS:
        fits = max(1, int(recipe.train.steps * MANY_DAYS / days))
        found.append(f"some {days:,.0f} days here: train.steps={fits} would be {MANY_DAYS}; a smaller preset takes less")
    if epochs > MANY_EPOCHS and recipe.train.steps > FEWEST_STEPS:
        fits = max(FEWEST_STEPS, int(recipe.train.steps * ENOUGH_EPOCHS / epochs))
        found.append(f"{epochs:,.0f} epochs, the later of which teach little: train.steps={fits} is enough, or prepare more text")
    return [f"warning: the run is {'; and '.join(found)}"] if found else []


def _sizes(parts: Parts) -> dict[str, int]:
    """Parameters of each part of the model: "embeddings", each network without its head, and NETWORK_head."""
    found = {}
    for name, tree in parts.abstract_state.params.items():
        size = {part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree[part])) for part in tree}
        of_heads = {part: size.pop(part) for part in [*size] if part in HEADS} if name in parts.objective.networks else {}
        found |= {name: sum(size.values()), **{f"{name}_{part}": count for part, count in of_heads.items()}}
    return found


class _Evaluator:
    """Evaluates the held-out set, says what it found, and remembers the last of it. The norm of the parameters is found here as well: in
    the step, where it would be needed for a few of the steps only, it cost several seeds 4% (docs/speed.md)."""

    def __init__(self, work: Work, state: TrainState, telemetry: Telemetry | Silent):
        self._work, self._telemetry = work, telemetry
        self._warned: set[str] = set()
        recipe = work.recipe
        self._run = recipe.run
        self.metrics: dict[str, float] = {}
        devices = work.parts.devices
        self._rows = sum(int(valid_B.sum()) for _, valid_B in work.heldout)
        self._heldout = [mesh.to_devices(batch, devices.mesh) for batch in work.heldout]
        self._objective = work.evaluated or work.parts.objective
        step = jax.jit(evaluation.make_eval_step(self._objective), out_shardings=mesh.replicated(devices.mesh))
        self._norm = mesh.on_mesh(jax.jit(norm, out_shardings=mesh.replicated(devices.mesh)), devices.mesh)
        lower, options = mesh.on_mesh(step.lower, devices.mesh), executors.compiler_options(devices.mesh) or None
        # Compiled now, a program for each row length: a peer that compiles for half a minute later on would be taken for dead.
        self._programs, of_a_seed = {}, work.parts.members(state)[0]
        for batch in self._heldout:
            if _shapes(batch) not in self._programs:
                self._programs[_shapes(batch)] = lower(of_a_seed, *batch).compile(compiler_options=options)
        self._inspect = work.inspect(self._heldout)

    def _step(self, params, batch, valid_B):
        return self._programs[_shapes((batch, valid_B))](params, batch, valid_B)

    def __call__(self, state: TrainState, at_step: int) -> dict[str, float]:
        parts, view = self._work.parts, self._work.parts.objective.view
        found = []
        for params in parts.members(state):
            metrics = evaluation.evaluate(self._objective, self._step, params, self._heldout)
            found.append({**metrics, "eval/param_norm": float(self._norm(params)), **self._inspect(params)})
        metrics = seeds.summary(dict(zip(parts.seeds, found, strict=True)))
        self.metrics = metrics = {**metrics, **self._work.reference, "eval/rows": self._rows}
        self._telemetry.note(f"step {at_step}: {view.headline(metrics)}")
        found = dict(view.warnings(metrics, at_step, self._run))
        for name in found.keys() - self._warned:
            self._telemetry.note(f"warning: {found[name]}")
        self._warned = set(found)
        return metrics

    def examples(self, state: TrainState) -> Examples:
        """Some held-out rows as the model sees them."""
        batch, valid_B = self._work.heldout[0]
        params = self._work.parts.members(state)[0]
        outputs = jax.device_get(self._step(params, *self._heldout[0])[1].outputs)
        rows, outputs = (jax.tree.map(lambda x: x[valid_B], tree) for tree in (batch, outputs))
        return self._work.parts.objective.view.examples(rows, outputs, self._work.tokenizer.pieces)


def _shapes(batch: Any) -> tuple:
    """What of a held-out batch decides its program."""
    return tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))


def _train(work: Work, place: workdirs.Workdir, preemption: PreemptionSignal, opened: Opened) -> Result:
    recipe, objective, devices = work.recipe, work.parts.objective, work.parts.devices
    state, checkpoints, run_clock, train = opened.state, opened.checkpoints, opened.clock, recipe.train
    with run_clock.section("compile"):
        evaluate = _Evaluator(work, state, opened.telemetry)
        multihost.meet("ready")

    def write_report(sections: Sequence[Section]) -> str:
        shown = {name: evaluate.metrics[name] for name in objective.view.shown if name in evaluate.metrics}
        report.write(
            place.path / names.REPORT,
            metrics=place.path / names.METRICS,
            title=f"{recipe.preset} in {place.name.rsplit('/', 1)[-1]}",
            verdict=objective.view.verdict(evaluate.metrics) if evaluate.metrics else "This command has not evaluated yet.",
            summary={"preset": recipe.preset, "steps": train.steps, **shown},
            panels=objective.view.panels,
            sections=sections,
            config=(place.path / names.CONFIG).read_text(errors="replace"),
        )
        return f"{place.name}/{names.REPORT}"

    services = loop.Services(
        checkpoints=checkpoints,
        telemetry=opened.telemetry,
        clock=run_clock,
        watchdog=Watchdog(train.hang_secs),
        preemption=preemption,
        non_finite=NonFinitePolicy(train.max_non_finite_steps, batch_rows=train.batch_rows, latest_step=lambda: checkpoints.latest_step),
        profiler=ProfilerWindow(place.path / names.PROFILE, *recipe.log.profile_steps),
        publish=place.publish,
    )
    try:
        state = loop.train(
            state,
            opened.programs,
            work.batches(int(state.step), mesh.host_rows(devices.mesh, work.parts.batch_rows)),
            total_steps=train.steps,
            flops=lambda length: objective.flops(work.parts.batch_rows, length),
            intervals=loop.Intervals(
                log_steps=recipe.log.every_steps, eval_steps=recipe.eval.every_steps, checkpoint_steps=recipe.checkpoint.every_steps
            ),
            evaluate=evaluate,
            services=services,
        )
        checkpoints.close()
    except Preempted:
        if multihost.is_lead():
            write_report(())
        raise
    except BaseException:
        checkpoints.leave()
        raise
    if not evaluate.metrics:  # the run was complete before this command
        evaluate(state, train.steps)
    sections = work.finish(state, place.path if multihost.is_lead() else None)
    examples = evaluate.examples(state)
    where = write_report([*sections, examples]) if multihost.is_lead() else place.name
    return Result(train.steps, evaluate.metrics, examples, where)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
