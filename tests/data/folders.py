"""Prepared folders made without a corpus, for tests of what reads them."""

import numpy as np

from electra_jax.data.rows import records

LENGTH, CLS, SEP, PAD = 8, 2, 3, 0


def make_folder(folder, train, heldout=(40,), *, first=0, length=LENGTH, tokenizer="a", **more):
    """A prepared folder; the row number `first + i` holds its number as two tokens.

    `train`, `heldout`: rows of each shard; `more`: fields of the manifest.
    """
    folder.mkdir()
    splits = {}
    for split, shards in (("train", train), ("heldout", heldout)):
        numbers, entries = np.arange(first, first + sum(shards)), []
        tokens = np.full((len(numbers), length), PAD, np.uint16)
        tokens[:, 0], tokens[:, 1], tokens[:, 2], tokens[:, 3] = CLS, 10 + numbers // 1000, 10 + numbers % 1000, SEP
        for number, part in enumerate(np.split(tokens, np.cumsum(shards)[:-1])):
            path = folder / f"{split}-{number:05d}-of-{len(shards):05d}.array_record"
            entries.append(records.write_shard(path, part))
        splits[split] = {"rows": len(numbers), "shards": entries}
    ids = {"sha256": tokenizer, "cls_id": CLS, "sep_id": SEP, "pad_id": PAD}
    manifest = {"format": 1, "length": length, "dtype": "uint16", "tokenizer": ids, "splits": splits, **more}
    records.save_manifest(folder, manifest)
    return str(folder)
