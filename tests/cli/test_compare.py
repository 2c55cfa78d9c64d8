"""Commands over records: compare, interactions, tables; their formats and figures."""

from __future__ import annotations

import csv
import io
import json

import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.cli.entry import run_command_line


def call(capfd, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process."""
    status = run_command_line([str(argument) for argument in arguments])
    return (status, *capfd.readouterr())


@pytest.fixture
def other(tmp_path, bench, engine):
    """Give a run of the same task with other numbers."""
    made = bench(engine=engine(seed=7))
    return run_study(StudySpec(tasks=("one",), max_removed=2, quant="4bit"), tmp_path / "other", prepare=made.prepare)


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_a_figure_of_two_runs(capfd, finished, other, tmp_path, form):
    file = tmp_path / "figures" / f"compared.{form}"
    status, _, err = call(capfd, "compare", finished.folder, other.folder, "--value", "margin", "--figure", file)
    assert status == 0
    assert "A and B differ in: quant (none / 4bit)" in err
    assert file.stat().st_size > 5000


def test_a_figure_needs_a_known_ending(capfd, finished, other):
    status, out, err = call(capfd, "compare", finished.folder, other.folder, "--figure", "compared.jpg")
    assert status == 2
    assert out == ""  # refused before anything is computed
    assert "error: --figure compared.jpg ends in none of .svg, .png, .pdf" in err


def test_agreement_as_data(capfd, finished, other):
    _, out, _ = call(capfd, "compare", finished.folder, other.folder, "--agreement", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["task"], row["items_a"], row["paired"], row["correction"]) == ("one", "8", "true", "holm")
    assert float(row["spearman_low"]) <= float(row["spearman"]) <= float(row["spearman_high"])


def test_levels_and_corrections(capfd, finished, other):
    wide, narrow = (
        json.loads(call(capfd, "compare", finished.folder, other.folder, "--level", level, "--format", "json")[1])
        for level in (0.99, 0.5)
    )
    for one, two in zip(wide, narrow, strict=True):
        assert one["ci_low"] <= two["ci_low"] <= two["ci_high"] <= one["ci_high"]
    status, _, err = call(capfd, "compare", finished.folder, other.folder, "--correction", "none")
    assert status == 2
    assert "holm, bh" in err
    status, _, err = call(capfd, "compare", finished.folder, other.folder, "--level", "1.5")
    assert status == 2
    assert "confidence level of 1.5" in err
    status, _, err = call(capfd, "interactions", finished.folder, "--level", "0")
    assert status == 2


@pytest.mark.parametrize("command", ["compare", "interactions", "tables", "importance"])
def test_an_unfinished_run_is_named(capfd, finished, tmp_path, bench, engine, command):
    made = bench(engine=engine(fail_at=1))
    with pytest.raises(KeyboardInterrupt):
        run_study(StudySpec(tasks=("one",), max_removed=2), tmp_path / "part", prepare=made.prepare)
    runs = [finished.folder, tmp_path / "part"] if command == "compare" else [tmp_path / "part"]
    status, out, err = call(capfd, command, *runs)
    assert status == 0
    assert out
    assert f"note: {tmp_path / 'part'} is unfinished: 3 of 8 items are in it" in err


def test_a_level_is_named_as_given(capfd, finished, other):
    _, _, err = call(capfd, "compare", finished.folder, other.folder, "--level", "0.999")
    assert "(Holm, 99.9 %)" in err


def test_tables_for_papers(capfd, finished, tmp_path):
    _, out, _ = call(capfd, "tables", finished.folder, "--table", 4, "--format", "markdown")
    assert out.splitlines()[:2] == [
        "| task | model | drop | published | drop low | drop high |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    _, out, _ = call(capfd, "tables", finished.folder, "--table", 2, "--format", "latex")
    assert r"\begin{tabular}" in out
    assert out.count("&") == 10
    _, out, _ = call(capfd, "tables", finished.folder, "--table", 1, "--format", "markdown")
    assert out.splitlines()[1:] == ["| --- |" + 6 * " ---: |", "| tiny |" + 6 * " – |"]
    call(capfd, "tables", finished.folder, "--table", 1, "-o", tmp_path / "t.tex")
    assert (tmp_path / "t.tex").read_text().startswith(r"\begin{tabular}")


def test_membership_of_the_top(capfd, finished):
    _, out, _ = call(capfd, "importance", finished.folder, "--top", 2, "--format", "csv")
    assert {row["top"] for row in csv.DictReader(io.StringIO(out))} <= {"in", "out", "undecided"}
