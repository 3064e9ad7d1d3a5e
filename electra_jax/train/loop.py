"""The one loop. It serves pretraining and fine-tuning alike and knows no objective."""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from electra_jax.cli import Preempted
from electra_jax.parallel import multihost
from electra_jax.parallel.executors import Program, Programs
from electra_jax.store.checkpoints import Checkpoints
from electra_jax.types import Batch, TrainState
from electra_jax.watch.clock import Clock, stragglers
from electra_jax.watch.profiler import ProfilerWindow
from electra_jax.watch.stopping import NonFinitePolicy, PreemptionSignal
from electra_jax.watch.telemetry import Telemetry
from electra_jax.watch.watchdog import Watchdog

# So long may an evaluation, the wait for a save, or the compilation of one more program take before it counts as a hang.
EVAL_SECS, SAVE_SECS, COMPILE_SECS = 7200.0, 3600.0, 3600.0


class Intervals(NamedTuple):
    """In steps; each counts from step 0, so that a resumed run does everything at the same steps."""

    log_steps: int
    eval_steps: int  # 0 = only at the end
    checkpoint_steps: int

    def due(self, name: str, step: int, total_steps: int) -> bool:
        every = getattr(self, name)
        return step == total_steps or (every > 0 and step % every == 0)


class Services(NamedTuple):
    """What the loop talks to."""

    checkpoints: Checkpoints
    telemetry: Telemetry
    clock: Clock
    watchdog: Watchdog
    preemption: PreemptionSignal
    non_finite: NonFinitePolicy
    profiler: ProfilerWindow
    publish: Callable[[], None] = lambda: None  # puts the telemetry's files where they outlive this machine


def train(
    state: TrainState,
    programs: Programs,
    batches: Iterator[Batch],
    *,
    total_steps: int,
    flops: Callable[[int], float],
    intervals: Intervals,
    evaluate: Callable[[TrainState, int], dict[str, float]],
    services: Services,
) -> TrainState:
    """Runs steps up to `total_steps`; everything that must survive a death is on disk at each checkpoint.

    batches: this host's rows of each step. Rows of another length are another program, compiled when they are first met.
    flops(row length) -> floating-point operations of a step.
    Raises Preempted after saving, when the process was told to stop, and UserError where the run diverges.
    """
    checkpoints, telemetry, clock, watchdog, preemption, non_finite, profiler, publish = services
    in_flight: collections.deque[tuple[int, int, dict]] = collections.deque()  # (step, row length, its metrics)
    logged_step, logged_own_secs = int(state.step), clock.own_secs()

    def settle(max_in_flight: int) -> None:
        """Reads the metrics of steps that ran, oldest first: one step late, so that the device never waits for the host."""
        nonlocal logged_step, logged_own_secs
        while len(in_flight) > max_in_flight:
            done, length, metrics = in_flight.popleft()
            with clock.waiting():
                metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            watchdog.tick(done)
            clock.count(steps=1, tokens=int(metrics["tokens"]), flops=flops(length))
            non_finite.check(done, metrics["skipped_in_a_row"])
            if intervals.due("log_steps", done, total_steps):
                own_secs = (clock.own_secs() - logged_own_secs) / (done - logged_step)
                logged_step, logged_own_secs = done, clock.own_secs()
                rates = clock.rates()
                hosts, line = stragglers(multihost.compare("own_secs", own_secs), 1 / rates.steps_per_sec if rates else math.inf)
                learned = {f"train/{name}": value for name, value in metrics.items()}
                telemetry.write(done, learned | clock.summary() | {"clock/programs": len(programs)} | hosts)
                if line:
                    telemetry.note(line)
            telemetry.progress(done, metrics["loss"], clock)

    def program_for(batch: Batch) -> Program:
        if program := programs.known(batch):
            return program
        with clock.section("step"):
            settle(0)
        with clock.section("compile"), watchdog.allow(COMPILE_SECS):
            program = multihost.together(lambda: programs.of(batch))  # all go on at once: a step waits seconds for a peer, not minutes
        telemetry.note(f"compiled the step for rows of {batch.tokens.shape[1]} tokens, program {len(programs)}")
        return program

    step = int(state.step)
    with contextlib.closing(telemetry), watchdog, profiler:
        while step < total_steps:
            # THE ORDER MATTERS. 1. The batch of this step number: the step is all the position that the data has.
            with clock.section("data"):
                batch = next(batches)
            program = program_for(batch)
            with clock.section("data"):
                placed = program.place(batch)
            # 2. Dispatch, then read the metrics of the step before while this one runs.
            with clock.section("step"):
                profiler.step(step)
                with clock.waiting():  # a full queue of the device's makes the dispatch wait
                    state, metrics = program.run(state, placed)
                step += 1
                in_flight.append((step, batch.tokens.shape[1], metrics))
                pause = step == total_steps or any(intervals.due(name, step, total_steps) for name in ("eval_steps", "checkpoint_steps"))
                settle(0 if pause else 1)
            # 3. Evaluate the state that a checkpoint of this step will hold.
            if intervals.due("eval_steps", step, total_steps):
                with clock.section("eval"), watchdog.allow(EVAL_SECS):
                    telemetry.write(step, evaluate(state, step))
                    multihost.meet("evaluated")
            # 4. Told to stop? Read once, here: what is announced as saved is saved.
            stop = step < total_steps and preemption.reached(step)
            # 5. Every line up to this step is on disk before its checkpoint begins: a resume cuts back to the step, never adds a gap.
            if stop or intervals.due("checkpoint_steps", step, total_steps):
                with clock.section("step"):
                    settle(0)
                with clock.section("checkpoint"), watchdog.allow(SAVE_SECS):
                    telemetry.flush()
                    publish()
                    checkpoints.save(step, state, clock.to_dict())
                    multihost.meet("saved")
            if stop:
                checkpoints.wait()
                raise Preempted(f"stopped at step {step} of {total_steps} and saved: the same command goes on from there")
        checkpoints.wait()
    return state
