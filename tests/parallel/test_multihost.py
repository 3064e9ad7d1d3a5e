"""One process alone: every agreement holds, and nothing is waited for. (Several: tests/launch/test_distributed.py.)"""

import os
import subprocess
import sys

import pytest

from electra_jax.cli import UserError
from electra_jax.parallel import multihost


def test_alone():
    assert multihost.count() == 1 and multihost.is_lead()
    assert multihost.gather({"a": 1}) == [{"a": 1}] and multihost.from_lead([2]) == [2] and multihost.compare("x", 1.0) == {}
    assert multihost.together(lambda: 5) == 5
    multihost.agree("config", "x", "mend it")
    multihost.meet("anything")
    with multihost.connected():
        pass
    with pytest.raises(UserError, match="as it is"):
        multihost.together(lambda: (_ for _ in ()).throw(UserError("as it is")))


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(num_processes=2), "need --coordinator"),
        (dict(coordinator="localhost:1"), "needs --num_processes"),
        (dict(coordinator="localhost", num_processes=2, process_id=0), "HOST:PORT"),
        (dict(coordinator="localhost:1", num_processes=2, process_id=2), "0 to N-1"),
        (dict(coordinator="localhost:1", num_processes=2, process_id=1, heartbeat_secs=0), "at least 1"),
        (dict(coordinator="localhost:1", num_processes=2, process_id=1, start_secs=0), "at least 1"),
        (dict(coordinator="localhost:65536", num_processes=2, process_id=1), "65535"),
        (dict(coordinator="no-such-host.invalid:99", num_processes=2, process_id=1), "is not known here"),
    ],
)
def test_flags_that_do_not_go_together(given, message):
    with pytest.raises(UserError, match=message), multihost.connected(**given):
        pass


ENDS = """
import errno, sys
from electra_jax.cli import UserError
from electra_jax.parallel import multihost
with multihost.connected(coordinator="localhost:" + sys.argv[1], num_processes=1, process_id=0, heartbeat_secs=1):
    raise {error}
"""


@pytest.mark.parametrize(
    "error, code, words",
    [
        ("UserError('mend this')", 2, "mend this"),
        ("OSError(errno.ENOSPC, 'No space left on device')", 2, "the disk is full"),
        ("RuntimeError('a defect')", 1, "Traceback"),
        ("KeyboardInterrupt", 42, "interrupted"),
        ("ValueError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer')", 42, "lost a peer"),
    ],
)
def test_what_one_process_meets_ends_it_with_its_own_code(error, code, words):
    import socket

    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", ENDS.format(error=error), str(port)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == code and words in done.stderr, done.stderr
    assert "processes: 0 " in done.stderr
