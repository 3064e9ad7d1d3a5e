"""What the tests of labelled tasks share."""

import pytest

from electra_jax.data.tokenizers import load


@pytest.fixture(scope="session")
def bert(shared_data):
    """BERT's and ELECTRA's own vocabulary."""
    return load(shared_data / "vocab" / "bert_uncased_vocab.txt")
