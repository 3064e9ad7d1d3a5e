"""Some held-out rows as a model saw them, for a report and a terminal."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from electra_jax.types import Batch
from electra_jax.views import Examples, Span

SUSPECTED = 0.5  # from this probability on the discriminator calls a token replaced
STRUCTURE = ("[CLS]", "[SEP]", "[PAD]")
NUM_EXAMPLES = 6
Pieces = Callable[[Sequence[int]], list[str]]


def suspicion(batch: Batch, outputs: Mapping[str, np.ndarray], pieces: Pieces) -> Examples:
    """The first rows: what was replaced, by what, and how sure the discriminator is of it. outputs: "tokens", "replaced" and "logits", each
    [B, L]."""
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


def filled(batch: Batch, outputs: Mapping[str, np.ndarray], pieces: Pieces) -> Examples:
    """The first rows with the model's best guess at the slots. outputs: "slots" and "guess" [B, K], "used" [B, K] bool."""
    sentences = []
    for b in range(min(NUM_EXAMPLES, len(outputs["guess"]))):
        real, used = batch.segments[b] > 0, outputs["used"][b]
        guessed = batch.tokens[b].copy()
        guessed[outputs["slots"][b][used]] = outputs["guess"][b][used]
        at_slot = np.zeros(len(real), bool)
        at_slot[outputs["slots"][b][used]] = True
        names = pieces(guessed[real].tolist()), pieces(batch.tokens[b][real].tolist())
        sentences.append(list(_guessed(*names, at_slot[real].tolist())))
    return Examples(
        "What the model fills in",
        "Underlined tokens were chosen to be predicted; what is shown is the model's best guess, and the small word is what stood there. "
        "Wrong guesses are red.",
        sentences,
    )


def _words(tokens: Sequence[str], originals: Sequence[str]) -> Iterator[tuple[int, str, str, str]]:
    """(place, space before it, text, original text) of each token but [CLS], [SEP] and padding."""
    # WordPiece marks the pieces within a word (##), SentencePiece those that begin one (U+2581).
    sentencepiece = any(piece.startswith("\u2581") for piece in originals)
    for place, (token, original) in enumerate(zip(tokens, originals, strict=True)):
        if original not in STRUCTURE:
            inside = not token.startswith("\u2581") if sentencepiece else token.startswith("##")
            yield place, "" if inside else " ", *(re.sub("^(##|\u2581)(?=.)", "", piece) for piece in (token, original))


def _guessed(tokens: Sequence[str], originals: Sequence[str], at_slot: Sequence[bool]) -> Iterator[Span]:
    """A terminal shows `the [dog, was: cat] sat` for a wrong guess, and `[cat]` for a right one."""
    for place, space, text, original in _words(tokens, originals):
        if not at_slot[place]:
            yield Span(text, space)
            continue
        right = text == original
        plain = f"[{text}]" if right else f"[{text}, was: {original}]"
        yield Span(
            text,
            space,
            shade=0.0 if right else 1.0,
            tip=f"it was: {original}",
            over=original,
            plain=plain,
            colour="green" if right else "red",
        )


def marked(tokens: Sequence[str], originals: Sequence[str], replaced: Sequence[bool], scores: Sequence[float]) -> Iterator[Span]:
    """A span for each token but [CLS], [SEP] and padding. The four are of one length: what the discriminator saw, what stood there,
    whether that was replaced, and the probability of it.

    A terminal shows `the [cat -> dog 0.93] sat`, and `[mat? 0.71]` for a false alarm: green = replaced and found, yellow = replaced and
    missed, red = false alarm.
    """
    if not len(tokens) == len(originals) == len(replaced) == len(scores):
        raise ValueError("columns of different lengths")
    for place, space, text, before in _words(tokens, originals):
        score, was_replaced = scores[place], replaced[place]
        suspected, plain = score >= SUSPECTED, ""
        if was_replaced:
            plain, colour = f"[{before} -> {text} {score:.2f}]", "green" if suspected else "yellow"
        elif suspected:
            plain, colour = f"[{text}? {score:.2f}]", "red"
        yield Span(
            text,
            space=space,
            shade=float(score),
            tip=f"replaced with probability {score:.2f}" + (f"; it was: {before}" if was_replaced else ""),
            over=before if was_replaced else "",
            plain=plain,
            colour=colour if plain else "",
        )
