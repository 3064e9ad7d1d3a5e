"""Where a step's time goes, part by part, against a floor: measured here, and computed by the TPU's compiler for one that is not there.

The generator and the discriminator are their networks forward and backward; the vocabulary is the projection of the masked slots, its
loss and the sampling: what the MLM loss and the corrupted tokens take beyond the generator's network. The optimizer is pretrain's own
step around a loss that costs nothing. Floors: matrix products at this machine's peak; for the optimizer and the feed, bytes at its
memory's bandwidth.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ours, rows, step
from benchmarks.processes import Side, measure, spread
from benchmarks.tables import Table, number, share
from electra_jax import rng
from electra_jax.models import costs
from electra_jax.models import electra as models
from electra_jax.objectives import masking
from electra_jax.offline import estimate, simulator
from electra_jax.parallel import chips, executors
from electra_jax.recipe import Recipe
from electra_jax.types import Terms, Vocabulary

Run = Callable[[], dict[str, float]]
PARTS = ("generator", "vocabulary", "discriminator", "optimizer", "feed")
TPU = "v5e:2x2"
# In an operation's name, as the step's named scopes leave it; the first that is found. What has none is the optimizer's.
_SCOPES = (("discriminator", "discriminator|rtd_loss"), ("vocabulary", "vocabulary|sample"), ("generator", "generator"))


# --- Sides: a turn runs one part on the rows of a step


def part(stored: ours.Stored, name: str, steps: int, folder: str | None = None) -> Run:
    """A turn is `steps` of: "generator", "mlm" (it and the vocabulary), "discriminator", "optimizer", "feed" (`folder`'s rows), "step"."""
    if name == "step":
        return ours.step(stored, steps=steps)
    built = ours.build(Recipe.parse(stored))
    parts = built.parts
    if name == "optimizer":
        return _optimizer(built, steps)
    if name == "feed":
        return _feed(built, steps, folder)
    params = parts.init(parts.root).params
    batch = jax.device_put(ours.batch(built.recipe, "full"), jax.devices()[0])
    plan, _ = jax.jit(lambda b: parts.objective.plan(b, rng.StepRng(parts.root, jnp.int32(0)), True))(batch)
    model = built.recipe.model
    shape = batch.tokens.shape if name == "discriminator" else (*batch.tokens.shape, model.generator.hidden_size)
    weights = jax.random.normal(jax.random.key(0), shape, jnp.float32)

    def generator(params, batch, plan, weights):
        vocabulary = Vocabulary(rows.CLS, rows.SEP, rows.MASK, jnp.ones(model.vocab_size, bool))
        hidden = models.hidden_states(
            params, model, masking.mask(batch, plan.generator.slots, vocabulary), plan.generator.seeds, "generator"
        )
        return jnp.vdot(hidden.astype(jnp.float32), weights), None

    def mlm(params, batch, plan, weights):
        terms = parts.objective.terms({**params, "discriminator": unused}, batch, plan)
        return terms.losses["mlm"], terms.outputs["tokens"]  # the corrupted tokens: with sampling, without the discriminator

    def discriminator(params, batch, plan, weights):
        logits = models.discriminator_apply(params, model, batch, plan.seeds)
        return jnp.vdot(logits.astype(jnp.float32), weights), None

    unused = params["discriminator"]
    own = "discriminator" if name == "discriminator" else "generator"
    forward = {"generator": generator, "mlm": mlm, "discriminator": discriminator}[name]
    options = executors.compiler_options(parts.devices.mesh) or None
    run_part = jax.jit(jax.value_and_grad(forward, has_aux=True), compiler_options=options)
    given = {"embeddings": params["embeddings"], own: params[own]}

    def run() -> dict[str, float]:
        for _ in range(steps):
            result = run_part(given, batch, plan, weights)
        jax.block_until_ready(result)
        return {"steps": steps}

    return run


def _optimizer(built: ours.Built, steps: int) -> Run:
    """pretrain's step of an objective whose gradient is a thousandth of the parameters."""

    def terms(params, batch, plan) -> Terms:
        pairs = [(p, jax.lax.stop_gradient(p)) for p in jax.tree.leaves(params)]
        return Terms({"all": 1e-3 * sum(jnp.vdot(p, q) for p, q in pairs)}, {}, {})

    parts = built.parts
    idle = parts.objective._replace(
        plan=lambda batch, rng, train: (batch.row, {"all": jnp.float32(1.0)}), terms=terms, scales=lambda step: {"all": 1.0}
    )
    program, state = built.compile(idle), parts.init(parts.root)
    batch = program.place(ours.batch(built.recipe, "full"))

    def run() -> dict[str, float]:
        nonlocal state
        for _ in range(steps):
            state, _ = program.run(state, batch)
        jax.block_until_ready(state)
        return {"steps": steps}

    return run


def _feed(built: ours.Built, steps: int, folder: str) -> Run:
    """The next batch, and its way onto the device."""
    from electra_jax.data.rows import loader, order
    from electra_jax.parallel import mesh

    num_rows, devices = built.recipe.train.batch_rows, built.parts.devices.mesh
    batches = loader.batches(order.Stream([folder], None, seed=0), start_step=0, global_batch=num_rows)

    def run() -> dict[str, float]:
        jax.block_until_ready([mesh.to_devices(next(batches), devices, num_rows) for _ in range(steps)])
        return {"steps": steps}

    return run


def floors(recipe: Recipe) -> dict[str, float]:
    """{part: what one step must do of it}: floating-point operations; of the optimizer and the feed, bytes."""
    length, num_rows = recipe.data.length, recipe.train.batch_rows
    flops = costs.train_flops_by_part(recipe.model, length, recipe.masking.max_predictions(length))
    return {
        **{name: num_rows * of_row for name, of_row in flops.items()},
        "optimizer": 28.0
        * sum(costs.num_params(recipe.model).values()),  # parameters, gradients, two moments read; all but gradients written
        "feed": 16.0 * num_rows * length,  # tokens, segments, positions, types
    }


# --- The TPU's compiler


def compiled_for_tpu(stored: ours.Stored, topology: str) -> Run:
    """Seconds of each part on one chip, by the estimates of electra_jax/offline: {"c.PART", "composite.PART", "floor.PART"}; nothing runs.

    No estimate is below its floor: the compiler prices an operation without what it fetches from memory beside other operations.
    """
    from electra_jax.offline import hlo
    from electra_jax.offline import topology as topologies

    built = ours.build(Recipe.parse(stored), topologies.devices(topology)[1][:1])
    recipe, chip = built.recipe, chips.find(built.parts.devices.platform.device_kind)
    figures = dict.fromkeys([f"{kind}.{name}" for kind in ("c", "composite") for name in PARTS[:-1]], 0.0)
    for operation in hlo.priced(hlo.Module(built.compile().compiled.as_text())):
        name, secs = part_of(operation.instruction.rest), estimate.secs_of(operation, chip)
        figures[f"c.{name}"] += secs[0]
        figures[f"composite.{name}"] += secs[1]
    networks = {name: recipe.model.encoder(name) for name in ("generator", "discriminator")}
    if kernels := simulator.kernel_cycles(topology, list(networks.values()), recipe.train.batch_rows, recipe.data.length):
        sizes = {name: network.num_heads * network.num_layers for name, network in networks.items()}
        for name, size in sizes.items():  # a kernel's cycles go with heads and layers
            for kind in ("c", "composite"):
                figures[f"{kind}.{name}"] += kernels / chip.clock_hz * size / sum(sizes.values())
    for name, amount in floors(recipe).items():
        rate = chip.memory_bytes_per_sec if name in ("optimizer", "feed") else chip.bfloat16_flops
        figures[f"floor.{name}"] = floor = amount / rate
        figures |= {f"{kind}.{name}": max(figures[f"{kind}.{name}"], floor) for kind in ("c", "composite") if name != "feed"}
    return lambda: figures


def part_of(attributes: str) -> str:
    """Which part an instruction of the step belongs to."""
    match = re.search(r'op_name="([^"]*)"', attributes)
    name = match[1] if match else ""
    return next((part for part, scope in _SCOPES if re.search(scope, name)), "optimizer")


# --- Tables


def table(recipe: Recipe, platform: str, folder: pathlib.Path, rounds: int, tpu: Recipe | None, figure: pathlib.Path) -> Table:
    """`folder`: prepared rows; `tpu`: the recipe to compile for one TPU, where libtpu is there. Draws the figure too."""
    given = {"stored": recipe.stored(), "folder": str(folder), "steps": step.STEPS[platform]}
    peak, dtype = step.peak_side(platform)
    yardsticks = {"flops": peak, "bytes": Side("stream", "benchmarks.ours:stream", {})}
    groups = (("flops", "step"), ("flops", "generator", "mlm"), ("flops", "discriminator"), ("bytes", "optimizer", "feed"))
    runs, secs, rates = [], {}, {}
    for unit, *names in groups:  # never all at once: each keeps its memory
        sides = [Side(name, "benchmarks.parts:part", {**given, "name": name}) for name in names]
        turns = measure([*sides, yardsticks[unit]], rounds)
        runs.append(turns.samples)
        secs |= {name: [sample["wall"] / sample["steps"] for sample in turns.samples[name]] for name in names}
        rates |= {name: [sample[unit] / sample["wall"] for sample in turns.samples[yardsticks[unit].name]] for name in names}
    secs["vocabulary"] = [a - b for a, b in zip(secs["mlm"], secs["generator"], strict=True)]
    rates["vocabulary"] = rates["mlm"]
    lines, bars, took = [], {"measured here": {}}, {name: spread(values).median for name, values in secs.items()}
    for name, amount in floors(recipe).items():
        least = [amount / rate for rate in rates[name]]
        reached = spread([a / b for a, b in zip(least, secs[name], strict=True)])
        bars["measured here"][name] = took[name], spread(least).median
        lines.append([name, "measured", *(number(1e3 * value) for value in bars["measured here"][name]), share(reached)])
    rest = took["step"] - sum(took[name] for name in PARTS[:-1])
    lines.append(["the rest: plan, masking, metrics", "measured", number(1e3 * rest)])
    lines.append(["the whole step", "measured", number(1e3 * took["step"])])
    figures: dict[str, Any] = {"config": recipe.stored(), "runs": runs}
    products = sorted(spread(rates[name]).median / 1e12 for name in ("step", "generator", "discriminator"))  # of the groups above
    giga = spread(rates["optimizer"]).median / 1e9
    caption = (
        f"`{recipe.preset}`, {recipe.train.batch_rows} rows of {recipe.data.length}, {dtype}; {rounds} rounds, in which "
        f"a matrix product reached {number(products[0])} to {number(products[-1])} TFLOP/s and memory {number(giga)} GB/s. A floor is of "
        "its own part's rounds. The feed runs beside the step."
    )
    if tpu is None:
        lines.append(["all, on a TPU", "not computed: libtpu, its compiler, is not installed: pip install 'electra_jax[tpu]'"])
    else:
        found, label = _on_tpu(tpu)
        figures["tpu"] = found
        bars[label] = {}
        for name in PARTS[:-1]:
            c, composite, least = (found[f"{kind}.{name}"] for kind in ("c", "composite", "floor"))
            lines.append(
                [
                    name,
                    label,
                    f"{number(1e3 * composite)} to {number(1e3 * c)}",
                    number(1e3 * least),
                    f"{least / c:.0%} to {least / composite:.0%}",
                ]
            )
            bars[label][name] = ((c + composite) / 2, least)
        caption += (
            f" TPU: `{tpu.preset}`, {tpu.train.batch_rows} rows of {tpu.data.length} on one chip of {TPU}, between the two "
            "estimates of docs/scale.md; nothing ran there."
        )
    draw(bars, figure)
    return Table("parts", caption, ("part", "how", "ms a step", "floor, ms", "share of the floor's rate"), lines, figures)


def _on_tpu(recipe: Recipe) -> tuple[dict[str, float], str]:
    turns = measure([Side("tpu", "benchmarks.parts:compiled_for_tpu", {"stored": recipe.stored(), "topology": TPU})], 1)
    return turns.samples["tpu"][0], "computed by the TPU compiler"


def draw(bars: Mapping[str, Mapping[str, tuple[float, float]]], path: pathlib.Path) -> None:
    """A panel a platform: achieved and floor of each part as points, ms: a bar has no length on a log scale.

    {platform: {part: (seconds, floor)}} -> an .svg or .png.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "electra_jax", "svg.fonttype": "none"}  # the same bytes for the same bars
    figure, axes = pyplot.subplots(1, len(bars), figsize=(5.5 * len(bars), 2.8), squeeze=False, layout="constrained")
    for axis, (platform, parts) in zip(axes[0], bars.items(), strict=True):
        places = range(len(parts))
        took, least = ([1e3 * secs[i] for secs in parts.values()] for i in range(2))
        axis.hlines(places, least, took, color="#bbbbbb", zorder=1)
        axis.plot(least, places, "|", markersize=12, markeredgewidth=2.5, color="#997700", label="floor")
        axis.plot(took, places, "o", color="#4477aa", label="achieved")
        axis.set_yticks(list(places), list(parts))
        axis.margins(y=0.2)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("ms a step (log scale)")
        axis.set_title(platform)
        axis.grid(axis="x", color="#eeeeee")
        axis.set_axisbelow(True)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
