"""The report: one page that needs nothing else, figures that do not change from one writing to the next."""

from __future__ import annotations

import base64
import gzip
import json
import re
import tomllib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lowmem_layers
from lowmem_layers import StudySpec, run_study
from lowmem_layers.errors import RecordError
from lowmem_layers.findings.comparing import compare_runs
from lowmem_layers.findings.rows import level
from lowmem_layers.findings.words import interval, number
from lowmem_layers.game.answers.importance import estimate
from lowmem_layers.game.answers.interactions import interactions
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.report import write_report
from lowmem_layers.report.compared import draw_comparison
from lowmem_layers.report.figures import importance_bars, window_map
from lowmem_layers.report.page.data import run_data
from lowmem_layers.report.page.library import script_hash
from lowmem_layers.report.pairs import interaction_map
from lowmem_layers.report.style import ATTENTION, FEED_FORWARD, FORMATS, GROUP, paper_style, save
from lowmem_layers.report.table_formats import as_csv, as_latex, as_markdown, tex
from lowmem_layers.tasks.metrics import METRICS


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """Write a report in every format."""
    return write_report(finished, tmp_path_factory.mktemp("report"), every_value=True)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave figures empty, where a test is about the page: drawing them takes most of a report's time."""

    def empty(_figure, folder, name, formats):
        for form in formats:
            (folder / f"{name}.{form}").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')

    monkeypatch.setattr("lowmem_layers.report.write.save", empty)


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects addresses."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page):
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in tags.addresses)
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", text))
    assert len(text) < 3e6
    # nothing runs but the scripts whose hashes the policy names: ours, and the library's once it is unpacked
    ours = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    packed = text.split('id="library">')[1].split("<")[0]
    hashes = [script_hash(script) for script in (*ours, gzip.decompress(base64.b64decode(packed)).decode())]
    assert len(ours) == 1
    assert f"default-src 'none'; script-src {' '.join(hashes)}; style-src" in text
    assert "MIT License" in text
    assert all(picture["alt"] for picture in tags.pictures)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_figures_and_tables_are_there_in_every_format(page):
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    for value in ("acc", "loglikelihood"):
        for kind in ("importance", "shares", "ablation", "windows", "interactions"):
            assert {f"one-{value}-{kind}.{form}" for form in ("svg", "png", "pdf")} <= figures
    tables = {path.name for path in (page.parent / "tables").iterdir()}
    assert {"one-acc.csv", "one-acc.md", "one-acc.tex", "importance-loglikelihood.parquet"} <= tables
    assert {
        f"one-{value}-interactions.{form}" for value in ("acc", "loglikelihood") for form in ("csv", "tex")
    } <= tables
    assert {f"study-table-{which}.{form}" for which in (1, 2, 3, 4) for form in ("csv", "md", "tex")} <= tables


def test_the_page_lists_interactions_as_the_record_has_them(page, finished):
    from lowmem_layers.findings.interactions import interaction_table

    listed = (page.parent / "tables" / "one-loglikelihood-interactions.csv").read_text().splitlines()
    table = interaction_table(finished, "loglikelihood").to_pylist()
    assert len(listed) - 1 == len(table)
    pairs = {f"{row['first']} + {row['second']}": row for row in table}
    for line in listed[1:]:
        name, value, *_, kind = line.split(",")
        assert float(value) == pytest.approx(pairs[name]["value"], abs=0.006)
        assert kind == pairs[name]["kind"]
    shown = shown_data(page.read_text())["runs"][0]
    second = next(place for place, value in enumerate(shown["values"]) if value["id"] == "loglikelihood")
    assert shown["pairs"]["found"][second][0]["value"] == pytest.approx([row["value"] for row in table], rel=1e-4)


def shown_data(text):
    """Read what the page's scripts show."""
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_the_page_shows_the_importance_that_the_record_has(page, finished):
    shown = shown_data(page.read_text())["runs"][0]
    assert [each["name"] for each in shown["players"]] == list(finished.manifest.design.names)
    assert {each["id"] for each in shown["values"]} >= {"acc", "loglikelihood", "margin", "probability"}
    for value, of_value in zip(shown["values"], shown["found"], strict=True):
        scale = 100.0 if value["unit"] == "points" else 1.0
        for estimator, (found,) in zip(shown["estimators"], of_value, strict=True):
            table = finished.importance(value["id"], estimator["id"]).to_pydict()
            assert found["items"] == table["n_items"][0]
            for name, column, factor in (
                ("value", "value", scale), ("low", "ci_low", scale), ("high", "ci_high", scale),
                ("rank_low", "rank_ci_low", 1.0), ("share_high", "share_ci_high", 100.0),
            ):  # fmt: skip
                shown_numbers = [np.nan if each is None else each for each in found[name]]
                np.testing.assert_allclose(shown_numbers, factor * np.array(table[column], float), rtol=1e-4)


def test_the_page_shows_what_windows_cost(page, finished):
    shown = shown_data(page.read_text())["runs"][0]
    table = finished.value_tables()[0]
    place = [value["id"] for value in shown["values"]].index("acc")
    for first, size, lost in zip(
        shown["windows"]["first"], shown["windows"]["size"], shown["windows"]["lost"][place][0]["value"], strict=True
    ):
        removed = tuple(range(first, first + size))
        assert lost == pytest.approx(100 * (table.mean() - table.mean(removed)), abs=1e-3)
    assert len(shown["windows"]["first"]) == len(table.coalitions) - 1


def test_groups_have_figures_too():
    players = [Group("early", (0, 1)), Group("middle & more", (2, 3)), Group("late", (4, 5))]
    coalitions = ((), (0,), (1,), (2,), (0, 1), (1, 2))
    values = np.random.default_rng(0).normal(size=(20, len(coalitions)))
    table = ValueTable(tuple(player.name for player in players), coalitions, values, task="one")
    found = interactions(table)
    with paper_style():
        for figure in (
            importance_bars(players, estimate(table), 1.0, "nats", "groups"),
            window_map(players, table, 1.0, "nats", "groups"),
            interaction_map(players, found, 1.0, "nats", "groups"),
        ):
            labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
            assert labels == list(table.players)


def test_a_group_that_is_named_like_a_sublayer_is_drawn_as_a_group(tmp_path, bench):
    spec = StudySpec(tasks=("one",), players="attn.0=attn.0+ffn.0,ffn.2=attn.2", max_removed=2)
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    figures = write_report(run, formats=("svg",)).parent / "figures"
    for kind in ("importance", "shares", "ablation"):
        drawn = (figures / f"one-acc-{kind}.svg").read_text().upper()
        assert GROUP in drawn
        assert ATTENTION not in drawn
        assert FEED_FORWARD not in drawn
    for kind in ("importance", "ablation", "windows", "interactions"):
        drawn = (figures / f"one-acc-{kind}.svg").read_text()
        assert {"attn.0", "ffn.2", "group of sublayers"} <= {text.split(" of the ")[0] for text in texts(drawn)}
    compared = tmp_path / "compared.svg"
    draw_comparison(run, run, compare_runs(run, run), None, compared)
    assert {"attn.0", "ffn.2"} <= set(texts(compared.read_text()))


def texts(svg):
    """List the words that a figure shows: matplotlib draws them as outlines, under a comment that spells them."""
    return re.findall("<!-- (.*?) -->", svg)


def test_several_tasks_are_shown_with_their_mean(tmp_path, bench, undrawn):
    spec = StudySpec(tasks=("one", "three"), max_removed=1)
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    page = write_report(run, formats=("svg",))
    shown = shown_data(page.read_text())["runs"][0]
    assert shown["tasks"] == ["one", "three", "all"]
    assert len(shown["found"][0][0]) == 3
    assert "all-acc-importance.svg" in {path.name for path in (page.parent / "figures").iterdir()}
    assert "on average over the tasks" in page.read_text()


def test_writing_twice_gives_the_same_bytes(page, finished, tmp_path):
    again = write_report(finished, tmp_path / "again", ("svg",), every_value=True).parent
    written = {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert {path.suffix for path in written} >= {".svg", ".html", ".csv", ".tex", ".md", ".parquet"}
    for path in sorted(written):
        assert (again / path).read_bytes() == (page.parent / path).read_bytes(), path.name


def test_drawing_twice_gives_the_same_bytes(page, finished, tmp_path):
    (table,), title = finished.value_tables(), "one: what windows removed cost"
    with paper_style():
        figure = window_map(finished.manifest.design.players, table, 100.0, "points", title)
        save(figure, tmp_path, "again")
    for form in FORMATS:
        drawn = page.parent / "figures" / f"one-acc-windows.{form}"
        assert (tmp_path / f"again.{form}").read_bytes() == drawn.read_bytes(), form


def test_nothing_is_cut_off_at_the_edges(page):
    for path in (page.parent / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all(), path.name


def test_text_is_escaped(tmp_path, bench, undrawn):
    made = bench(model={"id": "<script>alert(1)</script>&co", "dtype": "float32"})
    run = run_study(StudySpec(tasks=("one",), max_removed=1), tmp_path / "r", prepare=made.prepare)
    text = write_report(run, formats=("svg",)).read_text()
    assert text.count("<script>") == 1  # our own
    assert "\\u003cscript\\u003ealert(1)" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;co" in text


def test_a_log_likelihood_is_in_nats_has_no_chance_and_is_drawn_once(tmp_path, bench, undrawn):
    made = bench()

    def prepare(spec, announce, earlier=None):
        prepared = made.prepare(spec, announce)
        return replace(prepared, tasks=tuple(replace(task, metric="loglikelihood") for task in prepared.tasks))

    run = run_study(StudySpec(tasks=("one",), max_removed=2), tmp_path / "r", prepare=prepare)
    text = write_report(run, formats=("svg",)).read_text()
    assert re.search(r"<td>−\d+\.\d\d nats \[−\d+\.\d\d, −\d+\.\d\d\]</td><td>–</td>", text)
    titles = [unescape(title) for title in re.findall("<summary><h2>([^<]*)", text)]
    words = "gold answer's log-likelihood"
    assert titles == [f"Every sublayer by {words} (one)", "How this was made", "Licence of the figures' library"]
    assert "guessing" not in text
    figures = sorted(path.name for path in (run.folder / "report" / "figures").iterdir())
    assert figures == [
        f"one-loglikelihood-{kind}.svg" for kind in ("ablation", "importance", "interactions", "shares", "windows")
    ]


def test_levels_are_in_the_units_of_their_metric():
    assert level(METRICS["acc"], 0.845, Interval(0.801, 0.882)) == "84.5 % [80.1, 88.2]"
    assert level(METRICS["loglikelihood"], -2.4512, Interval(-2.6, -2.31)) == "−2.45 nats [−2.60, −2.31]"
    assert level(METRICS["nll_per_byte"], -0.81234, Interval(-0.9, -0.7)) == "−0.812 nats per byte [−0.900, −0.700]"
    assert level(METRICS["probability"], 1.0, Interval(float("nan"), float("nan"))) == "100.0 % –"


def test_the_template_is_installed_with_the_package():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    others = [path for path in Path(lowmem_layers.__file__).parent.rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert {"page.css", "page.html.jinja", "app.js"} <= {path.name for path in others}
    assert [path.name for path in others if not any(path.match(pattern) for pattern in patterns)] == []


def test_a_report_takes_findings_that_are_there(finished, tmp_path, monkeypatch, undrawn):
    assert finished.findings.sides
    monkeypatch.setattr("lowmem_layers.findings.run.compute_findings", None)
    assert write_report(finished, tmp_path, ("svg",)).is_file()


def test_an_unfinished_run_says_so(tmp_path, bench, engine, undrawn):
    made = bench(engine=engine(fail_at=1))
    with pytest.raises(KeyboardInterrupt):
        run_study(StudySpec(tasks=("one",), max_removed=1), tmp_path / "r", prepare=made.prepare)
    from lowmem_layers import open_run

    assert "unfinished: 3 of 8 items" in write_report(open_run(tmp_path / "r"), formats=("svg",)).read_text()


def test_a_run_of_the_full_model_only_has_a_page(tmp_path, bench, undrawn):
    run = run_study(StudySpec(tasks=("one",), max_removed=0), tmp_path / "r", prepare=bench().prepare)
    assert "The full model" in write_report(run, formats=("svg",)).read_text()


def test_removal_orders_hold_windows_by_chance_only(tmp_path, bench):
    for seed in range(4):
        spec = StudySpec(tasks=("one",), players="decoder-layer", coalitions="permutations", permutations=2, seed=seed)
        run = run_study(spec, tmp_path / str(seed), prepare=bench().prepare)
        findings = run.findings
        shown = run_data(run, findings, findings.sides[0])
        assert {each["id"] for each in shown["estimators"]} == {"permutation", "ablation"}
        assert shown["pairs"]["first"] == shown["windows"]["first"] == []


def test_non_finite_scores_do_not_stop_a_report(tmp_path, bench, engine):
    made = bench(engine=engine(poison={"q1": float("nan"), "q4": float("-inf")}))
    run = run_study(StudySpec(tasks=("one",), max_removed=2), tmp_path / "r", prepare=made.prepare)
    assert write_report(run, formats=("svg",)).is_file()


def test_a_folder_that_cannot_be_written(finished):
    with pytest.raises(RecordError, match="cannot write"):
        write_report(finished, "/proc/report")


def test_tables_are_quoted_for_their_readers():
    header, rows = ["sublayer", "a,b"], [["attn.0", "5 % | _x"]]
    assert as_csv(header, rows) == 'sublayer,"a,b"\nattn.0,5 % | _x\n'
    assert "5 % \\| _x" in as_markdown(header, rows)
    assert r"5 \% | \_x \\" in as_latex(header, rows)
    assert tex("a\\b") == r"a\textbackslash{}b"


def test_numbers():
    assert [number(value, 1) for value in (-0.04, float("nan"), float("-inf"), 2.25)] == ["0.0", "–", "-inf", "2.2"]
    assert interval(float("nan"), 1.0, 1) == "–"
    assert interval(-1.0, 1.0, 1) == "[-1.0, 1.0]"
