"""Checkpoints: nothing that was saved comes back as something else, whatever happens to the files, the disk or the process."""

import errno
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from electra_jax.cli import UserError
from electra_jax.store import checkpoints, checksums, damage
from electra_jax.store.checkpoints import Checkpoints
from electra_jax.types import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Orbax leaves them behind where a read or write fails; the program ignores them, and pytest undoes that for each test.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
DESCRIPTION = {"config": {"model": {"hidden_size": 16, "rates": (0.5, 1e-3)}}, "tokenizer": "ab12"}


def make_state(seed: int) -> TrainState:
    """Parameters stacked along layers, AdamW's moments, and the counters: what a run saves, small."""
    keys = jax.random.split(jax.random.key(seed), 5)
    params = {
        "embeddings": {"word": jax.random.normal(keys[0], (40, 8))},
        "discriminator": {
            "kernel": jax.random.normal(keys[1], (2, 8, 16)),
            "scale": jax.random.normal(keys[2], (16,), jnp.bfloat16),
        },
    }
    rule = optax.adamw(1e-3)
    opt_state = jax.tree.map(lambda x: x + seed if jnp.issubdtype(x.dtype, jnp.floating) else x, rule.init(params))
    return TrainState(jnp.int32(seed), jnp.arange(2, dtype=jnp.uint32), params, opt_state, jnp.int32(0), jnp.int32(0))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def bits(tree) -> list:
    """Exactly what the arrays hold: NaN equals NaN, and -0.0 does not equal 0.0."""
    return [(x.dtype.name, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def refuse_to_warn(line):
    raise AssertionError(line)


def write(directory, *steps: int, **options) -> Checkpoints:
    store = Checkpoints(directory, description=DESCRIPTION, warn=refuse_to_warn, **options)
    for step in steps:
        store.save(step, make_state(step), {"secs": step * 0.1})
    store.wait()
    return store


def files_of(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def data_file(directory: pathlib.Path) -> pathlib.Path:
    """Where the arrays' values are."""
    return max(files_of(directory / "state"), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


# --- The checksum


def naive_checksum(x: np.ndarray) -> int:
    """By the definition, one word at a time in Python's integers."""
    width = min(x.dtype.itemsize, 4)
    data = x.tobytes()
    words = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
    return sum((2 * i + 1) * word for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "uint8", "bool", "int32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2), (70_000,)])
def test_checksum_is_its_definition_on_host_and_device(dtype, shape):
    with jax.enable_x64(True):
        data = np.random.default_rng(0).bytes(max(1, int(np.prod(shape))) * 8)
        x = np.frombuffer(data, np.uint8)
        x = (x % 2).astype(bool) if dtype == "bool" else x.view(jnp.dtype(dtype))
        x = x[: int(np.prod(shape))].reshape(shape)
        expected = naive_checksum(x)
        assert checksums.host_checksum(x) == expected
        assert int(jax.jit(checksums.checksum)(jnp.asarray(x))) == expected


def test_every_flipped_bit_changes_the_checksum():
    x = np.random.default_rng(1).standard_normal(37).astype(np.float32)
    before = checksums.host_checksum(x)
    for i in range(x.nbytes):
        for bit in range(8):
            data = bytearray(x.tobytes())
            data[i] ^= 1 << bit
            assert checksums.host_checksum(np.frombuffer(data, np.float32)) != before
    assert checksums.host_checksum(x[::-1]) != before


# --- Saving and restoring


def test_round_trip(tmp_path):
    state = make_state(20)
    state.params["odd"] = jnp.array([np.nan, -0.0, np.inf, 1e-45], jnp.float32)
    state.params["key"] = jax.random.key(3)
    store = write(tmp_path / "new" / "checkpoints", 10)
    store.save(20, state, {"secs": 0.1, "steps": 7})
    store.close()
    assert store.latest_step == 20

    again = Checkpoints(tmp_path / "new" / "checkpoints", description={}, warn=refuse_to_warn)
    restored = again.restore(abstract(state))
    assert restored.step == 20 and restored.clock == {"secs": 0.1, "steps": 7}
    assert restored.description == again.description() == json.loads(json.dumps(DESCRIPTION))
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert restored.state.params["key"].dtype == state.params["key"].dtype
    data = jax.random.key_data
    assert (data(restored.state.params.pop("key")) == data(state.params.pop("key"))).all()
    assert bits(restored.state) == bits(state)
    for x in jax.tree.leaves(restored.state):
        assert x.committed and x.devices() == {jax.devices()[0]}


def test_nothing_saved(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        store = Checkpoints(directory, description={})
        assert store.restore(abstract(make_state(0))) is None
        assert store.latest_step is None and store.description() is None
        store.close()
    assert not (tmp_path / "absent").exists()


def test_the_caller_may_destroy_the_state_after_save(tmp_path):
    """The train step donates its state: what is being written must not be what the next step writes into."""
    make = jax.jit(lambda key: {f"{i}": jax.random.normal(jax.random.fold_in(key, i), (500, 1000)) for i in range(8)})
    step_fn = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    store = Checkpoints(tmp_path, description={})
    state = jax.block_until_ready(make(jax.random.key(0)))
    expected = {}
    for step in (1, 2):
        expected[step] = {name: np.array(x, copy=True) for name, x in state.items()}
        store.save(step, state, {})
        for _ in range(3):
            state = step_fn(state)
    expected[3] = {name: np.array(x, copy=True) for name, x in state.items()}
    store.save(3, state, {})
    for x in state.values():
        x.delete()
    rubbish = [jnp.full((500, 1000), 9.0) for _ in range(8)]
    jax.block_until_ready(rubbish)
    store.close()
    for step in (3, 2, 1):
        restored = store.restore(abstract(expected[1]))
        assert restored.step == step and bits(restored.state) == bits(expected[step])
        # A restored state is donated by the first step, and must be its own.
        moved = step_fn(restored.state)
        assert bits(moved) == bits({name: x + np.float32(1) for name, x in expected[step].items()})
        shutil.rmtree(tmp_path / str(step))


def test_what_is_kept(tmp_path):
    store = write(tmp_path, *range(10, 80, 10), keep=2, keep_every_steps=30)
    assert sorted(os.listdir(tmp_path)) == ["30", "60", "70"]
    store.save(80, make_state(80), {})
    assert {"60", "70"} <= set(os.listdir(tmp_path))
    store.wait()
    assert sorted(os.listdir(tmp_path)) == ["30", "60", "70", "80"]
    with pytest.raises(UserError, match="keep=0"):
        Checkpoints(tmp_path, keep=0, description={})


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    store = write(tmp_path, 10)
    store.save(10, make_state(11), {})
    store.wait()
    assert bits(store.restore(abstract(make_state(0))).state) == bits(make_state(10))


def test_litter_is_swept_by_the_writer_alone(tmp_path):
    store = write(tmp_path, 10)
    litter = tmp_path / "15.orbax-checkpoint-tmp" / "state"
    litter.mkdir(parents=True)
    reader = Checkpoints(tmp_path, description={})
    assert reader.restore(abstract(make_state(0))).step == 10 and reader.latest_step == 10
    assert litter.exists()
    store.save(20, make_state(20), {})
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["10", "20"]


MESHES = """
import json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from electra_jax.store import checkpoints, checksums

def mesh(*sizes):
    return jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

def place(x, mesh, spec):
    return jax.device_put(x, NamedSharding(mesh, spec))

x = np.random.default_rng(0).standard_normal((8, 12, 4)).astype(np.float32)
specs = {"a": P(None, "data"), "b": P("fsdp", "data"), "c": P()}
state = {name: place(x + i, mesh(4, 1), spec) for i, (name, spec) in enumerate(specs.items())}
state["key"] = place(jax.random.split(jax.random.key(0), 4), mesh(4, 1), P("data"))
store = checkpoints.Checkpoints(sys.argv[1], description={})
store.save(5, state, {})
store.close()
wanted = json.loads(pathlib.Path(sys.argv[1], "5", "metadata", "data.json").read_text())["checksums"]
for sizes in ((2, 2), (1, 4)):
    shape = {name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh(*sizes), P("fsdp"))) for name, v in state.items()}
    restored = store.restore(shape).state
    for name, v in restored.items():
        assert v.sharding == shape[name].sharding, (name, v.sharding)
        here, there = (jax.random.key_data(t) if name == "key" else t for t in (v, state[name]))
        assert (np.asarray(here) == np.asarray(there)).all()
    arrays = [jax.random.key_data(v) if name == "key" else v for name, v in restored.items()]
    assert dict(zip(restored, checksums._device_checksums(None)(arrays).tolist())) == wanted
"""


def test_any_mesh(tmp_path):
    """Saved from 4 devices, restored sharded otherwise, with the checksums of the sharded program; then here, on one."""
    script(MESHES, tmp_path)
    x = np.random.default_rng(0).standard_normal((8, 12, 4)).astype(np.float32)
    shape = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name in "abc"}
    shape["key"] = jax.ShapeDtypeStruct((4,), jax.random.key(0).dtype)
    restored = Checkpoints(tmp_path, description={}, warn=refuse_to_warn).restore(shape).state
    assert bits([restored[name] for name in "abc"]) == bits([x + np.float32(i) for i in range(3)])


def test_a_state_that_does_not_fit_is_listed_and_nothing_is_renamed(tmp_path):
    store = write(tmp_path, 10)
    wanted = abstract(make_state(0))
    other = wanted.params["discriminator"]
    other["kernel"] = jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)
    other["scale"] = jax.ShapeDtypeStruct((16,), jnp.float32)
    other["bias"] = jax.ShapeDtypeStruct((16,), jnp.float32)
    del wanted.params["embeddings"]
    with pytest.raises(UserError) as error:
        store.restore(wanted)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/10 holds another model or optimizer: params/discriminator/bias is missing, ")
    assert "params/embeddings/word is not expected" in message
    assert "params/discriminator/kernel is float32[2, 8, 16] there and float32[3, 8, 16] here" in message
    assert "params/discriminator/scale is bfloat16[16] there and float32[16] here" in message
    assert "\n" not in message and os.listdir(tmp_path) == ["10"]

    with pytest.raises(UserError, match=r": (\S+ is not expected,? ){6}and 7 more: run it"):
        store.restore({"step": wanted.step})


# --- Damage


def test_no_flipped_byte_cut_or_missing_file_gives_a_wrong_value(tmp_path):
    """Every file of the newest step, at several places each: its values exactly, or those of the step before."""
    write(tmp_path, 10, 20)
    newest, aside = tmp_path / "20", tmp_path / "20.damaged"
    wanted, expected = abstract(make_state(0)), {step: bits(make_state(step)) for step in (10, 20)}
    rng = random.Random(0)
    outcomes = []

    def check(path: pathlib.Path, change, what: str) -> None:
        good = path.read_bytes()
        change(path)
        lines: list[str] = []
        restored = Checkpoints(tmp_path, description={}, warn=lines.append).restore(wanted)
        assert bits(restored.state) == expected[restored.step], (path, what)
        assert restored.clock == {"secs": restored.step * 0.1} and restored.description["tokenizer"] == "ab12", (path, what)
        if restored.step == 20:
            assert not lines and not aside.exists()
        else:
            (line,) = lines
            assert re.match(r"checkpoint 20 is damaged \(.+\): renamed to 20\.damaged, going on from step 10$", line), line
            aside.rename(newest)
        path.write_bytes(good)
        outcomes.append((path.relative_to(newest), what, restored.step))

    for path in files_of(newest):
        size = path.stat().st_size
        for position in {0, size - 1, *rng.sample(range(size), min(size, 5))} if size else ():
            check(path, lambda p, at=position: flip(p, at, rng.randrange(8)), f"flip at {position}")
        for length in {0, size // 2, size - 1} if size else ():
            check(path, lambda p, length=length: os.truncate(p, length), f"cut to {length}")
        check(path, pathlib.Path.unlink, "missing")
    # The test tries what it means to: many outcomes of both kinds, and the arrays' own bytes among the damage.
    assert sum(step == 10 for *_, step in outcomes) > 30 and sum(step == 20 for *_, step in outcomes) > 10
    values = data_file(newest).relative_to(newest)
    assert sum(path == values and what.startswith("flip") and step == 10 for path, what, step in outcomes) >= 3


def test_without_the_checksum_a_flipped_byte_would_be_a_wrong_value(tmp_path, monkeypatch):
    """Why they are there. When Orbax comes to notice by itself, this fails, and they may go."""
    write(tmp_path, 10)
    path = data_file(tmp_path / "10")
    stored = json.loads((tmp_path / "10" / "metadata" / "data.json").read_text())["checksums"]
    monkeypatch.setattr(checkpoints, "checksums", lambda arrays: stored)
    wrong, size = 0, path.stat().st_size
    for position in range(0, size, size // 12):
        good = path.read_bytes()
        flip(path, position)
        try:
            wrong += bits(Checkpoints(tmp_path, description={}).restore(abstract(make_state(0))).state) != bits(make_state(10))
        except UserError:
            pass
        path.write_bytes(good)
    assert wrong


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(tmp_path):
    lines: list[str] = []
    store = Checkpoints(tmp_path, description={}, warn=lines.append)
    for step in (10, 20):
        store.save(step, make_state(step), {})
    store.wait()
    for names in (["10", "20.damaged"], ["10", "20.damaged", "20.damaged.2"]):
        data_file(tmp_path / "20").write_bytes(b"")
        assert store.restore(abstract(make_state(0))).step == 10
        assert sorted(os.listdir(tmp_path)) == names
        store.save(20, make_state(20), {})
        store.wait()
        assert bits(store.restore(abstract(make_state(0))).state) == bits(make_state(20))
    assert [line.split(": ")[-1] for line in lines] == [
        f"renamed to {name}, going on from step 10" for name in ("20.damaged", "20.damaged.2")
    ]


def test_when_every_step_is_damaged_nothing_starts_from_scratch(tmp_path):
    write(tmp_path, 10, 20)
    flip(data_file(tmp_path / "10"), 40)
    flip(tmp_path / "20" / "metadata" / "data.json", 2)
    store = Checkpoints(tmp_path, description={})
    for _ in range(2):  # also when asked again
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole: 20 \(.*SHA-256\), 10 \(.*\): put a good copy"):
            store.restore(abstract(make_state(0)))
        assert sorted(os.listdir(tmp_path)) == ["10", "20"]
    shutil.rmtree(tmp_path / "10")
    (tmp_path / "20").rename(tmp_path / "20.damaged")
    with pytest.raises(UserError, match=r"is whole: 20\.damaged: put"):
        store.restore(abstract(make_state(0)))


def rewrite_metadata(directory: pathlib.Path, **changes) -> None:
    """With a good hash of itself."""
    path = directory / "metadata" / "data.json"
    metadata = {**json.loads(path.read_text()), **changes}
    del metadata["sha256"]
    path.write_text(json.dumps({**metadata, "sha256": checkpoints._sha256(metadata)}))


def test_another_format_and_another_name_are_not_damage(tmp_path):
    store = write(tmp_path, 10, 20)
    (tmp_path / "20").rename(tmp_path / "30")
    with pytest.raises(UserError, match="/30 holds step 20: give the folder its own name back"):
        store.restore(abstract(make_state(0)))
    rewrite_metadata(tmp_path / "30", format=4)
    with pytest.raises(UserError, match="/30 has format 4 and this program reads 3"):
        store.restore(abstract(make_state(0)))
    assert sorted(os.listdir(tmp_path)) == ["10", "30"]


def test_of_a_run_of_an_earlier_version_the_arrays_can_be_read_and_no_run_goes_on(tmp_path):
    store = write(tmp_path, 10)
    rewrite_metadata(tmp_path / "10", format=2)
    with pytest.raises(UserError, match="/10 was saved by an earlier version .*--config.init_from"):
        store.restore(abstract(make_state(0)))
    assert store.read(lambda name: name.startswith("params/")).step == 10
    assert sorted(os.listdir(tmp_path)) == ["10"]


def test_no_permission_is_not_damage():
    """Read as another user: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        store = write(directory, 10, 20)
        wanted = abstract(make_state(0))
        store.restore(wanted)
        secret = data_file(directory / "20")
        secret.chmod(0)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"cannot read .*/20 \(Permission denied\), which says nothing of its files: mend this"):
                store.restore(wanted)
            if was == 0:
                with pytest.raises(UserError, match=r"^Permission denied: step 30 could not be saved in .*: mend this"):
                    store.save(30, make_state(30), {})
                    store.wait()
        finally:
            os.seteuid(was)
        directory.chmod(0o755)
        assert sorted(os.listdir(directory)) == ["10", "20"]


@pytest.mark.parametrize("lacking", ["threads", "memory", "open files"])
def test_a_want_of_the_machine_is_not_damage(tmp_path, monkeypatch, lacking):
    """The newest step is good: to set it aside, and to go on from an older one, would lose what was trained since."""
    store, wanted = write(tmp_path, 10, 20), abstract(make_state(0))

    def refuse(*args, **kwargs):
        raise {
            "threads": RuntimeError("can't start new thread"),
            "memory": MemoryError(),
            "open files": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        }[lacking]

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)  # Orbax reads in a thread of its own
        for read in (lambda: store.restore(wanted), lambda: store.read(lambda name: True)):
            words = {"threads": "can't start new thread", "memory": "out of memory", "open files": "Too many open files"}[lacking]
            with pytest.raises(UserError, match=rf"cannot read .*/20 \(.*{words}\), which says nothing of its files"):
                read()
    assert sorted(os.listdir(tmp_path)) == ["10", "20"] and store.restore(wanted).step == 20


def test_what_was_being_handled_tells_of_the_machine_too(tmp_path):
    for error in (ValueError("Failed to load"), ValueError("INTERNAL: std::bad_alloc")):
        with pytest.raises(UserError, match="says nothing of its files"), damage.seen(tmp_path):
            try:
                raise MemoryError
            except MemoryError:
                raise error  # noqa: B904
    with pytest.raises(UserError, match="bad_alloc"), damage.seen(tmp_path):
        raise ValueError("INTERNAL: std::bad_alloc")
    with pytest.raises(damage.Damaged), damage.seen(tmp_path):
        raise ValueError("Failed to load")


# --- The disk and the process


@pytest.fixture
def small_disk(tmp_path):
    """1 MB. Mounting needs a privilege that a container may not have."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


FULL = (
    r"^the disk is full: step 30 could not be saved in .*; the steps before it are whole: free some space and run the same command again$"
)


def test_a_full_disk(small_disk):
    def state(step: int):
        return {"x": jax.random.normal(jax.random.key(step), (100_000,))}

    store = Checkpoints(small_disk / "checkpoints", description={}, warn=refuse_to_warn)
    store.save(10, state(10), {})
    store.save(20, state(20), {})
    store.save(30, state(30), {})  # begins, and fails in the background
    with pytest.raises(UserError, match=FULL):
        store.save(40, state(40), {})
    assert {"10", "20"} <= set(os.listdir(small_disk / "checkpoints"))
    store.close()  # it was said already
    assert store.restore(abstract(state(0))).step == 20

    shutil.rmtree(small_disk / "checkpoints" / "10")
    again = Checkpoints(small_disk / "checkpoints", description={}, warn=refuse_to_warn)
    restored = again.restore(abstract(state(0)))
    assert restored.step == 20 and bits(restored.state) == bits(state(20))
    again.save(30, state(30), {})
    again.close()
    assert sorted(os.listdir(small_disk / "checkpoints")) == ["20", "30"]
    assert bits(again.restore(abstract(state(0))).state) == bits(state(30))


@pytest.mark.parametrize(
    "number, words", [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EROFS, "Read-only")]
)
def test_errors_of_the_background_reach_the_caller_once(tmp_path, monkeypatch, number, words):
    class Failed:
        def result(self):
            raise ValueError("the save failed") from OSError(number, os.strerror(number))

    store = write(tmp_path, 10)
    monkeypatch.setattr(checkpoints.ocp, "save_checkpointables_async", lambda *_: Failed())
    store.save(20, make_state(20), {})
    with pytest.raises(UserError, match=f"^{words}"):
        store.close()
    store.close()
    monkeypatch.undo()
    store.save(20, make_state(20), {})
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["10", "20"]


def script(code: str, *arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=100)


DIES = """
import os, signal, sys
import jax
from electra_jax.store.checkpoints import Checkpoints

state = lambda step: {f"{i}": jax.random.normal(jax.random.key(step + i), (1000, 1000)) for i in range(10)}
store = Checkpoints(sys.argv[1], description={})
store.save(10, state(10), {})
store.save(20, state(20), {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_a_save(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as death:
        script(DIES, tmp_path)
    assert death.value.returncode == -signal.SIGKILL
    assert not (tmp_path / "20").exists()

    state = {f"{i}": jax.random.normal(jax.random.key(10 + i), (1000, 1000)) for i in range(10)}
    store = Checkpoints(tmp_path, description={}, warn=refuse_to_warn)
    restored = store.restore(abstract(state))
    assert restored.step == 10 and bits(restored.state) == bits(state)
    store.save(20, state, {})
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["10", "20"]
    assert store.restore(abstract(state)).step == 20


CANNOT_BEGIN = """
import os, sys
import jax.numpy as jnp
from electra_jax.store.checkpoints import Checkpoints

store = Checkpoints(sys.argv[1], description={})
store.save(10, {"x": jnp.ones(3)}, {})
store.wait()
os.chmod(sys.argv[1], 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    store.save(20, {"x": jnp.ones(3)}, {})
    store.wait()
except Exception as error:
    print(error)
"""


def test_a_save_that_cannot_begin_does_not_hold_the_process():
    """Left to make its folders in the background, Orbax has threads wait for them for 300 seconds, and so does the exit."""
    with tempfile.TemporaryDirectory() as directory:
        done = script(CANNOT_BEGIN, directory)
        assert done.stdout.startswith("Permission denied: step 20 could not be saved") and done.stderr == "", done
        assert os.listdir(directory) == ["10"]
        os.chmod(directory, 0o700)


QUIET = """
import gc, os, pathlib, sys
import jax, jax.numpy as jnp
from electra_jax.store.checkpoints import Checkpoints

state = {f"{i}": jnp.full((2000, 100), 1.0 * i) for i in range(8)}
store = Checkpoints(sys.argv[1], description={})
for step in (10, 20, 30):
    store.save(step, state, {})
store.close()
os.truncate(pathlib.Path(sys.argv[1], "20", "state", "array_metadatas", "process_0"), 50)  # 600 lines of complaints
files = [path for path in pathlib.Path(sys.argv[1], "30", "state").rglob("*") if path.is_file()]
os.truncate(max(files, key=lambda path: path.stat().st_size), 100)
assert store.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)).step == 10
gc.collect()

class Dies:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        raise self.error

print("now the hook", file=sys.stderr)
Dies(RuntimeError("Event loop is closed"))
Dies(RuntimeError("of somebody else"))
"""


def test_the_console_hears_of_damage_in_one_line_each(tmp_path):
    done = script(QUIET, tmp_path)
    assert done.stdout == ""
    ours, hook = done.stderr.split("now the hook\n")
    lines = ours.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["checkpoint 30 is damaged", "checkpoint 20 is damaged"], done.stderr
    assert "Event loop" not in hook and hook.count("of somebody else") == 1
