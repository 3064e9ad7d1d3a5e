"""Saving and restoring a run's whole state, beside torch.save and torch.load."""

import tempfile
import time
from collections.abc import Callable

from benchmarks.processes import Side, measure
from benchmarks.tables import Table, number, times
from electra_jax.recipe import Recipe

OURS, THEIRS = "electra_jax", "torch.save, torch.load"


def checkpoint(stored: dict) -> Callable[[], dict[str, float]]:
    """A turn saves the state and restores it, verified: how long the step would wait, until it is on disk, and back again."""
    import jax

    from benchmarks import ours
    from electra_jax.store.checkpoints import Checkpoints

    parts = ours.build(Recipe.parse(stored)).parts
    state = jax.block_until_ready(parts.init(parts.root))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    folder = tempfile.TemporaryDirectory()
    kept, number = Checkpoints(folder.name, keep=1, description={"config": stored}), 0

    def run() -> dict[str, float]:
        nonlocal number
        number += 1
        start = time.monotonic()
        kept.save(number, state, {})
        blocked = time.monotonic()
        kept.wait()
        saved = time.monotonic()
        jax.block_until_ready(kept.restore(parts.abstract_state).state)
        return {"blocked": blocked - start, "saved": saved - start, "restored": time.monotonic() - saved, "bytes": size}

    return run


def table(recipe: Recipe, preset: str, rounds: int) -> Table:
    given = {"stored": recipe.stored()}
    ours = Side(OURS, "benchmarks.checkpoints:checkpoint", given)
    theirs = Side(THEIRS, "benchmarks.peers:checkpoint", given, needs=("torch", "transformers"))
    turns = measure([ours, theirs], rounds, optional=[THEIRS])
    columns = ("blocked", "saved", "restored")
    lines = [
        [
            side,
            number(turns.median(side, "bytes") / 2**20),
            *(number(turns.median(side, name)) for name in columns),
            *("1" if side == OURS else times(turns.ratio(side, OURS, name)) for name in columns),
        ]
        for side in turns.samples
    ]
    return Table(
        "checkpoint",
        f"`{preset}`: parameters and optimizer on a local disk, read back from the system's page cache; ours has a checksum of every "
        f"array, made and compared; {rounds} rounds.",
        ("side", "MiB", "s the step waits", "s until it is on disk", "s to restore", "in x ours: waits", "on disk", "restore"),
        [*lines, *map(list, turns.failed.items())],
        turns.samples,
    )
