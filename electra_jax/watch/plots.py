"""The figures of report.html: how curves are drawn, and those that every objective has."""

import html
import io
import re

from electra_jax.views import Curve, Panel

Curves = dict[str, tuple[list[int], list[float]]]  # metric -> (steps, values)

# matplotlib draws in these colours, and the page's style sheet, which knows light from dark, takes their
# place.
_INK, _GRID = "#010203", "#010204"
_COLOURS = {
    "blue": "#010205",
    "orange": "#010206",
    "green": "#010207",
    "purple": "#010208",
    "grey": "#010209",
    "red": "#01020a",
    "teal": "#01020b",
}


# What every objective has, after its own.
PANELS = (
    Panel(
        "Loss",
        "What the optimizer minimises. Training and held-out curves should fall together.",
        (Curve("train/loss", "training", "blue"), Curve("eval/loss", "held out", "orange")),
    ),
    Panel(
        "Learning rate",
        "Up during warm-up, then down to the end.",
        (Curve("train/learning_rate", "learning rate", "blue"),),
        scale="rate",
    ),
    Panel(
        "Gradient norm",
        "Before clipping. A level that keeps rising, or growing spikes, announce divergence: lower the rate.",
        (Curve("train/grad_norm", "gradient norm", "blue"),),
        scale="log",
    ),
    Panel(
        "Speed",
        "Tokens a second, without the pauses for evaluation and checkpoints. It should be level.",
        (Curve("clock/tokens_per_sec", "tokens/s", "green"),),
        scale="rate",
    ),
)


def draw(panel: Panel, history: Curves) -> str:
    """Inline SVG, its colours the style sheet's variables."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": panel.title, "font.size": 11}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    style |= dict.fromkeys(("axes.edgecolor", "grid.color"), _GRID)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_xlabel("step")
        curves = [curve for curve in panel.curves if curve.metric in history]
        # Rates are smooth by nature, and the corner of a schedule should stay one.
        ranges = [_plot(axes, curve, *history[curve.metric], noisy=panel.scale != "rate") for curve in curves]
        _set_range(axes, panel.scale, [extent for extent in ranges if extent is not None])
        axes.tick_params(which="both", length=0)
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
    return _inline(drawing.getvalue(), panel.title)


def _plot(axes, curve: Curve, steps: list[int], values: list[float], noisy: bool) -> tuple[float, ...] | None:
    """Draws it; returns (lowest, usual low, usual high, highest) of its finite values."""
    import numpy as np

    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    line = dict(color=_COLOURS[curve.colour], linewidth=2.0, markersize=4)
    if curve.dashed and len(steps) == 1:
        axes.axhline(values[0], linestyle="--", zorder=3, **line)
    elif curve.dashed:
        axes.plot(steps, values, linestyle="--", zorder=3, **line)
    elif len(steps) <= 20:
        axes.plot(steps, values, marker="o", **line)
    elif len(steps) <= 50 or not noisy:
        axes.plot(steps, values, **line)
    else:
        axes.plot(steps, values, **(line | dict(linewidth=1.0, alpha=0.25)))
        axes.plot(steps, _smooth(values, max(5, len(values) // 40)), **line)
    if not len(finite):
        return None
    usual = np.percentile(finite, [0.5, 99.5] if len(finite) > 50 else [0, 100])
    return finite.min(), *usual, finite.max()


def _smooth(values, width: int):
    """The mean of each value and its neighbours, `width` in all, as far as they are finite."""
    import numpy as np

    kernel, finite = np.ones(2 * (width // 2) + 1), np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    counts = np.convolve(finite.astype(np.float64), kernel, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)


def _set_range(axes, scale: str, ranges: list[tuple[float, ...]]) -> None:
    """The vertical axis. A few values that lie far out leave the picture rather than flatten the others."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = FuncFormatter(lambda value, _: short(value))
    axes.xaxis.set_major_formatter(names)
    lowest, low, high, highest = zip(*ranges, strict=True) if ranges else [(0.0, 1.0)] * 4
    if scale == "log" and min(lowest) > 0:
        axes.set_yscale("log")
        axes.set_ylim(min(lowest) / 1.25, max(highest) * 1.25)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(names)
    elif scale == "share":
        axes.set_ylim(-0.02, 1.02)
    elif scale == "rate":
        axes.set_ylim(0, max(max(highest) * 1.05, 1e-12))
        if max(highest) >= 1000:
            axes.yaxis.set_major_formatter(names)
    elif max(highest) - min(lowest) > 4 * (max(high) - min(low)) > 0:
        margin = 0.1 * (max(high) - min(low))
        axes.set_ylim(min(low) - margin, max(high) + margin)


def short(value: float) -> str:
    """At most four digits: 0.6597, 10.65k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _inline(svg: str, label: str) -> str:
    """The drawing as an element of an HTML page, which needs no namespaces."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head).group()
    for name, colour in {"ink": _INK, "grid": _GRID, **_COLOURS}.items():
        rest = rest.replace(colour, f"var(--{name})")
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box}>{rest}'
