"""The end of a run on the terminal: levels in their metric's unit, names as they are."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lowmem_layers import StudySpec, run_study
from lowmem_layers.cli.output import visible
from lowmem_layers.cli.summary import importance_table, summarise


def summary(run, width: int = 100) -> str:
    """Print a run's summary, colours and all."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False)
    summarise(run, run.findings, Path("r/report/index.html"), console)
    return stream.getvalue()


def test_an_accuracy_is_per_cent_and_has_a_chance_level(finished):
    (row,) = (line for line in summary(finished).splitlines() if line.startswith(" one "))
    assert "accuracy" in row
    assert row.rstrip().endswith("25 %")
    assert " % [" in row


def test_a_log_likelihood_is_in_nats_has_no_chance_and_is_shown_once(tmp_path, bench):
    made = bench()

    def prepare(spec, announce, earlier=None):
        prepared = made.prepare(spec, announce)
        return replace(prepared, tasks=tuple(replace(task, metric="loglikelihood") for task in prepared.tasks))

    text = summary(run_study(StudySpec(tasks=("one",), max_removed=2), tmp_path / "r", prepare=prepare))
    (row,) = (line for line in text.splitlines() if line.startswith(" one "))
    assert " nats [−" in row
    assert "%" not in row
    assert row.rstrip().endswith("–")
    assert text.count("top 3 by") == 1
    assert text.count("estimate ") == 1


def test_a_run_that_quantised_says_so_and_judges_no_cornerstones(tmp_path, bench, finished):
    spec = StudySpec(tasks=("one",), max_removed=2, change="quantise:q4_0")
    text = summary(run_study(spec, tmp_path / "r", prepare=bench().prepare))
    assert "each quantised to q4_0; estimates with 95 % intervals" in text
    assert "cornerstone" not in text
    assert "removed" not in text
    assert "cornerstone" in summary(finished)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":smile:", "a\x1b[31mb\x07", "\x9b2J"])
def test_names_are_shown_as_they_are(tmp_path, bench, name):
    """Markup in the name of a task or a group would vanish or raise; an escape sequence would be obeyed."""
    groups = f"{name}=attn.0+ffn.0,rest=attn.1+ffn.1+attn.2+ffn.2"
    spec = StudySpec(tasks=(f"task {name}",), players=groups, max_removed=1)
    text = summary(run_study(spec, tmp_path / "r", prepare=bench().prepare))
    assert f" {visible(name)} " in text
    assert f" task {visible(name)} " in text
    assert f"top 3 by accuracy: {visible(name)}, rest" in text or f"rest, {visible(name)}" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b"}


def test_ten_rows_and_what_is_certain_about_them(tmp_path, bench):
    run = run_study(StudySpec(tasks=("one",), max_removed=1), tmp_path / "r", prepare=bench(n_layers=8).prepare)
    side = run.findings.sides[-1].overall
    text = summary(run)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith((" attn.", " ffn."))]
    assert rows == [side.players[place] for place in side.order()[:10]]
    assert "The 10 most important of 16 sublayers" in text
    assert "6 more rows: lowmem-layers importance" in text
    matter = int((side.ci.low > 0).sum())
    words = f"by gold answer's log-likelihood, {matter} of 16 certainly matter (95 % each); certainly among the top 3: "
    assert words in " ".join(text.split())
    stream = io.StringIO()
    summarise(run, run.findings, Path("p"), Console(file=stream, width=80), n_rows=None)
    assert stream.getvalue().count("\n attn.") + stream.getvalue().count("\n ffn.") == 16
    assert "more rows" not in stream.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_results_reach_a_terminal_without_our_signs(finished, encoding):
    """Windows' consoles and many logs know no minus sign: the table must not end in a UnicodeEncodeError."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    summarise(finished, finished.findings, Path("p"), Console(file=stream, width=80))
    stream.flush()
    shown = stream.buffer.getvalue()
    assert b"?" not in shown
    assert b"[-" in shown


def test_a_group_has_a_groups_colour_whatever_it_is_called(tmp_path, bench):
    spec = StudySpec(tasks=("one",), players="attn.0=attn.0+ffn.0,rest=attn.1+ffn.1", max_removed=1)
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    table = importance_table(run.manifest, run.findings.sides)
    assert {(cell.plain, str(cell.style)) for cell in table.columns[0].cells} == {
        ("attn.0", "green"),
        ("rest", "green"),
    }


def test_control_characters_are_spelled_out():
    assert visible("a\x1b[2Jb\tc\n") == "a\\x1b[2Jb\\x09c\\x0a"
    assert visible("ünicode – stays [as] it is") == "ünicode – stays [as] it is"


def test_a_dumb_terminal_cuts_no_number_or_heading(finished):
    """The library gives such a terminal 80 columns, whatever width was set: 'possib…' and '(nat…' stood there."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, _environ={"TERM": "dumb"})
    assert console.is_dumb_terminal
    summarise(finished, finished.findings, Path("p"), console, n_rows=None)
    head = stream.getvalue().split("─")[0]
    assert "possible" in head
    assert "…" not in head
