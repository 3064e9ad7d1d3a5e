"""How a person reads the effective ranks that train/ranks.py measures: curves of the report, and a warning. No jax."""

from collections.abc import Mapping

from electra_jax.views import Curve, Panel, Run, View, Warnings

LOST = "lost_directions"
# Where a layer's rank is below a thirtieth of what random weights have, fine-tuning did worse than from random weights: ranks of 1.15
# (Muon without decay) and 1.75 (AdamW at 2e-3) beside 62. At 3.0 it did better than they.
FEWEST_OF_RANDOM = 1 / 30
_JUDGED_STEP = 20_000  # or the middle of the run: before, ranks fall and rise again
_COLOURS = ("blue", "green", "purple", "teal", "orange")  # from the embeddings up


def shown_in(view: View, layers: Mapping[str, int]) -> View:
    """The view, with the ranks of networks of so many layers."""

    def warnings(metrics: Mapping[str, float], step: int, run: Run) -> Warnings:
        return [*view.warnings(metrics, step, run), *lost(metrics, step, run)]

    return view._replace(warnings=warnings, panels=(*view.panels, *(panel for each in layers.items() for panel in panels(*each))))


def lost(metrics: Mapping[str, float], step: int, run: Run) -> Warnings:
    """A pure function of the `eval/*` of `step`: the layer that holds the least beside random weights, where that is too little."""
    if step < min(run.total_steps / 2, _JUDGED_STEP):
        return []
    ranks = {name.removeprefix("eval/rank/"): rank for name, rank in metrics.items() if name.startswith("eval/rank/")}
    shares = {layer: rank / max(metrics[f"eval/random_rank/{layer}"], 1.0) for layer, rank in ranks.items()}
    least = min(shares, key=shares.get, default=None)
    if least is None or not shares[least] < FEWEST_OF_RANDOM:
        return []
    network, number = least.split("/")
    cures = [] if run.optimizer == "muon" else ["optimizer.name=muon"]
    cures += [] if run.optimizer == "muon" and run.muon_weight_decay >= 0.1 else ["optimizer.muon_weight_decay=0.1"]
    return [
        (
            LOST,
            f"layer {number} of the {network} has lost what it read: its states fill {ranks[least]:.1f} directions, and those of random "
            f"weights {metrics[f'eval/random_rank/{least}']:.0f}. Fine-tuning may do worse than from random weights. "
            f"Cures, in this order: {', '.join([*cures, 'a lower rate', 'more steps'])}",
        )
    ]


def panels(network: str, num_layers: int) -> tuple[Panel, ...]:
    count = min(num_layers + 1, len(_COLOURS))
    layers = [round(place * num_layers / (count - 1)) for place in range(count)] if count > 1 else [0]

    def panel(kind: str, title: str, reading: str) -> Panel:
        curves = [
            Curve(f"eval/{kind}/{network}/{layer}", f"layer {layer}" if layer else "below the layers", colour)
            for layer, colour in zip(layers, _COLOURS, strict=False)
        ]
        random = Curve(f"eval/random_{kind}/{network}/{num_layers}", "random weights, last layer", "grey", dashed=True)
        return Panel(f"{network.capitalize()}: {title}", reading, (*curves, random), scale="log")

    return (
        panel(
            "rank",
            "effective rank of tokens",
            "How many directions the states of held-out tokens fill. A layer where they fall to one or two has lost the words that it "
            "read, and fine-tuning from it may do worse than from random weights, however good loss and AUC look.",
        ),
        panel(
            "rank_of_means",
            "effective rank of rows",
            "The same of the mean state of each row, which is what tells one text from another.",
        ),
    )
