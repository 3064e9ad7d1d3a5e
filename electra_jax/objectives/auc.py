"""The area under the ROC curve, exactly."""

import numpy as np


def roc_auc(score_N: np.ndarray, label_N: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counted half. 0.5 where one class is absent."""
    positives = int(label_N.sum())
    negatives = len(label_N) - positives
    if not positives or not negatives:
        return 0.5
    _, place_N, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1; equal scores share their mean rank
    rank_sum = float(ranks[place_N][label_N.astype(bool)].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
