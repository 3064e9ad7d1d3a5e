"""A dev set that is held out of the training rows."""

from collections.abc import Mapping, Sequence

from electra_jax.cli import UserError
from electra_jax.data.prepare.split import document_hash, is_heldout
from electra_jax.finetune.config import TaskConfig
from electra_jax.finetune.examples import Example
from electra_jax.finetune.labels import label_types
from electra_jax.finetune.tasks import OWN, Task


def with_dev(
    config: TaskConfig, task: Task, examples: dict[str, list[Example]], paths: Mapping[str, str]
) -> tuple[dict[str, list[Example]], list[str]]:
    """(the examples, with a dev set that is held out of the training rows if the config asks for it or there is no other; lines for a
    person)."""
    if "dev" in examples and config.dev_share != TaskConfig.dev_share:
        raise UserError(
            f"task.dev_share is for a task without a dev file, and {paths['dev']} is one: leave it out, or use task.dev_from_train"
        )
    lines = []
    if config.name == OWN and "dev" not in examples:
        train, dev = hold_out(examples["train"], config.dev_share, task.kind)
        examples = {**examples, "train": train, "dev": dev}
        lines.append(f"{paths['train']}: {len(dev):,} of its rows are held out as the dev set, for want of another (task.dev)")
    if config.dev_from_train:
        if "train" not in examples:
            raise UserError(f"{task.title} has no training set to hold a part of out: leave task.dev_from_train out")
        train, dev = hold_out(examples["train"], config.dev_from_train, task.kind, "dev_from_train")
        examples = {"train": train, "dev": dev}
        lines.append(f"{paths['train']}: {len(dev):,} of its rows are held out, and are the dev set (task.dev_from_train)")
    return examples, lines


def hold_out(examples: Sequence[Example], share: float, kind: str, purpose: str = "") -> tuple[list[Example], list[Example]]:
    """(the rows that stay, the rows that are held out: about this share of the examples), each in the order of the file.

    A hash of a row's text decides (for an answer, of its context alone), so that equal texts are on one side, whatever else the file holds.
    A text stays if one of its labels would otherwise be missing among the rows that stay. `purpose` is part of what is hashed, so that the
    rows held out for one purpose are independent of those held out for another.
    """
    mend = "give a larger share (--config.task.dev_from_train)" if purpose else "name a dev file (--config.task.dev)"
    texts = [example.texts[1] if kind == "answer" else "\0".join(example.texts) for example in examples]
    chosen = {text for text in texts if is_heldout(document_hash(purpose + text), share)}
    seen = {each for example, text in zip(examples, texts, strict=True) if text not in chosen for each in label_types(example, kind)}
    chosen -= {text for example, text in zip(examples, texts, strict=True) if not seen.issuperset(label_types(example, kind))}
    kept = [example for example, text in zip(examples, texts, strict=True) if text not in chosen]
    held = [example for example, text in zip(examples, texts, strict=True) if text in chosen]
    if texts and not held and any(is_heldout(document_hash(purpose + text), share) for text in texts):
        raise UserError(
            "no row can be held out, because each of those chosen has a label that no other row has: is "
            f"task.label_column the labels' column? If it is, {mend}"
        )
    if not kept or not held:
        raise UserError(f"{len(examples)} rows are too few to hold out a share of {share} of them: {mend}")
    return kept, held
