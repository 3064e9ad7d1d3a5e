"""How often tokens occur, and what knowing only that is worth: the baseline of a masked language model's loss."""

import numpy as np


def unigram_entropy(token_counts_V: np.ndarray, heldout_counts_V: np.ndarray) -> float:
    """Cross-entropy, nats per token, of the held-out tokens under the training rows' frequencies (one added to each count).

    Both counts are of tokens that can be masked. A generator with this loss has learned how often words occur, and nothing else.
    """
    smoothed = token_counts_V.astype(np.float64) + 1.0
    return float(-(heldout_counts_V * np.log(smoothed / smoothed.sum())).sum() / heldout_counts_V.sum())
