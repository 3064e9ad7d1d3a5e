"""How a person reads each loss: the line of an evaluation, what the report says and draws. An objective's view joins those that it has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax.objectives.warnings import CHANCE_AUC, PLATEAU_SHARE, warnings
from electra_jax.views import Curve, Examples, Panel, View

Metrics = Mapping[str, float]


class Reading(NamedTuple):
    """One loss, as views.View has it of a whole objective: a part of the line, a sentence of the verdict."""

    headline: Callable[[Metrics], str]
    verdict: Callable[[Metrics], str]
    shown: tuple[str, ...]
    panels: tuple[Panel, ...]
    compared: Mapping[str, str] = {}  # views.View


def view(readings: Sequence[Reading], examples: Callable[[Any, Mapping[str, Any], Callable[[Sequence[int]], list[str]]], Examples]) -> View:
    """The view of an objective with these losses."""
    return View(
        headline=lambda metrics: ", ".join(reading.headline(metrics) for reading in readings),
        verdict=lambda metrics: " ".join(["On held-out text:", *(reading.verdict(metrics) for reading in readings)]),
        shown=(*(name for reading in readings for name in reading.shown), "eval/loss", "eval/unigram_entropy"),
        warnings=warnings,
        panels=tuple(panel for reading in readings for panel in reading.panels),
        examples=examples,
        compared={name: title for reading in readings for name, title in reading.compared.items()},
    )


_OF_GENERATOR = "MLM loss of the generator"  # a title of views.View.compared


def _filling(who: str) -> tuple[Callable[[Metrics], str], Callable[[Metrics], str], Panel]:
    """(headline, verdict, the panel of the loss) of masked language modelling. who: the network, for a person."""

    def headline(metrics: Metrics) -> str:
        return f"held-out MLM loss {metrics['eval/mlm_loss']:.3f} (word frequencies alone: {metrics['eval/unigram_entropy']:.3f})"

    def verdict(metrics: Metrics) -> str:
        loss, entropy = metrics["eval/mlm_loss"], metrics["eval/unigram_entropy"]
        if loss < PLATEAU_SHARE * entropy:
            fills = f"fills a masked token with a loss of {loss:.2f} nats, {entropy - loss:.2f} better than word frequencies"
            return f"The {who} reads context: it {fills}."
        return f"The {who} knows word frequencies at most: a loss of {loss:.2f} nats beside {entropy:.2f} for them alone."

    loss = Panel(
        f"{who.capitalize()}: loss",
        "Cross-entropy of the masked tokens, nats. Held out, it should fall below the dashed line, which is "
        "what knowing word frequencies alone gives, within the first thousands of steps, and go on falling. "
        "Training runs lower: it counts the chosen tokens that stay visible, too. Where held out "
        "rises while training falls, there is too little text.",
        (
            Curve("train/mlm_loss", "training", "blue"),
            Curve("eval/mlm_loss", "held out", "orange"),
            Curve("eval/unigram_entropy", "unigram entropy", "grey", dashed=True),
        ),
    )
    return headline, verdict, loss


def _generator() -> Reading:
    headline, verdict, loss = _filling("generator")
    shown = ("eval/mlm_loss", "eval/mlm_accuracy", "eval/sampled_accuracy", "eval/replace_rate")
    samples = Panel(
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
    )
    return Reading(headline, verdict, shown, (loss, samples), {"eval/mlm_loss": _OF_GENERATOR})


def _masked_lm(who: str, title: str) -> Reading:
    headline, verdict, loss = _filling(who)
    accuracy = Panel(
        f"{who.capitalize()}: held out",
        "How often its best guess for a masked token is the right one.",
        (Curve("eval/mlm_accuracy", "best guess right", "orange"),),
        scale="share",
    )
    return Reading(headline, verdict, ("eval/mlm_loss", "eval/mlm_accuracy"), (loss, accuracy), {"eval/mlm_loss": title})


def _drawn() -> Reading:
    """Of a generator that draws tokens without reading anything."""
    panel = Panel(
        "Replaced tokens",
        "The share of tokens that were replaced. The generator draws them without reading the text.",
        (Curve("eval/replace_rate", "tokens replaced", "purple"),),
        scale="share",
    )

    return Reading(
        lambda metrics: f"{metrics['eval/replace_rate']:.1%} of tokens replaced",
        lambda metrics: f"The generator, which reads nothing, replaced {metrics['eval/replace_rate']:.1%} of the tokens.",
        ("eval/replace_rate",),
        (panel,),
    )


def _rtd_verdict(metrics: Metrics) -> str:
    auc, accuracy, majority = metrics["eval/rtd_auc"], metrics["eval/rtd_accuracy"], metrics["eval/majority_accuracy"]
    if auc < CHANCE_AUC:
        tells = f"cannot tell replaced tokens from original ones (AUC {auc:.2f}; chance is 0.50)"
    else:
        tells = f"ranks a replaced token above an original one {auc:.0%} of the time (AUC; chance is 50%)"
    return f"The discriminator {tells}; its accuracy is {accuracy:.1%}, where calling nothing replaced would reach {majority:.1%}."


def _lm_headline(metrics: Metrics) -> str:
    return f"LM loss {metrics['eval/lm_loss']:.3f}, {metrics['eval/lm_accuracy']:.1%} right"


def _lm_verdict(metrics: Metrics) -> str:
    return (
        f"The discriminator names what stood in a text before its tokens were replaced with a loss of {metrics['eval/lm_loss']:.2f} nats "
        f"a token; {metrics['eval/lm_accuracy']:.1%} of its best guesses are right."
    )


def lm(counted: str) -> Reading:
    """The discriminator's loss over the vocabulary. counted: at which tokens, for a person."""
    panel = Panel(
        "Discriminator: language modelling",
        f"Cross-entropy of the original tokens, nats, {counted}. The generator's samples become harder "
        "to see through as it learns, so that the loss may rise.",
        (Curve("train/lm_loss", "training", "blue"), Curve("eval/lm_loss", "held out", "orange")),
    )
    return Reading(_lm_headline, _lm_verdict, ("eval/lm_loss", "eval/lm_accuracy"), (panel,), {"eval/lm_loss": f"LM loss {counted}"})


GENERATOR, MASKED_LM, DRAWN = _generator(), _masked_lm("model", "MLM loss"), _drawn()
RTD = Reading(
    lambda metrics: f"RTD AUC {metrics['eval/rtd_auc']:.3f} (chance: 0.500)",
    _rtd_verdict,
    ("eval/rtd_loss", "eval/rtd_accuracy", "eval/rtd_precision", "eval/rtd_recall", "eval/majority_accuracy", "eval/rtd_auc"),
    (
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
    ),
    {"eval/rtd_auc": "AUC of RTD on its own generator's replacements"},
)
COPY = RTD._replace(shown=RTD.shown[1:], panels=RTD.panels[1:])  # its logits are not trained by a loss of their own
CLOZE = _masked_lm("generator", _OF_GENERATOR)
NOISE = RTD._replace(
    headline=lambda metrics: f"AUC of noise {metrics['eval/rtd_auc']:.3f} (chance: 0.500)",
    compared={},
)
CAUSAL_LM = Reading(
    lambda metrics: f"causal loss {metrics['eval/clm_loss']:.3f}",
    lambda metrics: f"From left to right it names the next token with a loss of {metrics['eval/clm_loss']:.2f} nats.",
    ("eval/clm_loss", "eval/clm_accuracy"),
    (
        Panel(
            "Model: causal rows",
            "Cross-entropy of the next token in the rows that are read from left to right, nats. There are few such rows in a step: "
            "the line of the training is rough.",
            (Curve("train/clm_loss", "training", "blue"), Curve("eval/clm_loss", "held out", "orange")),
        ),
    ),
    {"eval/clm_loss": "causal loss"},
)
