"""Which row stands where: a pure function of (seed, index), for any number of hosts, from any step on."""

import itertools
import threading
import time

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data.rows import hashing, loader, order, records
from tests.data.folders import CLS, LENGTH, SEP, make_folder


def numbers(tokens):
    assert (tokens[:, 0] == CLS).all() and (tokens[:, 3] == SEP).all()
    return (tokens[:, 1] - 10) * 1000 + tokens[:, 2] - 10


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "one", [700, 0, 300, 1])  # records of 256, 256, 188, 256, 44 and 1


def test_an_epoch_holds_every_row_once_and_each_has_its_own_order(folder):
    stream = order.Stream([folder], None, seed=0)
    assert (stream.num_rows, stream.length) == (1001, LENGTH)
    epochs = numbers(stream.rows(np.arange(3 * 1001))).reshape(3, 1001)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1001))
    for a, b in itertools.combinations([*epochs, np.arange(1001)], 2):
        assert (a == b).sum() < 10
    other = numbers(order.Stream([folder], None, seed=1).rows(np.arange(1001)))
    assert (other == epochs[0]).sum() < 10


def test_the_order_is_a_promise(folder):
    """These numbers may never change: a run that goes on under another numpy must meet the same rows."""
    assert hashing.hash64(0) == 0xE220A8397B1DCDAF  # splitmix64's first number from seed 0, as published
    assert hashing.permutation(8, 0).tolist() == sorted(range(8), key=lambda i: hashing.hash64(0, i))
    assert hashing.permutation(10, 5, 7).tolist() == [6, 1, 0, 2, 4, 5, 3, 9, 7, 8]
    assert numbers(order.Stream([folder], None, seed=0).rows(np.array([0, 1, 1000, 1001, 10**12]))).tolist() == [528, 88, 655, 190, 857]


def test_a_batch_does_not_meet_again_in_the_next_epoch(tmp_path):
    """Two windows and a half, batches as large as a chunk: by chance a batch of an epoch shares some 3 rows in 256 with one of the next,
    and at most a few more; with a permutation within each chunk alone, all 256 could stand in two batches again."""
    folder = make_folder(tmp_path / "many", [20_000, 20_000])
    stream, batch = order.Stream([folder], None, seed=0), 256
    first, second = numbers(stream.rows(np.arange(80_000))).reshape(2, 40_000)
    which = np.empty(40_000, np.int64)  # batch of the second epoch in which a row stands
    which[second] = np.arange(40_000) // batch
    together = [np.bincount(which[first[start : start + batch]]).max() for start in range(0, 40_000 - batch, batch)]
    assert max(together) <= 16 and np.mean(together) < 10


def test_rows_do_not_depend_on_how_they_are_asked_for(folder):
    indices = np.random.default_rng(0).permutation(3 * 1001)[:1500]
    whole = order.Stream([folder], None, seed=0).rows(np.arange(3 * 1001))
    np.testing.assert_array_equal(order.Stream([folder], None, seed=0).rows(indices), whole[indices])


@pytest.mark.parametrize("read_ahead", [0, 5])
def test_resume_is_the_step_alone(folder, read_ahead):
    def first(start_step, count):
        stream = order.Stream([folder], None, seed=3)
        it = loader.batches(stream, start_step=start_step, global_batch=96, read_ahead=read_ahead)
        found = list(itertools.islice(it, count))
        it.close()
        return found

    run = first(0, 40)  # nearly four epochs
    for start_step in (1, 10, 11, 37):
        for ours, theirs in zip(first(start_step, 3), run[start_step:], strict=False):
            for name in ("tokens", "segments", "positions", "types", "row"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    seen = np.concatenate([numbers(batch.tokens) for batch in run])
    np.testing.assert_array_equal(np.sort(seen[:1001]), np.arange(1001))


@pytest.mark.parametrize(
    "hosts",
    [[range(0, 12), range(12, 24)], [range(h, 24, 3) for h in range(3)], [[5, 0, 23], [*range(1, 5), *range(6, 23)]]],
)
def test_hosts_share_the_rows_of_one(folder, hosts):
    def run(rows):
        stream = order.Stream([folder], None, seed=3)
        it = loader.batches(stream, start_step=40, global_batch=24, rows=rows)
        found = list(itertools.islice(it, 5))
        it.close()
        return found

    whole = run(None)
    shares = [run(rows) for rows in hosts]
    for step, batch in enumerate(whole):
        assert batch.row.tolist() == list(range(24)) and batch.row.dtype == np.int32
        for rows, share in zip(hosts, shares, strict=True):
            assert share[step].row.tolist() == list(rows)
            np.testing.assert_array_equal(share[step].tokens, batch.tokens[list(rows)])
    assert sorted(int(row) for share in shares for row in share[0].row) == list(range(24))


def test_a_batch_is_what_its_tokens_say(folder):
    it = loader.batches(order.Stream([folder], None, seed=0), start_step=0, global_batch=4)
    batch = next(it)
    it.close()
    assert all(leaf.dtype == np.int32 for leaf in (batch.tokens, batch.segments, batch.positions, batch.types, batch.row))
    assert batch.segments.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0]] * 4
    assert batch.types.tolist() == [[0] * 8] * 4
    with pytest.raises(ValueError, match="rows"):
        loader.batches(order.Stream([folder], None, seed=0), start_step=0, global_batch=4, rows=[4])


def test_closing_leaves_no_thread(folder):
    before = set(threading.enumerate())
    it = loader.batches(order.Stream([folder], None, seed=0), start_step=0, global_batch=16)
    next(it)
    assert set(threading.enumerate()) - before
    it.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_threads_read_the_same_rows(folder, monkeypatch):
    monkeypatch.setattr(order._Shuffled, "CACHED_WINDOWS", 2)
    monkeypatch.setattr(order._Shuffled, "WINDOW_CHUNKS", 2)
    monkeypatch.setattr(records, "_OPEN_SHARDS", 1)
    stream, expected = (order.Stream([folder], None, seed=0) for _ in range(2))
    expected = expected.rows(np.arange(4000))
    wrong = []

    def read(seed):
        for _ in range(30):
            indices = np.random.default_rng(seed).integers(0, 4000, 64)
            if not np.array_equal(stream.rows(indices), expected[indices]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mixture_keeps_its_weights_over_any_10_000_rows(tmp_path):
    sizes = (3000, 500, 1200)
    folders = [make_folder(tmp_path / str(n), [size], first=10_000 * n) for n, size in enumerate(sizes)]
    stream = order.Stream(folders, [5, 1.7, 0.003], seed=1)
    found = numbers(stream.rows(np.arange(45_000)))
    which = found // 10_000
    quotas = np.bincount(which[:10_000], minlength=3)
    assert quotas.tolist() == [7459, 2536, 5]  # of 7459.35, 2536.18 and 4.48: the row left over goes to the largest remainder
    ones = np.stack([which == n for n in range(3)]).cumsum(axis=1)
    windows = ones[:, 10_000:] - ones[:, :-10_000]
    assert (windows == quotas[:, None]).all()  # wherever the window begins
    shares = ones[:, :10_000] - np.arange(1, 10_001) * quotas[:, None] / 10_000
    assert np.abs(shares).max() < 3  # evenly spread within it too
    for n, size in enumerate(sizes[:2]):  # each folder's own rows: epoch after epoch, in its own order
        own = found[which == n] - 10_000 * n
        for epoch in range(len(own) // size):
            np.testing.assert_array_equal(np.sort(own[epoch * size : (epoch + 1) * size]), np.arange(size))
    np.testing.assert_array_equal(found[12_345:12_400], numbers(order.Stream(folders, [5, 1.7, 0.003], 1).rows(np.arange(12_345, 12_400))))


def test_a_mixture_without_weights_follows_the_rows(tmp_path):
    folders = [make_folder(tmp_path / str(n), [size], first=10_000 * n) for n, size in enumerate((900, 300))]
    for weights in (None, ()):
        which = numbers(order.Stream(folders, weights, seed=0).rows(np.arange(10_000))) // 10_000
        assert np.bincount(which).tolist() == [7_500, 2_500]


def test_the_same_folder_twice_is_not_the_same_order(folder):
    found = numbers(order.Stream([folder, folder], [1, 1], seed=0).rows(np.arange(2002)))
    assert (np.bincount(found, minlength=1001) == 2).all()
    halves = [order.Stream([folder, folder], [1, 1], seed=0)._shuffled[n]._epoch(0)[0].tolist() for n in range(2)]
    assert halves[0] != halves[1]


def test_what_does_not_fit_together_is_one_line(tmp_path, folder):
    longer = make_folder(tmp_path / "longer", [10], length=16)
    foreign = make_folder(tmp_path / "foreign", [10], tokenizer="b")
    small = make_folder(tmp_path / "small", [10])
    for folders, weights, message in (
        ([folder, longer], None, f"rows of 8 tokens in {folder}, of 16 in {longer}"),
        ([folder, foreign], None, f"{folder} and {foreign} were made with different tokenizers"),
        ([folder, small], [1], "1 weights for 2 folders"),
        ([folder, small], [1, 0], "above 0"),
        ([folder, small], [1, float("nan")], "above 0"),
        ([folder, small], [1, 1e-9], f"{small} would give less than one row in 10,000"),
        ([], None, "no data"),
        ([str(tmp_path / "none")], None, "no such folder"),
    ):
        with pytest.raises(UserError) as error:
            order.Stream(folders, weights, 0)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="different tokenizers"):
        list(loader.heldout_batches([folder, foreign], batch=4))


def test_a_damaged_shard_reaches_the_consumer_as_one_line(folder):
    path = next(p for p in records.Path(folder).glob("train-00000*"))
    data = bytearray(path.read_bytes())
    place = data.index(bytes([10, 0, 10, 0]))
    data[place] ^= 64
    path.write_bytes(data)
    it = loader.batches(order.Stream([folder], None, seed=0), start_step=0, global_batch=512)
    with pytest.raises(UserError, match="train-00000-of-00004.array_record is damaged"):
        for _ in range(3):
            next(it)
    it.close()


def heldout(folders, **options):
    return [(numbers(batch.tokens), batch.row, valid) for batch, valid in loader.heldout_batches(folders, **options)]


def test_heldout_rows_come_in_order_and_the_last_batch_is_padded(tmp_path):
    folders = [make_folder(tmp_path / "a", [10], [300, 5]), make_folder(tmp_path / "b", [10], [11], first=1000)]
    batches = heldout(folders, batch=64)
    assert all(len(found) == len(row) == len(valid) == 64 for found, row, valid in batches)
    assert np.concatenate([found[valid] for found, _, valid in batches]).tolist() == [*range(305), *range(1000, 1011)]
    assert np.concatenate([row[valid] for _, row, valid in batches]).tolist() == list(range(316))
    found, row, valid = batches[-1]
    assert valid.tolist() == [True] * 60 + [False] * 4 and found[60:].tolist() == [1010] * 4 and row[60:].tolist() == [315] * 4
    assert len(batches) == 5 and all(valid.all() for _, _, valid in batches[:-1])


def test_heldout_rows_limited_are_taken_from_every_folder(tmp_path):
    folders = [make_folder(tmp_path / "a", [10], [300]), make_folder(tmp_path / "b", [10], [100], first=1000)]
    for max_rows, expected in ((40, [*range(30), *range(1000, 1010)]), (400, None), (10_000, None), (1, [1000])):
        batches = heldout(folders, batch=16, max_rows=max_rows)
        found = np.concatenate([found[valid] for found, _, valid in batches]).tolist()
        assert found == (expected or [*range(300), *range(1000, 1100)])
