"""What every stage of a preparation needs to know: the numbers that decide the rows, and where each file lies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from electra_jax.data.prepare.split import is_heldout
from electra_jax.data.rows import records

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Job:
    """Picklable: workers get it with each task."""

    output: str
    tokenizer_sha256: str
    vocab_size: int
    cls_id: int
    sep_id: int
    pad_id: int
    length: int
    packing: str
    heldout: float
    seed: int
    chunk_chars: int
    buckets: tuple[int, int]  # of each split
    parts: tuple[int, int] = (0, 0)

    @property
    def work(self) -> Path:
        return Path(self.output) / ".work"

    @property
    def dtype(self) -> np.dtype:
        return records.row_dtype(self.vocab_size)

    def chunk_path(self, unit: int, chunk: int) -> Path:
        return self.work / "chunks" / f"{unit:06d}-{chunk:06d}.spill"

    def unit_path(self, unit: int) -> Path:
        return self.work / "chunks" / f"{unit:06d}.json"

    def rows_path(self, split: int, bucket: int) -> Path:
        return self.work / "rows" / f"{SPLITS[split]}-{bucket:05d}.spill"

    def shard_path(self, split: int, part: int) -> Path:
        return Path(self.output) / f"{SPLITS[split]}-{part:05d}-of-{self.parts[split]:05d}.array_record"

    def shard_info_path(self, split: int, part: int) -> Path:
        return self.work / "parts" / f"{SPLITS[split]}-{part:05d}.spill"

    def group(self, digest: bytes) -> int:
        """Split and bucket as one number, from the text's hash: equal texts stay together, the held-out share is exact."""
        split = int(is_heldout(digest, self.heldout))
        return split * self.buckets[0] + int.from_bytes(digest[8:], "big") % self.buckets[split]

    def split_and_bucket(self, group: int) -> tuple[int, int]:
        split = int(group >= self.buckets[0])
        return split, group - split * self.buckets[0]
