"""Workdirs in a bucket, against a stand-in of the service: what holds on a disk holds there, at whatever moment a process dies."""

import contextlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from electra_jax import gcs as remote  # the fixture `gcs` is the stand-in for the store
from electra_jax.cli import UserError
from electra_jax.store import workdirs
from electra_jax.store.checkpoints import Checkpoints
from electra_jax.store.folders import at as steps_at
from tests.launch import runs

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
DESCRIPTION = {"tokenizer": "ab12"}
COMMIT = "commit_success.txt"


def state(seed: int) -> dict:
    return {f"{i}": jax.random.normal(jax.random.key(10 * seed + i), (200, 10)) for i in range(2)}


WANTED = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))


def bits(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def refuse_to_warn(line):
    raise AssertionError(line)


def store_at(bucket: str, warn=refuse_to_warn, **options) -> Checkpoints:
    return Checkpoints(f"gs://{bucket}/run/checkpoints", description=DESCRIPTION, warn=warn, **options)


def write(bucket: str, *steps: int, **options) -> Checkpoints:
    store = store_at(bucket, **options)
    for step in steps:
        store.save(step, state(step), {"secs": step * 0.1})
    store.wait()
    return store


def folders(gcs, bucket: str) -> list[str]:
    return sorted({name.split("/")[2] for name in gcs.names(bucket, "run/checkpoints/")})


def files_of(gcs, bucket: str, step: int) -> dict[str, bytes]:
    return {name: gcs.buckets[bucket][name] for name in gcs.names(bucket, f"run/checkpoints/{step}/")}


@contextlib.contextmanager
def moments(gcs, bucket: str):
    """Collects what the bucket holds before each of its changes, and after the last: all that a death can leave."""
    held: list[dict[str, bytes]] = []
    gcs.on_write = lambda name: held.append(dict(gcs.buckets[bucket]))
    yield held
    gcs.on_write = lambda name: None
    held.append(dict(gcs.buckets[bucket]))


# --- Checkpoints


def test_round_trip_and_what_is_kept(gcs, bucket):
    store = write(bucket, 10, 20, 30, 40, keep=2, keep_every_steps=20)
    assert folders(gcs, bucket) == ["20", "30", "40"]
    restored = store_at(bucket).restore(WANTED)
    assert restored.step == 40 and restored.clock == {"secs": 4.0} and restored.description == DESCRIPTION
    assert bits(restored.state) == bits(state(40))
    before = dict(gcs.buckets[bucket])
    store.save(40, state(41), {})  # it is there
    store.close()
    assert gcs.buckets[bucket] == before and store.latest_step == 40 and store.description() == DESCRIPTION


def test_nothing_saved(gcs, bucket):
    store = store_at(bucket)
    assert store.restore(WANTED) is None and store.latest_step is None and store.description() is None
    assert gcs.buckets[bucket] == {}


def test_a_death_at_any_moment_of_saving_and_deleting(gcs, bucket):
    """The second save, with the first deleted after it: at each moment the newest whole step comes back, and a save goes on."""
    store = write(bucket, 10, 20, keep=2)
    whole = {10: files_of(gcs, bucket, 10), 20: files_of(gcs, bucket, 20)}
    with moments(gcs, bucket) as held:
        store.save(30, state(30), {})
        store.wait()
    assert folders(gcs, bucket) == ["20", "30"]
    whole[30] = files_of(gcs, bucket, 30)
    found = []
    for content in held:
        gcs.buckets[bucket] = dict(content)
        assert all(files_of(gcs, bucket, step) == whole[step] for step in steps_at(f"gs://{bucket}/run/checkpoints").steps())
        again = store_at(bucket, keep=2)
        restored = again.restore(WANTED)
        assert bits(restored.state) == bits(state(restored.step))
        assert gcs.buckets[bucket] == content  # who only reads changes nothing
        found.append(restored.step)
    assert found == sorted(found) and {*found} == {20, 30} and found.count(30) > 5 and found.count(20) > 8
    for content in held[:: len(held) // 6]:
        gcs.buckets[bucket] = dict(content)
        again = store_at(bucket, keep=2)
        for step in (30, 40):
            again.save(step, state(step), {})
        again.close()
        assert folders(gcs, bucket) == ["30", "40"]
        assert bits(again.restore(WANTED).state) == bits(state(40))


def damage_data(gcs, bucket: str, step: int) -> None:
    objects = gcs.buckets[bucket]
    name = max((name for name in objects if f"/{step}/state/d/" in name), key=lambda name: len(objects[name]))
    content = bytearray(objects[name])
    content[len(content) // 2] ^= 1
    objects[name] = bytes(content)


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(gcs, bucket):
    lines: list[str] = []
    store = store_at(bucket, lines.append)
    for step in (10, 20):
        store.save(step, state(step), {})
    store.wait()
    missing = next(name for name in gcs.names(bucket, "run/checkpoints/20/metadata/"))
    damages = (lambda: damage_data(gcs, bucket, 20), lambda: gcs.buckets[bucket].pop(missing))
    for damage, expected in zip(damages, (["20.damaged"], ["20.damaged", "20.damaged.2"]), strict=True):
        damage()
        damaged = {name.split("/20/")[1]: content for name, content in gcs.buckets[bucket].items() if "/20/" in name}
        assert store.restore(WANTED).step == 10
        assert folders(gcs, bucket) == ["10", *expected]
        kept = gcs.names(bucket, f"run/checkpoints/{expected[-1]}/")
        assert {name.split(f"/{expected[-1]}/")[1]: gcs.buckets[bucket][name] for name in kept} == damaged
        store.save(20, state(20), {})
        store.wait()
        assert bits(store.restore(WANTED).state) == bits(state(20))
    assert [line.split(" (")[0] for line in lines] == ["checkpoint 20 is damaged"] * 2
    assert lines[1].endswith("): renamed to 20.damaged.2, going on from step 10")
    damage_data(gcs, bucket, 20)
    damage_data(gcs, bucket, 10)
    with pytest.raises(UserError, match=r"no checkpoint in gs://\S+ is whole: 20 \(.*\), 10 \(.*\), 20.damaged, 20.damaged.2: put"):
        store.restore(WANTED)


def test_a_death_at_any_moment_of_setting_aside(gcs, bucket):
    write(bucket, 10, 20)
    damage_data(gcs, bucket, 20)
    damaged = {name.split("/20/")[1]: content for name, content in gcs.buckets[bucket].items() if "/20/" in name}
    with moments(gcs, bucket) as held:
        assert store_at(bucket, warn=lambda line: None).restore(WANTED).step == 10
    assert len(held) == 2 * len(damaged) + 1
    for content in held:
        gcs.buckets[bucket] = dict(content)
        again = store_at(bucket, warn=lambda line: None)
        assert again.restore(WANTED).step == 10
        again.save(20, state(20), {})
        again.close()
        assert bits(again.restore(WANTED).state) == bits(state(20))
        kept = gcs.names(bucket, "run/checkpoints/20.damaged/")
        assert {name.split("/20.damaged/")[1]: gcs.buckets[bucket][name] for name in kept} == damaged


def test_refused_access_is_neither_damage_nor_a_trace(gcs, bucket):
    store = write(bucket, 10)
    gcs.on_write = lambda name: setattr(gcs, "read_only", "/20/state/d/" in name)  # in the middle of the save
    store.save(20, state(20), {})
    with pytest.raises(UserError, match=r"^step 20 could not be saved in gs://\S+: access is refused \(PERMISSION_DENIED.*it are") as error:
        store.wait()
    assert "\n" not in str(error.value)
    gcs.on_write, gcs.read_only = lambda name: None, False
    before = dict(gcs.buckets[bucket])
    again = store_at(bucket)
    for gcs.forbidden in (f"/b/{bucket}/o", "/10/metadata/", "/10/state/d/"):  # the listing, one read by gcsfs, one by TensorStore
        with pytest.raises(UserError, match=r"gs://\S+: access is refused \((Forbidden|PERM[A-Z_]+): .*\): log in .*; then run") as error:
            again.restore(WANTED)
        assert "\n" not in str(error.value)
    gcs.forbidden = None
    assert gcs.buckets[bucket] == before
    assert again.restore(WANTED).step == 10
    again.save(20, state(20), {})
    again.close()
    assert again.latest_step == 20


def test_a_busy_store_is_asked_again(gcs, bucket):
    store = write(bucket, 10)
    gcs.on_write = lambda name: setattr(gcs, "busy", 2) if "/20/state/d/" in name else None  # in the middle of the save
    gcs.busy = 2
    store.save(20, state(20), {})
    store.wait()
    gcs.on_write = lambda name: None
    assert gcs.busy == 0
    gcs.busy = 2
    assert bits(store_at(bucket).restore(WANTED).state) == bits(state(20)) and gcs.busy == 0


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_what_is_the_stores_trouble_and_what_the_files(gcs):
    import aiohttp
    import gcsfs.retry
    import google.auth.exceptions

    for error, words in (
        (aiohttp.ClientConnectionError("no route"), "cannot be reached (ClientConnectionError: no route)"),
        (gcsfs.retry.HttpError({"code": 503, "message": "busy"}), "cannot be reached (HttpError: busy, 503)"),
        (gcsfs.retry.HttpError({"code": 401, "message": "Anonymous caller"}), "access is refused (Anonymous caller, 401): log in"),
        (google.auth.exceptions.RefreshError("stale"), "no credentials that work (stale): log in"),
        (ValueError("UNAVAILABLE: CURL error [http_response='x']"), "cannot be reached (ValueError: UNAVAILABLE: CURL error)"),
        (chained(KeyError("state"), ConnectionResetError("reset")), "cannot be reached (ConnectionResetError: reset)"),
        (gcsfs.retry.HttpError({"code": 400, "message": "bad"}), None),
        (ValueError("NOT_FOUND: Error reading x"), None),
        (FileNotFoundError("x"), None),
    ):
        found = remote.trouble(error)
        assert found is None if words is None else words in found, (error, found)


# --- The workdir's own files


def test_the_small_files_go_there_and_come_back(gcs, bucket, tmp_path):
    url = f"gs://{bucket}/runs/one"
    with workdirs.opened(url + "/", tmp_path / "here") as place:
        assert place.name == url and place.checkpoints == f"{url}/checkpoints"
        assert place.path.is_relative_to(tmp_path / "here")
        workdirs.write_config(place, {"a": 1})
        (place.path / "metrics.jsonl").write_text("1\n")
        (place.path / "tensorboard").mkdir()
        (place.path / "tensorboard" / "events").write_text("1")
        (place.path / "half.tmp").write_text("")
        written: list[str] = []
        gcs.on_write = written.append
        place.publish()
        assert written[:2] == ["runs/one/config.json", "runs/one/metrics.jsonl"]
        assert gcs.names(bucket) == ["runs/one/config.json", "runs/one/metrics.jsonl", "runs/one/tensorboard/events"]
        (place.path / "metrics.jsonl").write_text("1\n2\n")
        written.clear()
        place.publish()
        assert written == ["runs/one/metrics.jsonl"]
        (place.path / "report.html").write_text("<p>")
    assert written[1:] == ["runs/one/report.html"]  # at the end, without being asked
    gcs.buckets[bucket] |= {"runs/one/checkpoints/3/x": b"", "runs/one/profile/x": b"", "runs/one/tensorboard/": b""}
    (place.path / "metrics.jsonl").write_text("stale, from a run that was deleted")
    (place.path / "tensorboard" / "older").write_text("stale")
    for machine in ("here", "there"):
        with workdirs.opened(url, tmp_path / machine) as place:
            files = {path.relative_to(place.path).as_posix() for path in place.path.rglob("*") if path.is_file()}
            assert files == {".lock", "config.json", "metrics.jsonl", "tensorboard/events", "report.html"}
            assert (place.path / "metrics.jsonl").read_text() == "1\n2\n"
            written.clear()
        assert written == []


def test_after_an_error_the_files_are_there_too_and_the_error_is_heard(gcs, bucket, tmp_path):
    for read_only in (False, True):
        with pytest.raises(UserError, match="diverged"), workdirs.opened(f"gs://{bucket}/{read_only}", tmp_path) as place:
            (place.path / "metrics.jsonl").write_text("1\n")
            gcs.read_only = read_only
            raise UserError("diverged")
    assert gcs.names(bucket) == ["False/metrics.jsonl"]


def test_whose_workdir_it_is(gcs, bucket, tmp_path):
    gcs.buckets[bucket]["other/thesis.txt"] = b"my only copy"
    with pytest.raises(UserError, match=rf"^gs://{bucket}/other is not empty and holds no run of ours"):
        workdirs.opened(f"gs://{bucket}/other", tmp_path).__enter__()
    with workdirs.opened(f"gs://{bucket}/run", tmp_path):
        with pytest.raises(UserError, match=rf"^another process trains in gs://{bucket}/run: "):
            workdirs.opened(f"gs://{bucket}/run/", tmp_path).__enter__()
    with pytest.raises(UserError, match="^gs://no-such-bucket/run: there is no bucket no-such-bucket"):
        workdirs.opened("gs://no-such-bucket/run", tmp_path).__enter__()
    assert gcs.names(bucket) == ["other/thesis.txt"]


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    remote.filesystem.cache_clear()
    for use in (lambda: workdirs.opened("gs://bucket/run", tmp_path).__enter__(), lambda: Checkpoints("gs://bucket/run", description={})):
        with pytest.raises(UserError, match=r"^gs:// needs the package gcsfs: pip install 'electra_jax\[gcs\]'$"):
            use()


# --- A run


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compilation_cache")


@pytest.fixture(scope="module")
def undisturbed(rows, cache, tmp_path_factory):
    """A run on the disk alone, that nothing befell."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = runs.run(workdir, f"{rows},{rows}", cache)
    assert done.returncode == 0, done.stderr
    return workdir


# Each names the change in the bucket before which the process dies, and the how-manieth of its own it is.
IN_A_SAVE = ("/checkpoints/21/state/d/", 1)
IN_COPYING_METRICS = ("/metrics.jsonl", 4)
AT_THE_COMMIT = (f"/checkpoints/42/{COMMIT}", 1)
IN_PRUNING = (f"/checkpoints/14/{COMMIT}", 1)  # a process before wrote it: this one deletes it


@pytest.mark.parametrize(
    "deaths",
    [
        pytest.param((IN_A_SAVE,), id="once"),
        pytest.param((IN_COPYING_METRICS, IN_A_SAVE, IN_PRUNING, AT_THE_COMMIT), id="often", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_on_another_machine_a_run_is_bit_identical(deaths, gcs, bucket, rows, cache, undisturbed, tmp_path):
    """Workdir and half of the data in the bucket; each kill -9 takes the machine's disk with it."""
    gcs.add(rows, bucket, "data/topics")
    url, data, scratch = f"gs://{bucket}/runs/tiny", f"gs://{bucket}/data/topics,{rows}", tmp_path / "scratch"
    for where, count in deaths:
        changes: list[str] = []
        command = runs.command(url, data, f"--scratch={scratch}")
        process = subprocess.Popen(command, env=runs.environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

        def die(name: str) -> None:
            changes.append(name)
            if where in name and sum(where in change for change in changes) == count:
                process.kill()
                process.wait()

        gcs.on_write = die
        _, stderr = process.communicate(timeout=100)
        gcs.on_write = lambda name: None
        assert process.returncode == -9, (where, stderr)
        shutil.rmtree(scratch)
    done = runs.run(url, data, cache, f"--scratch={scratch}")
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr and f"{url}/report.html shows the curves" in done.stdout
    result = tmp_path / "result"
    gcs.save(bucket, "runs/tiny", result)
    assert {path.name for path in result.iterdir()} == {"checkpoints", "config.json", "metrics.jsonl", "report.html", "tokenizer"}
    assert runs.learned(result) == runs.learned(undisturbed)
    assert runs.state_bytes(result) == runs.state_bytes(undisturbed)
    steps = {path.name for path in (undisturbed / "checkpoints").iterdir()}
    assert {path.name for path in (result / "checkpoints").iterdir()} == steps
