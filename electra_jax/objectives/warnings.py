"""Warnings about the ways in which pretraining fails silently, from held-out metrics, each with its cures.

Users of every code base report them, and one printed loss shows none (google-research/electra #26, #130, #37,
#49; transformers PR #4656, #3983).
"""

import math
from collections.abc import Mapping

from electra_jax.views import Run, Warnings

WORD_FREQUENCIES = "word_frequencies"
GENERATOR_TOO_STRONG = "generator_too_strong"
DISCRIMINATOR_AT_CHANCE = "discriminator_at_chance"


# A generator that knows word frequencies and nothing else stays within 2% of the unigram entropy on tokens
# that it cannot see, however long it trains (measured over 1,000 steps: 6.12 to 6.06 beside 6.15); one that
# reads context was 5% under it after twice its warm-up. Held out, the MLM loss counts just those tokens; with
# the 15% of chosen tokens that stay visible, the stuck one too would come 10% under it, by copying.
PLATEAU_SHARE = 0.98

# The author calls 6% of tokens replaced "quite imbalanced (~94/6)" (electra #49), and trained well with it.
# Below half of that, 97 in 100 of the discriminator's labels say "original".
_MIN_REPLACE_RATE = 0.03
# "If the generator gets too good too quickly the discriminator fails to learn anything" (electra #37): more
# than half of its samples are right, as at the end of published runs, and yet the wrong ones cannot be told
# apart.
_STRONG_SAMPLED_ACCURACY = 0.5
_WEAK_AUC = 0.60

# Discriminators that learned nothing ended at .493 to .518, the weakest that did at .579. On some thousand
# held-out tokens the AUC of pure chance has a standard deviation of .014.
CHANCE_AUC = 0.53
# To call no token replaced is no failure in itself: with one in eight replaced, the scores of a small model
# rank tokens (AUC .60) long before one of them passes a half. A healthy small run has recall 0 up to
# step 300, .02 at 700 and .04 at 1,000, where its AUC is .66.
_MAJORITY_STEPS = 20_000
_MAJORITY_RECALL = 0.01
_MAJORITY_MARGIN = 0.001


def warnings(metrics: Mapping[str, float], step: int, run: Run) -> Warnings:
    """The failures that the held-out `eval/*` metrics of `step` show. A pure function.

    The generator is judged after its warm-up and as long again (100 to 5,000 steps). The discriminator, which
    can learn only from samples that carry context, is judged from the middle of the run (or step 20,000) on:
    in a healthy demo its AUC falls from .76 at step 50, where samples are noise, to .53 at step 100, and
    rises from there. The last step judges both. Missing and non-finite metrics judge nothing. A cause is
    named without its consequences: where the generator knows word frequencies only, or is too strong, the
    discriminator is at chance for that reason.
    """
    heldout = {name.removeprefix("eval/"): value for name, value in metrics.items() if math.isfinite(value)}
    settled_step = run.warmup_steps + min(max(run.warmup_steps, 100), 5_000)
    last = step >= run.total_steps
    if not last and step < settled_step:
        return []
    if message := _word_frequencies(heldout, run):
        return [(WORD_FREQUENCIES, message)]
    if message := _generator_too_strong(heldout):
        return [(GENERATOR_TOO_STRONG, message)]
    if last or step >= min(run.total_steps / 2, _MAJORITY_STEPS):
        if message := _discriminator_at_chance(heldout, step, run):
            return [(DISCRIMINATOR_AT_CHANCE, message)]
    return []


def _word_frequencies(metrics: Mapping[str, float], run: Run) -> str | None:
    loss, entropy = metrics.get("mlm_loss"), metrics.get("unigram_entropy")
    if loss is None or entropy is None or loss < PLATEAU_SHARE * entropy:
        return None
    cures = [*([] if run.positions == "rotary" else ["model.positions=rotary"]), *_muon(run), "more steps"]
    return (
        f"only word frequencies learned so far: held-out MLM loss {loss:.2f}, unigram entropy {entropy:.2f}. "
        f"Cures, in this order: {', '.join(cures)}"
    )


def _muon(run: Run) -> list[str]:
    return [] if run.optimizer == "muon" else ["optimizer.name=muon"]


def _generator_too_strong(metrics: Mapping[str, float]) -> str | None:
    accuracy = metrics.get("sampled_accuracy", 0.0)
    rate = metrics.get("replace_rate", 1.0)
    smaller, more = "a smaller generator (model.generator_hidden_fraction)", "a higher masking.rate"
    if accuracy >= _STRONG_SAMPLED_ACCURACY and metrics.get("rtd_auc", 1.0) < _WEAK_AUC:
        return (
            f"the generator is too strong: {accuracy:.0%} of its samples are right, and the discriminator "
            f"cannot tell the others (AUC {metrics['rtd_auc']:.2f}). Cures: {smaller}, {more}"
        )
    if rate < _MIN_REPLACE_RATE:
        cures = f"{smaller}, {more}" if accuracy >= _STRONG_SAMPLED_ACCURACY else more
        return (
            f"the discriminator has little to learn from: {rate:.1%} of tokens are replaced, {accuracy:.0%} "
            f"of the generator's samples are right. Cures: {cures}"
        )
    return None


def _discriminator_at_chance(metrics: Mapping[str, float], step: int, run: Run) -> str | None:
    auc = metrics.get("rtd_auc")
    cures = [*_muon(run), "a lower rate for the discriminator (optimizer.rates)", "larger batches", "more steps"]
    cures = f"Cures: {', '.join(cures)}"
    if auc is not None and auc < CHANCE_AUC:
        return f"the discriminator is at chance: AUC {auc:.2f} on held-out tokens. {cures}"
    if step < _MAJORITY_STEPS or not {"rtd_accuracy", "majority_accuracy", "rtd_recall"} <= metrics.keys():
        return None
    accuracy, majority, recall = metrics["rtd_accuracy"], metrics["majority_accuracy"], metrics["rtd_recall"]
    silent = recall < _MAJORITY_RECALL and accuracy <= majority + _MAJORITY_MARGIN
    if silent and (auc is None or auc < _WEAK_AUC):
        return (
            f"the discriminator calls every token original: recall {recall:.1%}, accuracy {accuracy:.1%} "
            f"beside {majority:.1%} for the majority. {cures}"
        )
    return None
