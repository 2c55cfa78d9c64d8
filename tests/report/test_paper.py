"""Figures for a paper: all that runs allow, within two columns, legible in grey and for 160 sublayers."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from lowmem_layers import open_run
from lowmem_layers.findings.paper import tables_of
from lowmem_layers.game.answers.importance import estimate
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.players.player import players_of
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.report.figures import importance_bars
from lowmem_layers.report.paper import paper_figures, write_paper_figures
from lowmem_layers.report.paper_maps import rank_plot
from lowmem_layers.report.style import ATTENTION, FEED_FORWARD, FORMATS, FULL_WIDTH_IN, paper_style, save
from lowmem_layers.report.table_formats import as_latex
from tests.report.test_several import made


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Make two runs of one model, the second one packed."""
    root = tmp_path_factory.mktemp("pair")
    packed = {"id": "m", "dtype": "float32", "quantisation": {"used": "nf4"}}
    return made(root / "a", "m", 0), made(root / "b", packed, 1)


def test_runs_have_every_figure_of_the_study_and_more(pair):
    figures = paper_figures(pair, "loglikelihood")
    assert set(figures) == {
        "figure-2-shares", "figure-3-ablation", "figure-4-ablation", "figure-6-values", "quantisations",
        *(f"{kind}-{run}" for kind in ("map", "ranks", "interactions", "items") for run in (1, 2)),
    }  # fmt: skip
    for name, figure in figures.items():
        assert round(figure.get_size_inches()[0], 6) <= FULL_WIDTH_IN, name
    pies = [text.get_text() for part in figures["figure-2-shares"].subfigs for text in part.findobj(Text)]
    assert {"one", "three", "all"} <= set(pies)
    known = [found for found in pair[0].findings.sides[0].found if np.isfinite(found.share).all()]
    assert known
    for found in known:
        first = int(found.share.argmax())
        assert any(text.startswith(f"{found.players[first]}\n{100 * found.share[first]:.1f} %") for text in pies)
    (axes,) = figures["quantisations"].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["float32", "nf4"]


def test_an_opened_run_draws_itself(pair):
    figures = open_run(pair[0].folder).figures()
    assert set(figures) >= {"figure-2-shares", "figure-3-ablation", "ranks", "interactions", "items"}
    assert all(figure.axes or figure.subfigs for figure in figures.values())


@pytest.mark.slow
def test_figures_for_a_paper_are_saved_in_every_format(pair, tmp_path):
    written = write_paper_figures(pair, tmp_path / "paper")
    assert {path.suffix.removeprefix(".") for path in written} == set(FORMATS)
    assert all(path.stat().st_size > 500 for path in written)


def lightness(colour):
    """Give CIE L*, 0 to 100."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * np.cbrt(luminance) - 16


def test_the_two_kinds_are_told_apart_in_grey():
    assert abs(lightness(ATTENTION) - lightness(FEED_FORWARD)) > 18


def test_labels_of_160_sublayers_do_not_overlap(pair):
    players = players_of(["ffn"] * 80)
    coalitions = tuple(windows(160, 1))
    rng = np.random.default_rng(0)
    table = ValueTable(tuple(p.name for p in players), coalitions, rng.normal(size=(12, len(coalitions))), task="t")
    with paper_style():
        figure = importance_bars(players, estimate(table), 1.0, "nats", "t")
        figure.draw_without_rendering()
        labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text() and label.get_visible()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert len(boxes) > 8
    assert all(one.x1 <= two.x0 for one, two in pairwise(boxes))


def test_a_name_that_is_no_text_leaves_the_svg_readable(pair, tmp_path):
    side = pair[0].findings.sides[0]
    with paper_style():
        figure = rank_plot("m\x00\x1b[31m <b>--$x$\ufffe", pair[0], side)
        save(figure, tmp_path, "ranks", ("svg",))
    text = (tmp_path / "ranks.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "\x1b" not in text
    assert "m\ufffd\ufffd[31m" in text


LATEX = shutil.which("pdflatex")


@pytest.mark.skipif(LATEX is None, reason="no pdflatex on this machine")
def test_latex_tables_compile(tmp_path):
    hostile = r"a\b_{c}$d$%&#~^<x>±–−…×"
    table = as_latex(["sublayer", "estimate (%)"], [["attn.0", "−1.0 ± 2"], [hostile, "[3.0, 4.0]"]])
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + table + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")


def test_the_study_tables_name_the_packing_that_the_weights_had(pair):
    """A GGUF file keeps its own packing under --quant 4bit: 'm 4bit' was no name for it."""
    assert [row.model for row in tables_of(pair).table1] == ["m", "m nf4"]
