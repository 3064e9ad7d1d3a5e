"""The flags by which a command joins the other processes of a run."""

import contextlib
from collections.abc import Callable

from absl import flags


def define_flags() -> Callable[[], contextlib.AbstractContextManager]:
    """Defines them; returns what opens parallel.multihost.connected with their values, once flags are parsed and jax may be imported."""
    distributed = flags.DEFINE_bool("distributed", False, "Join the other processes that the cluster started: a TPU pod, GKE, Slurm, MPI.")
    coordinator = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0: join the other processes by hand.")
    num_processes = flags.DEFINE_integer("num_processes", None, "How many processes, with --coordinator.")
    process_id = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, with --coordinator.")
    start_secs = flags.DEFINE_integer("start_secs", 300, "Within so long all processes must have come.")
    heartbeat_secs = flags.DEFINE_integer("heartbeat_secs", 100, "A process that is silent for so long is taken for dead.")

    def connected() -> contextlib.AbstractContextManager:
        from electra_jax.parallel import multihost

        return multihost.connected(
            cluster=distributed.value,
            coordinator=coordinator.value,
            num_processes=num_processes.value,
            process_id=process_id.value,
            heartbeat_secs=heartbeat_secs.value,
            start_secs=start_secs.value,
        )

    return connected
