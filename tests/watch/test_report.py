"""report.html and the marked sentences: self-contained, escaped, thinned, and right in what they show."""

import html.parser
import json
import math
import os
import re
import time

import numpy as np
import pytest

from electra_jax.objectives.readings import GENERATOR, RTD
from electra_jax.views import Cell, Curve, Examples, Panel, Span, Table
from electra_jax.watch import plots, report, telemetry

PANELS = (*GENERATOR.panels, *RTD.panels)

EXAMPLES = Examples(
    "What it sees",
    "How to read it.",
    [
        [
            Span("the", " ", 0.01, "p 0.01"),
            Span("dog", " ", 0.934, "it was: cat", over="cat", plain="[cat -> dog 0.93]", colour="green"),
            Span("s", "", 1.2, "p 1"),
            Span("a\x1b[2J", " ", 0.7, "p 0.7", plain="[a\x1b[2J? 0.70]", colour="red"),
        ]
    ],
)
METRICS = "metrics.jsonl"

NAMES = ("loss", "mlm_loss", "rtd_loss", "grad_norm", "learning_rate")
HELDOUT = ("loss", "mlm_loss", "unigram_entropy", "rtd_loss", "rtd_auc", "rtd_accuracy", "majority_accuracy")
HELDOUT += ("rtd_precision", "rtd_recall", "mlm_accuracy", "sampled_accuracy", "replace_rate")


def write(folder, title="t", summary=None, **more):
    report.write(folder / "report.html", metrics=folder / METRICS, title=title, summary=summary or {}, panels=PANELS, **more)
    return folder / "report.html"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; complains of a tag that is not closed."""

    VOID = ("meta", "use", "path", "rect", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def write_metrics(workdir, steps: int, eval_every: int, extra: dict | None = None) -> None:
    with open(workdir / METRICS, "wb") as file:
        for step in range(1, steps + 1):
            metrics = {f"train/{name}": 1 + i + 1 / step for i, name in enumerate(NAMES)}
            metrics |= {"clock/tokens_per_sec": 12_000 + step % 7, "clock/secs_wall": 3 * step, "clock/secs_step": 2 * step}
            file.write(telemetry.format_line(step, metrics | (extra or {})))
            if step % eval_every == 0:
                file.write(telemetry.format_line(step, {f"eval/{name}": 0.5 + 0.01 * i for i, name in enumerate(HELDOUT)}))


def test_one_page_with_every_figure_and_nothing_fetched(tmp_path):
    write_metrics(tmp_path, 120, 40)
    config = json.dumps({"model": {"positions": "rotary"}})
    path = write(tmp_path, "tiny", {"steps": 120, "AUC": 0.6597}, sections=[EXAMPLES], config=config, verdict="It reads context.")
    text = path.read_text()
    page = Page(text)
    titles = [panel.title for panel in (*PANELS, *plots.PANELS)]
    assert [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"] == titles
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "xlink:href", "src"))
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "#0102" not in text  # every colour is the style sheet's
    assert '"positions": "rotary"' in "".join(page.texts)
    assert "0.6597" in page.texts
    assert page.texts.index("It reads context.") < page.texts.index("Generator: loss") < page.texts.index("0.6597")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('&\"')</script> @BODY@ @TITLE@"
    words = Examples(evil, evil, [[Span(evil, " ", 0.7, evil, over=evil)]])
    text = write(tmp_path, evil, {evil: evil}, sections=[words], config=evil, verdict=evil).read_text()
    page = Page(text)
    assert "script" not in page.tags and "b" not in page.tags
    # title, heading, verdict, two cells, the config; title and reading of the examples, the token and the small word above it
    assert page.texts.count(evil) == 10
    assert [value for _, name, value in page.attributes if name == "title"] == [evil]


def test_what_is_said_of_a_span(tmp_path):
    text = write(tmp_path, sections=[EXAMPLES]).read_text()
    assert re.findall(r"<ruby class=marked [^>]*>(.*?)<rt>(.*?)</rt>", text) == [("dog", "cat")]
    assert re.findall(r"--score:([\d.]+)", text) == "0.010 0.934 1.000 0.700".split()
    assert "What it sees" in text and "How to read it." in text


def test_facts_stand_above_their_sentences_and_texts_begin_lines(tmp_path):
    found = Examples("", "", [[Span("one"), Span("two", "\n")], [Span("שלום")]], [{"row": "<7>", "gold": "a"}, {"row": "8"}])
    text = write(tmp_path, sections=[found]).read_text()
    facts = re.findall("<p class=facts>.*?</p>|<p class=sentence>", text)
    row = "<span>row <b><bdi>{}</bdi></b></span>"
    assert facts[::2] == [f"<p class=facts>{row.format('&lt;7&gt;')} <span>gold <b><bdi>a</bdi></b></span></p>"] + [
        f"<p class=facts>{row.format(8)}</p>"
    ]
    assert len(facts) == 4 and ">one</span><br><span" in text
    assert "unicode-bidi: plaintext" in text  # each line runs as its first letter does, to the right or to the left
    assert "class=facts" not in write(tmp_path, sections=[EXAMPLES]).read_text()


def test_a_table_is_drawn_with_its_shades_and_sections_in_order(tmp_path):
    evil = "<script>alert('&\"')</script>"
    table = Table(evil, evil, evil, [evil], [(evil, [Cell(evil, evil, 2.0, True)]), ("b", [Cell("7", "", 0.25)])])
    empty = Table("nobody", "", "", ["x"], []), Examples("no one", "", [])
    page = Page(write(tmp_path, sections=[table, *empty, EXAMPLES]).read_text())
    assert page.texts.count(evil) == 7 and "script" not in page.tags and not {"nobody", "no one"} & set(page.texts)
    of_cells = [(name, value) for tag, name, value in page.attributes if tag == "td"]
    assert of_cells == [("class", "right"), ("style", "--score:1.000"), ("class", "wrong"), ("style", "--score:0.250")]
    assert page.tags.count("small") == 1 and page.texts.index("7") < page.texts.index("What it sees")
    assert ("div", "class", "wide") in page.attributes  # it scrolls by itself on a phone


def test_a_panel_that_wants_several_points(tmp_path):
    panel = Panel("Each", "", (Curve("eval/a", "a", "red"), Curve("eval/b", "b", "teal")), fewest_points=2)
    for steps, drawn in ((1, False), (2, True)):
        (tmp_path / METRICS).write_bytes(b"".join(telemetry.format_line(step, {"eval/b": 0.5}) for step in range(steps)))
        report.write(tmp_path / "report.html", metrics=tmp_path / METRICS, title="t", summary={}, panels=[panel])
        text = (tmp_path / "report.html").read_text()
        assert ("var(--teal)" in text) == drawn and "#0102" not in text


@pytest.mark.parametrize("lines", [None, b"", b'{"step": 3, "train/lo'])
def test_a_run_without_metrics_has_a_report(tmp_path, lines):
    if lines is not None:
        (tmp_path / METRICS).write_bytes(lines)
    page = Page(write(tmp_path, summary={"steps": 0}).read_text())
    assert "svg" not in page.tags and "No metrics yet." in page.texts


def test_a_run_without_evaluations_shows_its_training_curves(tmp_path):
    write_metrics(tmp_path, 30, 10**9)
    page = Page(write(tmp_path).read_text())
    titles = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert titles == ["Generator: loss", "Discriminator: loss", "Loss", "Learning rate", "Gradient norm", "Speed"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, 4.569946690071706, 1e30])
def test_extreme_values_are_drawn(tmp_path, value):
    for steps in (1, 60, 1500):
        write_metrics(tmp_path, steps, 1, dict.fromkeys((f"train/{name}" for name in NAMES), value))
        assert Page(write(tmp_path, summary={"x": value}).read_text()).tags.count("svg") == 9


def test_a_single_spike_does_not_flatten_the_curve():
    steps, values = list(range(1, 401)), [2 + 1 / step for step in range(1, 401)]
    values[200] = 1e6
    svg = plots.draw(PANELS[0], {"train/mlm_loss": (steps, values)})
    ticks = [float(tick) for tick in re.findall(r'id="ytick_\d+">.*?>([\d.]+)</text>', svg, re.DOTALL)]
    assert len(ticks) > 2 and min(ticks) > 1 and max(ticks) < 4


def test_a_falling_curve_falls_on_the_page():
    history = {"eval/mlm_loss": ([10, 20, 30], [8.0, 6.0, 4.0])}
    svg = plots.draw(PANELS[0], history)
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--orange\)', svg).group(1)
    points = np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)])
    assert len(points) == 3
    x_steps, y_steps = np.diff(points, axis=0).T
    assert (x_steps > 0).all() and np.allclose(x_steps[0], x_steps[1])
    assert (y_steps > 0).all() and np.allclose(y_steps[0], y_steps[1])  # down the page


def test_a_noisy_curve_is_drawn_twice_and_a_schedule_once():
    history = {name: (list(range(200)), [1.0 + step % 3 for step in range(200)]) for name in ("train/mlm_loss", "train/learning_rate")}
    loss, schedule = (plots.draw(panel, history).count("stroke: var(--blue)") for panel in (PANELS[0], plots.PANELS[1]))
    assert (loss, schedule) == (2, 1)


def test_smoothing_is_the_mean_of_finite_neighbours():
    values = np.array([1.0, 5.0, np.nan, 2.0, 8.0, 3.0])
    expected = [np.nanmean(values[max(i - 1, 0) : i + 2]) for i in range(6)]
    np.testing.assert_allclose(plots._smooth(values, 3), expected, rtol=1e-12)


def test_a_long_history_is_thinned_evenly_and_keeps_its_end_and_its_evaluations(tmp_path):
    steps = 12_348
    with open(tmp_path / METRICS, "wb") as file:
        for step in range(1, steps + 1):
            file.write(telemetry.format_line(step, {"train/loss": step / 7}))
            if step % 100 == 0:
                file.write(telemetry.format_line(step, {"eval/loss": step / 3}))
    history, damaged = report.read_history(tmp_path / METRICS)
    got, values = history["train/loss"]
    stride = 8  # the smallest power of two that leaves at most 2,000 of 12,348
    assert got == [*range(1, steps + 1, stride), steps]
    assert values == [step / 7 for step in got]
    assert damaged == 0
    assert history["eval/loss"] == (list(range(100, steps, 100)), [step / 3 for step in range(100, steps, 100)])


def test_a_huge_history_takes_little_time_and_space(tmp_path):
    metrics = {f"train/{name}": 1 / 3 for name in NAMES}
    thousand = b"".join(telemetry.format_line(123_000 + i, metrics) for i in range(1000))
    with open(tmp_path / METRICS, "wb") as file:
        for _ in range(400):
            file.write(thousand)
    begun = time.process_time()
    path = write(tmp_path)
    assert time.process_time() - begun < 6  # 1.5 s on a quiet machine, matplotlib's import included
    assert path.stat().st_size < 1e6


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_sentences_in_a_terminal():
    assert report.plain_lines(EXAMPLES) == ["the [cat -> dog 0.93]s [a?[2J? 0.70]"]
    coloured = "the \x1b[32m[cat -> dog 0.93]\x1b[0ms \x1b[31m[a?[2J? 0.70]\x1b[0m"
    assert report.plain_lines(EXAMPLES, colour=True) == [coloured]
