"""How a person reads ELECTRA's metrics: the line of an evaluation, the report's curves, and marked sentences."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from electra_jax.objectives.electra_warnings import CHANCE_AUC, PLATEAU_SHARE, warnings
from electra_jax.types import Batch
from electra_jax.views import Curve, Examples, Panel, Span, View

SUSPECTED = 0.5  # from this probability on the discriminator calls a token replaced
STRUCTURE = ("[CLS]", "[SEP]", "[PAD]")
NUM_EXAMPLES = 6

SHOWN = (
    "eval/mlm_loss",
    "eval/rtd_loss",
    "eval/loss",
    "eval/mlm_accuracy",
    "eval/sampled_accuracy",
    "eval/replace_rate",
    "eval/rtd_accuracy",
    "eval/rtd_precision",
    "eval/rtd_recall",
    "eval/majority_accuracy",
    "eval/rtd_auc",
    "eval/unigram_entropy",
)

PANELS = (
    Panel(
        "Generator: loss",
        "Cross-entropy of the masked tokens, nats. Held out, it should fall below the dashed line, which is "
        "what knowing word frequencies alone gives, within the first thousands of steps, and go on falling. "
        "Training runs lower: it counts the 15% of chosen tokens that stay visible, too. Where held out "
        "rises while training falls, there is too little text.",
        (
            Curve("train/mlm_loss", "training", "blue"),
            Curve("eval/mlm_loss", "held out", "orange"),
            Curve("eval/unigram_entropy", "unigram entropy", "grey", dashed=True),
        ),
    ),
    Panel(
        "Discriminator: loss",
        "Binary cross-entropy of replaced or original, a token. It falls fast while the generator's samples "
        "are noise. It may then rise: the samples become harder. So judge the discriminator by its AUC.",
        (Curve("train/rtd_loss", "training", "blue"), Curve("eval/rtd_loss", "held out", "orange")),
    ),
    Panel(
        "Discriminator: accuracy",
        "Most tokens are original, so accuracy means something only above the dashed line, which is what calling no token "
        "replaced would reach.",
        (
            Curve("eval/rtd_accuracy", "accuracy", "blue"),
            Curve("eval/majority_accuracy", "majority class", "grey", dashed=True),
        ),
    ),
    Panel(
        "Discriminator: held out",
        "AUC is the chance that a replaced token scores above an original one; 0.5 knows nothing. Recall stays near "
        "0 until the discriminator is sure of single tokens.",
        (
            Curve("eval/rtd_auc", "AUC", "orange"),
            Curve("eval/rtd_precision", "precision", "green"),
            Curve("eval/rtd_recall", "recall", "purple"),
        ),
        scale="share",
    ),
    Panel(
        "Generator: held out",
        "How often its best guess, and its sample, is the right token; and the share of all tokens that are "
        "replaced in the end. The better the generator, the fewer and the harder the replaced ones: under "
        "3% the discriminator has little left to learn from.",
        (
            Curve("eval/mlm_accuracy", "best guess right", "orange"),
            Curve("eval/sampled_accuracy", "sample right", "blue"),
            Curve("eval/replace_rate", "tokens replaced", "purple"),
        ),
        scale="share",
    ),
)


def headline(metrics: Mapping[str, float]) -> str:
    return (
        f"held-out MLM loss {metrics['eval/mlm_loss']:.3f} (word frequencies alone: {metrics['eval/unigram_entropy']:.3f}), "
        f"RTD AUC {metrics['eval/rtd_auc']:.3f} (chance: 0.500)"
    )


def verdict(metrics: Mapping[str, float]) -> str:
    loss, entropy = metrics["eval/mlm_loss"], metrics["eval/unigram_entropy"]
    auc, accuracy, majority = metrics["eval/rtd_auc"], metrics["eval/rtd_accuracy"], metrics["eval/majority_accuracy"]
    if loss < PLATEAU_SHARE * entropy:
        fills = f"reads context: it fills a masked token with a loss of {loss:.2f} nats, {entropy - loss:.2f} better than word frequencies"
    else:
        fills = f"knows word frequencies at most: a loss of {loss:.2f} nats beside {entropy:.2f} for them alone"
    if auc < CHANCE_AUC:
        tells = f"cannot tell replaced tokens from original ones (AUC {auc:.2f}; chance is 0.50)"
    else:
        tells = f"ranks a replaced token above an original one {auc:.0%} of the time (AUC; chance is 50%)"
    return (
        f"On held-out text the generator {fills}. The discriminator {tells}; its accuracy is {accuracy:.1%}, where calling nothing "
        f"replaced would reach {majority:.1%}."
    )


def examples(batch: Batch, outputs: Mapping[str, np.ndarray], pieces: Callable[[Sequence[int]], list[str]]) -> Examples:
    """The first rows: what was replaced, by what, and how sure the discriminator is of it."""
    sentences = []
    for b in range(min(NUM_EXAMPLES, len(outputs["tokens"]))):
        real = batch.segments[b] > 0
        probability = 1.0 / (1.0 + np.exp(-outputs["logits"][b][real].astype(np.float64)))
        seen, original = pieces(outputs["tokens"][b][real].tolist()), pieces(batch.tokens[b][real].tolist())
        sentences.append(list(marked(seen, original, outputs["replaced"][b][real].tolist(), probability.tolist())))
    return Examples(
        "What the discriminator sees",
        "Underlined tokens were replaced by the generator; the small word is the original. The redder a "
        "token, the surer the discriminator is that it was replaced.",
        sentences,
    )


def marked(tokens: Sequence[str], originals: Sequence[str], replaced: Sequence[bool], scores: Sequence[float]) -> Iterator[Span]:
    """A span for each token but [CLS], [SEP] and padding. The four are of one length: what the discriminator saw, what stood there,
    whether that was replaced, and the probability of it.

    A terminal shows `the [cat -> dog 0.93] sat`, and `[mat? 0.71]` for a false alarm: green = replaced and found, yellow = replaced and
    missed, red = false alarm.
    """
    # WordPiece marks the pieces within a word (##), SentencePiece those that begin one (U+2581).
    sentencepiece = any(piece.startswith("\u2581") for piece in originals)
    for token, original, was_replaced, score in zip(tokens, originals, replaced, scores, strict=True):
        if original in STRUCTURE:
            continue
        inside = not token.startswith("\u2581") if sentencepiece else token.startswith("##")
        text, before = (re.sub("^(##|\u2581)(?=.)", "", piece) for piece in (token, original))
        suspected, plain = score >= SUSPECTED, ""
        if was_replaced:
            plain, colour = f"[{before} -> {text} {score:.2f}]", "green" if suspected else "yellow"
        elif suspected:
            plain, colour = f"[{text}? {score:.2f}]", "red"
        yield Span(
            text,
            space="" if inside else " ",
            shade=float(score),
            tip=f"replaced with probability {score:.2f}" + (f"; it was: {before}" if was_replaced else ""),
            over=before if was_replaced else "",
            plain=plain,
            colour=colour if plain else "",
        )


VIEW = View(headline, verdict, SHOWN, warnings, PANELS, examples)
