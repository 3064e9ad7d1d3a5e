"""Several objectives at once: the loss is the weighted sum of theirs on the same rows, each with masks and samples of its own.

Networks of one name are one network, with all the heads that the objectives want of it: `electra=1,mlm=0.5` trains one discriminator to
detect and to fill. Fields of the config mean the same in every part. A metric is named after its part, `eval/mlm.mlm_loss`.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import options
from electra_jax.cli import UserError
from electra_jax.models import electra
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import OBJECTIVES, Head
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params, Terms, Vocabulary
from electra_jax.views import Examples, Panel, Run, View, Warnings

SHARED = ("eval/unigram_entropy",)  # a metric of the rows, which every part reads under its own name


def reads(config: ObjectiveConfig) -> tuple[str, ...]:
    return ("mixture", *dict.fromkeys(name for module in _modules(config).values() for name in module.reads(config)))


def networks(config: ObjectiveConfig) -> electra.Networks:
    found: dict[str, dict[str, str]] = {}
    for part, module in _modules(config).items():
        for name, heads in module.networks(config).items():
            for head, kind in heads.items():
                if found.setdefault(name, {}).setdefault(head, kind) != kind:
                    raise UserError(f"objective.mixture: {part} wants another {head} of the {name} than a part before it: leave one out")
            found.setdefault(name, {})
    return found


def directed(config: ObjectiveConfig) -> bool:
    return any(module.directed(config) for module in _modules(config).values())


def _modules(config: ObjectiveConfig) -> dict[str, Any]:
    return {part.name: options.load(OBJECTIVES, part.name) for part in config.parts}


def scores(config: ObjectiveConfig) -> dict[str, Head]:
    """Each kind by the first part that has it."""
    found: dict[str, Head] = {}
    for module in _modules(config).values():
        found = {**module.scores(config), **found}
    return found


def make(
    model: ElectraConfig, masking_config: MaskingConfig, config: ObjectiveConfig, vocabulary: Vocabulary, slots_multiple: int = 1
) -> Objective:
    """`slots_multiple`: masked slots a row are padded to a multiple of it."""
    its_networks = networks(config)
    modules = _modules(config)
    parts = {name: module.make(model, masking_config, config, vocabulary, slots_multiple) for name, module in modules.items()}

    def init(key: Array) -> Params:
        # Of what several have, the one with the most networks gives it: what a generator shares is decided where it is.
        order = sorted(parts.values(), key=lambda part: -len(part.networks))
        return _joined(part.init(jax.random.fold_in(key, number)) for number, part in enumerate(order))

    def plan(batch: Batch, rng: StepRng, train: bool) -> tuple[dict[str, Any], dict[str, Array]]:
        plans, weights = {}, {}
        for name, part in parts.items():
            own = rng.replace(root=jax.random.fold_in(rng.root, zlib.crc32(name.encode())))
            plans[name], of_part = part.plan(batch, own, train)
            weights |= _named(name, of_part)
        return plans, weights

    def terms(params: Params, batch: Batch, plan: dict[str, Any]) -> Terms:
        found = {name: part.terms(params, batch, plan[name]) for name, part in parts.items()}
        return Terms(*({key: x for name, each in found.items() for key, x in _named(name, each[place]).items()} for place in range(3)))

    def scales(step: Array | float) -> dict[str, Array | float]:
        found = {}
        for part in config.parts:
            weight = _weight(part, step)
            found |= {name: weight * scale for name, scale in _named(part.name, parts[part.name].scales(step)).items()}
        return found

    def measure(outputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        copies = itertools.tee(outputs, len(parts))
        found = {}
        for (name, part), copy in zip(parts.items(), copies, strict=True):
            found |= _named(name, part.measure(_of(name, batch) for batch in copy))
        return found

    return Objective(
        init=init,
        plan=plan,
        terms=terms,
        scales=scales,
        flops=lambda rows, length: sum(part.flops(rows, length) for part in parts.values()),
        measure=measure,
        networks=tuple(its_networks),
        encoder="discriminator",
        view=_view({name: part.view for name, part in parts.items()}),
        frozen="|".join(dict.fromkeys(part.frozen for part in parts.values() if part.frozen)),
    )


def _weight(part, step: Array | float) -> Array | float:
    if not part.steps:
        return part.last
    share = jnp.minimum(jnp.asarray(step, jnp.float32) / part.steps, 1.0)
    return part.first + (part.last - part.first) * share


def _joined(trees: Iterable[Params]) -> Params:
    """Each leaf from the first tree that has it."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for name, sub in tree.items():
            both = isinstance(sub, Mapping) and isinstance(whole.get(name), Mapping)
            whole[name] = _joined([whole[name], sub]) if both else whole.get(name, sub)
    return whole


def _named(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}.{name}": value for name, value in values.items()}


def _of(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{part}."): value for name, value in values.items() if name.startswith(f"{part}.")}


# --- How a person reads it: each part's view, of its own metrics


def _name(part: str, metric: str) -> str:
    """Of a part's metric in the whole: "eval/mlm_loss" -> "eval/electra.mlm_loss"."""
    section, slash, name = metric.partition("/")
    return metric if metric in SHARED else f"{section}{slash}{part}.{name}"


def _metrics(part: str, metrics: Mapping[str, float]) -> dict[str, float]:
    split = {name: name.partition("/") for name in metrics}
    own = {
        f"{section}/{name.removeprefix(f'{part}.')}": metrics[full]
        for full, (section, _, name) in split.items()
        if name.startswith(f"{part}.")
    }
    return {**{name: metrics[name] for name in SHARED if name in metrics}, **own}


def _view(views: Mapping[str, View]) -> View:
    first = next(iter(views))

    def warnings(metrics: Mapping[str, float], step: int, run: Run) -> Warnings:
        found = [(name, part, said) for part, view in views.items() for name, said in view.warnings(_metrics(part, metrics), step, run)]
        return [(f"{part}.{name}", f"{part}: {said}") for name, part, said in found]

    def panels() -> Iterator[Panel]:
        for part, view in views.items():
            for panel in view.panels:
                curves = tuple(curve._replace(metric=_name(part, curve.metric)) for curve in panel.curves)
                yield panel._replace(title=f"{part}: {panel.title}", curves=curves)

    def examples(batch: Batch, outputs: Mapping[str, np.ndarray], pieces) -> Examples:
        return views[first].examples(batch, _of(first, outputs), pieces)

    shown = (_name(part, name) for part, view in views.items() for name in view.shown if name != "eval/loss")
    return View(
        headline=lambda metrics: "; ".join(f"{part}: {view.headline(_metrics(part, metrics))}" for part, view in views.items()),
        verdict=lambda metrics: " ".join(f"{part}: {view.verdict(_metrics(part, metrics))}" for part, view in views.items()),
        shown=tuple(dict.fromkeys((*shown, "eval/loss"))),
        warnings=warnings,
        panels=tuple(panels()),
        examples=examples,
        compared={_name(part, name): f"{title} ({part})" for part, view in views.items() for name, title in view.compared.items()},
    )
