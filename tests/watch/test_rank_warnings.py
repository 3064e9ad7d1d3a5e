"""The warning of a layer that lost what it read, at ranks that were measured (beside how the model fine-tuned), and the curves."""

import pytest

from electra_jax import views
from electra_jax.objectives.readings import GENERATOR, RTD, view
from electra_jax.views import Run
from electra_jax.watch import ranks

MUON = Run(total_steps=4000, warmup_steps=100, positions="rotary", optimizer="muon", muon_weight_decay=0.0)
RANDOM = (63.0, 62.0, 62.0)
COLLAPSED = (26.0, 2.8, 1.15)  # Muon without decay: chunking .857 and .871, random weights .895
ADAMW = (22.0, 3.7, 1.75)  # AdamW, 2e-3: IMDB .628 and .626, random weights .717 and .713
HEALTHY = (27.0, 15.0, 3.0)  # Muon with decay 0.1: chunking .918


def metrics(of_layers, network="discriminator") -> dict[str, float]:
    found = {f"eval/rank/{network}/{layer}": rank for layer, rank in enumerate(of_layers)}
    return found | {f"eval/random_rank/{network}/{layer}": rank for layer, rank in enumerate(RANDOM)}


@pytest.mark.parametrize("of_layers, lost", [(COLLAPSED, True), (ADAMW, True), (HEALTHY, False), (RANDOM, False), ((), False)])
def test_it_warns_where_fine_tuning_did_worse_than_from_random_weights(of_layers, lost):
    found = ranks.lost(metrics(of_layers), 2000, MUON)
    assert [name for name, _ in found] == [ranks.LOST] * lost
    assert ranks.lost(metrics(of_layers), 1999, MUON) == []


def test_it_names_the_layer_and_what_cures_it():
    both = metrics(HEALTHY) | metrics(COLLAPSED, "generator")
    (_, line) = ranks.lost(both, 4000, MUON)[0]
    assert line.startswith(
        "layer 2 of the generator has lost what it read: its states fill 1.1 directions, and those of random weights 62."
    )
    cures = {
        MUON: "optimizer.muon_weight_decay=0.1, a lower rate, more steps",
        MUON._replace(muon_weight_decay=0.1): "a lower rate, more steps",
        MUON._replace(optimizer="adamw"): "optimizer.name=muon, optimizer.muon_weight_decay=0.1, a lower rate, more steps",
    }
    for run, wanted in cures.items():
        assert ranks.lost(both, 4000, run)[0][1].endswith(f"Cures, in this order: {wanted}")


def test_a_view_keeps_what_it_had_and_shows_the_ranks():
    of_objective = view([GENERATOR, RTD], lambda batch, outputs, pieces: views.Examples("", "", []))
    shown = ranks.shown_in(of_objective, {"generator": 2, "discriminator": 12})
    assert shown.panels[: len(of_objective.panels)] == of_objective.panels and shown.headline is of_objective.headline
    of_tokens, of_means = shown.panels[-2:]
    assert [curve.metric for curve in of_tokens.curves] == [
        *(f"eval/rank/discriminator/{layer}" for layer in (0, 3, 6, 9, 12)),
        "eval/random_rank/discriminator/12",
    ]
    assert of_means.curves[0].metric == "eval/rank_of_means/discriminator/0" and of_means.title == "Discriminator: effective rank of rows"
    of_two = shown.panels[-4].curves
    assert [curve.label for curve in of_two] == ["below the layers", "layer 1", "layer 2", "random weights, last layer"]
    bad = metrics(COLLAPSED) | {"eval/mlm_loss": 6.1, "eval/unigram_entropy": 6.15}
    assert [name for name, _ in shown.warnings(bad, 4000, MUON)] == ["word_frequencies", ranks.LOST]
