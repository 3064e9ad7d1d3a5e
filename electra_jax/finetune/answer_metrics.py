"""Answers scored as SQuAD's official scripts do it: evaluate-v1.1.py and evaluate-v2.0.py (rajpurkar/SQuAD-explorer).

An answer's words are compared after `normalize`, with whichever of the gold answers gives the best score. Version 2.0 also has questions
without an answer, for which the empty text is the right prediction. There a model gives each question a no-answer score as well, and a
prediction counts as empty if this score is above a threshold. `squad2` says which of its figures depends on which threshold.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # of ASCII alone: other quotes and dashes stay
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """The text in lower case, then without ASCII punctuation, then without the words a, an and the; one space between words.

    The order matters: "a.m." becomes "am" and so keeps its a; "U.S.A." becomes "usa".
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def word_f1(gold: str, predicted: str) -> float:
    """F1 of the words of two texts after `normalize`, each word as often as it occurs. 0 where they share none, as
    two empty texts do."""
    gold_words, predicted_words = Counter(normalize(gold).split()), Counter(normalize(predicted).split())
    shared = (gold_words & predicted_words).total()
    return 2 * shared / (gold_words.total() + predicted_words.total()) if shared else 0.0


def squad1(gold: Mapping[str, Sequence[str]], predicted: Mapping[str, str]) -> dict[str, float]:
    """Exact match and F1 of SQuAD 1.1, without any threshold: means over all questions, where a missing prediction counts as 0.

    Args:
      gold: {question ID: its answers' texts}, at least one each.
      predicted: {question ID: text}; predictions for other questions are ignored.

    Returns:
      exact, f1: fractions.
      total, missing: the number of questions, and the number of those without a prediction.

    ValueError if there is no question at all, or a question without a gold answer.
    """
    if not gold:
        raise ValueError("there is no question to score")
    if bare := [id_ for id_, texts in gold.items() if not texts]:
        raise ValueError(f"question {bare[0]} has no answer, as only those of SQuAD 2.0 may: score it with squad2")
    answered = [id_ for id_ in gold if id_ in predicted]
    exact = sum(max(normalize(text) == normalize(predicted[id_]) for text in gold[id_]) for id_ in answered)
    f1 = sum(max(word_f1(text, predicted[id_]) for text in gold[id_]) for id_ in answered)
    return {"exact": exact / len(gold), "f1": f1 / len(gold), "total": len(gold), "missing": len(gold) - len(answered)}


def squad2(
    gold: Mapping[str, Sequence[str]],
    predicted: Mapping[str, str],
    no_answer: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """The figures of SQuAD 2.0, under the names that the official script gives them.

    Args:
      gold: {question ID: its answers' texts}; no text for a question that cannot be answered.
      predicted: {question ID: text}, "" for no answer; predictions for other questions are ignored.
      no_answer: {question ID: no-answer score}, a probability or a logit: the larger, the likelier it is that there is no answer.
        None: the predictions count as they stand.
      threshold: a prediction counts as "" if its no-answer score is larger. 1 is the script's default, which no probability exceeds.

    Returns totals, thresholds, and fractions:
      exact, f1, total: of all questions, at `threshold`.
      HasAns_*, NoAns_*: the same for the questions with an answer and for those without, if there are any. Also at `threshold`.
      And only if `no_answer` is given:
      threshold: as it was given.
      best_exact, best_f1: at the thresholds best_exact_thresh and best_f1_thresh, which are chosen as the best for these very gold
        answers. So they are what the best choice would have reached: a table must say which figures it shows. See `best_threshold`.

    ValueError if there is no question at all, if a question has no prediction or no score (where the official script ends in a
    KeyError), or if a score is NaN.
    """
    if not gold:
        raise ValueError("there is no question to score")
    _require(gold, predicted, "prediction")
    if no_answer is not None:
        _require(gold, no_answer, "no-answer score")
        if wrong := [id_ for id_ in gold if math.isnan(no_answer[id_])]:
            raise ValueError(f"the no-answer score of question {wrong[0]} is not a number")
    raw = {"exact": {}, "f1": {}}
    for id_, texts in gold.items():
        # A gold answer that is only articles and punctuation is left out; the question still counts as one that has an answer.
        texts = [text for text in texts if normalize(text)] or [""]
        raw["exact"][id_] = float(max(normalize(text) == normalize(predicted[id_]) for text in texts))
        raw["f1"][id_] = max(_f1_or_both_empty(text, predicted[id_]) for text in texts)
    emptied = {id_ for id_ in gold if no_answer is not None and no_answer[id_] > threshold}
    kept = {name: {id_: float(not gold[id_]) if id_ in emptied else score for id_, score in scores.items()} for name, scores in raw.items()}
    figures = _means(kept, gold, "")
    for prefix, ids in (("HasAns_", [id_ for id_ in gold if gold[id_]]), ("NoAns_", [id_ for id_ in gold if not gold[id_]])):
        if ids:
            figures |= _means(kept, ids, prefix)
    if no_answer is not None:
        figures["threshold"] = threshold
        for name, scores in raw.items():
            figures[f"best_{name}"], figures[f"best_{name}_thresh"] = best_threshold(gold, predicted, scores, no_answer)
    return figures


def best_threshold(
    gold: Mapping[str, Sequence[str]], predicted: Mapping[str, str], scores: Mapping[str, float], no_answer: Mapping[str, float]
) -> tuple[float, float]:
    """(the best mean score, the threshold that gives it), found as the official script finds it.

    The search begins with no question answered, which it calls threshold 0 whatever the scores are. It then answers one question after
    another, in the order of rising no-answer scores: a question that has an answer adds its score, and one that has none takes 1 away
    if its prediction is not the empty text. A later threshold must be strictly better. Questions with equal no-answer scores come in
    the order of `no_answer` and are answered one by one. So the best mean may lie between two of them, where no threshold can lie.

    Args:
      scores: {question ID: exact match or F1 of the prediction as it stands}.
      gold, predicted, no_answer: as of `squad2`.
    """
    score = best = float(sum(not texts for texts in gold.values()))
    threshold = 0.0
    for id_ in sorted((id_ for id_ in no_answer if id_ in scores), key=no_answer.__getitem__):
        score += scores[id_] if gold[id_] else -float(predicted[id_] != "")
        if score > best:
            best, threshold = score, no_answer[id_]
    return best / len(scores), threshold


def _f1_or_both_empty(gold: str, predicted: str) -> float:
    """`word_f1`, but 1 where both texts are empty after `normalize`: the only change to it in version 2.0."""
    return word_f1(gold, predicted) if normalize(gold) or normalize(predicted) else 1.0


def _means(scores: Mapping[str, Mapping[str, float]], ids: Iterable[str], prefix: str) -> dict[str, float]:
    ids = list(ids)
    means = {f"{prefix}{name}": sum(by_id[id_] for id_ in ids) / len(ids) for name, by_id in scores.items()}
    return {**means, f"{prefix}total": len(ids)}


def _require(gold: Mapping[str, Sequence[str]], given: Mapping[str, object], what: str) -> None:
    if missing := [id_ for id_ in gold if id_ not in given]:
        raise ValueError(f"{len(missing)} of {len(gold)} questions have no {what}, the first of them {missing[0]}")
