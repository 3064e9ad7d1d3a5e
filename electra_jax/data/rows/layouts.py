"""What a row of tokens says: a row is stored as its tokens alone, and a layout reads everything else from them.

The manifest of a prepared folder names the layout of its rows. To add one, write a function here and give it a line in LAYOUTS:
(tokens [N, L], cls_id, sep_id, pad_id) -> {leaf of the Batch: array with N rows}, each int32.
"""

import numpy as np

from electra_jax.cli import UserError

CLS_SEP = "cls_sep"  # the layout of a manifest without the field, which was written before there was one


def expand(tokens_NxL: np.ndarray, cls_id: int, sep_id: int, pad_id: int) -> dict[str, np.ndarray]:
    """Documents between [CLS] and [SEP]: `tokens, segments, positions, types`, each int32 [N, L].

    Tokenizers never give a special id for text, so `[CLS]`, `[SEP]` and `[PAD]` are structure. A `[CLS]` opens the next segment
    (1-based) and position 0; what follows a `[SEP]` within a segment has type 1; `[PAD]` is 0 in all three.
    """
    shape, length = tokens_NxL.shape, tokens_NxL.shape[1]
    tokens = np.ascontiguousarray(tokens_NxL, np.int32).ravel()
    is_cls, is_real = tokens == cls_id, tokens != pad_id
    # Segments, types and the place where positions restart are constant between changes, which happen only at the start of a row, at
    # [CLS] and behind [SEP]. They are computed for these few places and repeated up to the next.
    changes = is_cls.copy()
    changes[1:] |= tokens[:-1] == sep_id
    changes[::length] = True
    at = np.flatnonzero(changes).astype(np.int32)
    counts = np.empty_like(at)
    np.subtract(at[1:], at[:-1], out=counts[:-1])
    counts[-1:] = tokens.size - at[-1:]
    opens, row_start = is_cls[at], at % length == 0
    seen = np.cumsum(opens, dtype=np.int32)
    before_row = np.maximum.accumulate(np.where(row_start, seen - opens, 0))
    origin = np.maximum.accumulate(np.where(opens | row_start, at, 0))
    positions = np.arange(tokens.size, dtype=np.int32) - np.repeat(origin, counts)
    segments = np.repeat((seen - before_row).astype(np.int32), counts)
    types = np.repeat((~(opens | row_start)).astype(np.int32), counts)
    columns = {"segments": segments, "positions": positions, "types": types}
    return {"tokens": tokens.reshape(shape)} | {name: (c * is_real).reshape(shape) for name, c in columns.items()}


LAYOUTS = {CLS_SEP: expand}


def layout_of(manifest: dict) -> str:
    return manifest.get("layout", CLS_SEP)


def check_layout(manifest: dict, path) -> None:
    """Raises UserError where this version cannot read the rows of the manifest at `path`."""
    layout = layout_of(manifest)
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise UserError(
            f"{path} says that its rows have the layout {layout!r}, and this version of electra_jax reads {', '.join(LAYOUTS)}: "
            "use the version that prepared the data, or prepare it again"
        )


def columns(tokens_NxL: np.ndarray, manifest: dict) -> dict[str, np.ndarray]:
    """The rows as leaves of a Batch, all but `row`, in the layout that the manifest names."""
    ids = manifest["tokenizer"]
    return LAYOUTS[layout_of(manifest)](tokens_NxL, ids["cls_id"], ids["sep_id"], ids["pad_id"])
