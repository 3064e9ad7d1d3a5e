"""The row layout that a manifest names: today's where it names none, one line where it is unknown, any that is added."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data.prepare import PrepareOptions, prepare
from electra_jax.data.rows import layouts, loader, order, records
from electra_jax.types import Array, Batch
from tests.data.folders import make_folder

LEAVES = ("tokens", "segments", "positions", "types", "row")


def first_batch(folder) -> Batch:
    feed = loader.batches(order.Stream([folder], None, seed=0), start_step=0, global_batch=4)
    [batch] = itertools.islice(feed, 1)
    feed.close()
    return batch


def whole_row(tokens, cls_id, sep_id, pad_id):
    """A toy: the row is one segment, whatever it holds."""
    tokens = tokens.astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return {"tokens": tokens, "segments": np.ones_like(tokens), "positions": positions, "types": np.zeros_like(tokens)}


def test_preparation_names_its_layout(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {n} of some words" for n in range(60)))
    options = PrepareOptions((str(tmp_path / "a.txt"),), str(tmp_path / "rows"), vocab_size=150, length=16, heldout=0.2)
    assert prepare(options, workers=1, progress=False)["layout"] == layouts.CLS_SEP
    assert json.loads((tmp_path / "rows" / records.MANIFEST).read_text())["layout"] == layouts.CLS_SEP


def test_a_manifest_without_the_field_has_todays_layout(tmp_path):
    old, new = make_folder(tmp_path / "old", [300]), make_folder(tmp_path / "new", [300], layout=layouts.CLS_SEP)
    for name in LEAVES:
        np.testing.assert_array_equal(getattr(first_batch(old), name), getattr(first_batch(new), name))
    assert order.Stream([old, new], None, seed=0).num_rows == 600  # and they mix


@pytest.mark.parametrize("layout", ["patches", 7, None, ["cls_sep"]])
def test_an_unknown_layout_is_one_line(layout, tmp_path):
    folder = make_folder(tmp_path / "rows", [300], layout=layout)
    message = f"{folder}/manifest.json says that its rows have the layout {layout!r}, and this version of electra_jax reads cls_sep: "
    for read in (lambda: order.Stream([folder], None, 0), lambda: next(loader.heldout_batches([folder], batch=4))):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value) == message + "use the version that prepared the data, or prepare it again"


def test_an_added_layout_reads_the_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(layouts.LAYOUTS, "whole", whole_row)
    folder = make_folder(tmp_path / "rows", [300], layout="whole")
    assert (first_batch(folder).segments == 1).all() and (first_batch(folder).positions == np.arange(8)).all()
    assert (next(loader.heldout_batches([folder], batch=4))[0].segments == 1).all()


def test_folders_of_two_layouts_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setitem(layouts.LAYOUTS, "whole", whole_row)
    one, other = make_folder(tmp_path / "one", [300]), make_folder(tmp_path / "other", [300], layout="whole")
    with pytest.raises(UserError) as error:
        order.Stream([one, other], None, seed=0)
    assert str(error.value) == f"rows of the layout cls_sep in {one}, whole in {other}: prepare one of them again"


def test_a_batch_of_a_task_may_have_more_leaves(tmp_path, monkeypatch):
    class Labelled(Batch):
        labels: Array  # [B]

    def labelled(tokens, row, manifest):
        return Labelled(**layouts.columns(tokens, manifest), row=row, labels=tokens[:, 2])

    folder = make_folder(tmp_path / "rows", [300])
    plain = first_batch(folder)
    monkeypatch.setattr(loader, "_batch", labelled)
    batch = first_batch(folder)
    assert isinstance(batch, Labelled) and batch.labels.shape == (4,)
    np.testing.assert_array_equal(batch.labels, plain.tokens[:, 2])
    for name in LEAVES:
        np.testing.assert_array_equal(getattr(batch, name), getattr(plain, name))


def test_staging_refuses_an_unknown_layout_before_it_copies(tmp_path):
    folder = pathlib.Path(make_folder(tmp_path / "rows", [300], layout="patches"))
    with pytest.raises(UserError, match="^gs://b/rows/manifest.json says that its rows have the layout 'patches'"):
        records.parse_manifest((folder / records.MANIFEST).read_bytes(), "gs://b/rows/manifest.json")
