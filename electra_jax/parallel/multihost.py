"""Several processes as one run: who they are, what they agree on, and what happens when one is gone.

Words travel through the coordination service that jax.distributed starts (a key-value store on process 0), not through the devices:
it has time-outs of our choice, and knows within `heartbeat_secs` that a process has died. XLA then aborts the others;
launch/supervise.py above them reads that, names the lost one and exits 42.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the client of the coordination service has no public name

from electra_jax import cli, exit_codes
from electra_jax.cli import Preempted, UserError, one_line

T = TypeVar("T")
_FOREVER_MS = 7 * 24 * 3600 * 1000  # a dead peer ends the wait long before
_LEAVING_MS = 3_000
_LEAD_STAYS_SECS = 2
_START_MS = 60_000  # all have come already
_LOST_PEER = re.compile(
    r"gloo|nccl|connection (closed|reset)|socket closed|broken pipe|coordination service|heartbeat|peer .*(lost|died|closed)", re.I
)
_calls = itertools.count()  # every process makes the same calls in the same order, so that the n-th has one name on all


class AgreedError(UserError):
    """What a person must mend, told on every process at once."""


def count() -> int:
    """Processes of this run. Asks no device, so that it may be called before there are any."""
    return distributed.global_state.num_processes if jax.distributed.is_initialized() else 1


def is_lead() -> bool:
    """Process 0 writes what there is one of: metrics, reports, folders."""
    return count() == 1 or distributed.global_state.process_id == 0


@contextlib.contextmanager
def connected(
    *,
    cluster: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_secs: int = 100,
    start_secs: int = 300,
) -> Iterator[None]:
    """Joins the processes of a run and leaves together with them; alone, where neither `cluster` nor `coordinator` is given.

    cluster: by what the environment says (a TPU pod, GKE, Slurm, Open MPI). coordinator: HOST:PORT of process 0, by hand.
    heartbeat_secs: a process that is silent for so long is dead. start_secs: within so long all must have come.

    Whatever only one process meets ends it at once with the exit code of its kind (`electra_jax.cli`), so that the others
    hear of it by its silence; what all of them know (AgreedError, Preempted) ends them together.
    """
    if not cluster and coordinator is None:
        if num_processes is not None or process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0")
        yield
        return
    if coordinator is not None and (num_processes is None or process_id is None):
        raise UserError("--coordinator needs --num_processes=N and --process_id=0 to N-1 beside it")
    if coordinator is not None and not (0 <= process_id < num_processes and re.fullmatch(r"\S+:\d+", coordinator)):
        raise UserError(f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: HOST:PORT, N, 0 to N-1")
    for name, secs in (("heartbeat_secs", heartbeat_secs), ("start_secs", start_secs)):
        if secs < 1:
            raise UserError(f"--{name}={secs}: it must be at least 1")
    if coordinator is not None:
        host, port = coordinator.rsplit(":", 1)
        try:
            if not 0 < int(port) < 2**16:
                raise UserError(f"--coordinator={coordinator}: a port is a number from 1 to 65535")
            socket.getaddrinfo(host.strip("[]"), int(port))
        except socket.gaierror as error:
            raise UserError(f"--coordinator={coordinator}: {host} is not known here ({error.strerror}): mend the name") from error
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=start_secs, heartbeat_timeout_seconds=heartbeat_secs
        )
    except ValueError as error:
        raise UserError(f"no cluster was found ({one_line(error)}): give --coordinator, --num_processes and --process_id") from error
    except RuntimeError as error:
        raise Preempted(f"the processes of this run did not all come ({one_line(error)}): start them again") from error
    try:
        _agree_on_count()
        hosts = gather(socket.gethostname())
        say("processes: " + ", ".join(f"{number} {host}" for number, host in enumerate(hosts)))
        yield
        meet("the end")
    except (AgreedError, Preempted):
        raise
    except BaseException as error:
        _leave_alone(error, heartbeat_secs)


def _agree_on_count() -> None:
    """UserError where this process and process 0, or process 0 and any, speak of another number of processes: they would wait for ever."""
    state = distributed.global_state
    _client().key_value_set(f"electra_jax/count/{state.process_id}", str(count()))
    for number in range(count()) if is_lead() else (0,):
        other = int(_client().blocking_key_value_get(f"electra_jax/count/{number}", _START_MS))
        if other != count():
            told = f"process {number} was told of {other} processes and process {state.process_id} of {count()}"
            raise UserError(f"{told}: give all the same --num_processes")


def _leave_alone(error: BaseException, heartbeat_secs: int) -> None:
    """Ends this process now: a polite exit would wait for peers that wait for us."""
    code, line = cli.outcome(error) or (exit_codes.DEFECT, None)
    lost = line is None and isinstance(error, ValueError | RuntimeError) and _LOST_PEER.search(str(error))  # jax raises either
    if lost:
        code = exit_codes.AGAIN
        line = f"lost a peer ({one_line(error)[:200]}): the same command on all hosts goes on from the last checkpoint"
    if line is not None:
        cli.say(sys.argv[0], line)
    elif not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif isinstance(error.code, int):
        code = error.code
    if lost:
        # Within this time the service learns which process it is, and XLA aborts this one with its number, which supervise.py reads.
        time.sleep(2 * heartbeat_secs + 5)
    if line is not None and not lost:
        # All may have met the same mistake. The service ends with process 0, and XLA aborts whoever has not left by then.
        with contextlib.suppress(Exception):
            _client().wait_at_barrier("electra_jax leaving", _LEAVING_MS)
        if is_lead():
            time.sleep(_LEAD_STAYS_SECS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """What concerns the run, not this process: the first one says it."""
    if is_lead():
        say(line)


def _client():
    return distributed.global_state.client


def meet(what: str) -> None:
    """Waits until every process is here. Called where they may be minutes apart (compilations, evaluations, saves): a collective
    between devices would take the slow one for dead after 30 seconds."""
    if count() > 1:
        _client().wait_at_barrier(f"electra_jax {next(_calls)} {what}", _FOREVER_MS)


def gather(value: Any) -> list[Any]:
    """Each process's value (JSON), by process."""
    if count() == 1:
        return [value]
    prefix = f"electra_jax/{next(_calls)}"
    _client().key_value_set(f"{prefix}/{distributed.global_state.process_id}", json.dumps(value))
    return [json.loads(_client().blocking_key_value_get(f"{prefix}/{number}", _FOREVER_MS)) for number in range(count())]


def from_lead(value: Any) -> Any:
    """Process 0's value (JSON), on all: what it found on a disk that others may see differently."""
    return gather(value)[0]


def together(check: Callable[[], T]) -> T:
    """What `check` returns. A UserError on one process is an AgreedError on every one, with the name of the process."""
    result, problem = None, None
    try:
        result = check()
    except UserError as error:
        if count() == 1:
            raise
        problem = one_line(error)
    problems = gather(problem)
    if any(problems):
        first = next(number for number, problem in enumerate(problems) if problem)
        same = all(problem == problems[first] for problem in problems)
        raise AgreedError(problems[first] if same else f"process {first} of {count()}: {problems[first]}")
    return result


def compare(name: str, value: float) -> dict[int, float]:
    """Tells the others this process's latest value; process 0 gets the latest of each that has told one, the others nothing. No waiting."""
    if count() == 1:
        return {}
    _client().key_value_set(f"electra_jax/latest/{name}/{distributed.global_state.process_id}", repr(value), allow_overwrite=True)
    if not is_lead():
        return {}
    return {int(key.rsplit("/", 1)[1]): float(text) for key, text in _client().key_value_dir_get(f"electra_jax/latest/{name}/")}


def agree(name: str, value: str, mend: str) -> None:
    """UserError on every process where they do not all have the same value."""
    values = gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise AgreedError(f"process {number} has another {name} than process 0: {mend}")
