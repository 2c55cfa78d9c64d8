"""Several runs on one page: each beside the others, and what differs from the first, by `compare`'s rules."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.acting.choosing import Request, choose
from lowmem_layers.acting.prune import FORMS
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.comparing import compare_runs, differences
from lowmem_layers.report import write_joint_report
from lowmem_layers.report.page.answer import answer
from lowmem_layers.report.page.comparisons import run_titles
from lowmem_layers.report.page.protocol import summary
from tests.dictionary import Bench, DictionaryEngine


def made(folder, model, seed, **options):
    asked = {"tasks": ("one", "three"), "max_removed": 2, **options}
    about = model if isinstance(model, dict) else {"id": model, "dtype": "float32"}
    bench = Bench(engine=DictionaryEngine(seed=seed), model=about)
    return run_study(StudySpec(**asked), folder, prepare=bench.prepare)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make two runs of the same players, and one of other players."""
    root = tmp_path_factory.mktemp("several")
    groups = {"tasks": ("one",), "players": "decoder-layer"}
    return made(root / "a", "m", 0), made(root / "b", "m", 1), made(root / "c", "other", 2, **groups)


def test_the_page_has_the_differences_that_compare_has(runs, tmp_path):
    page = write_joint_report(runs, tmp_path, ("svg",))
    text = page.read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    titles = [each["title"] for each in data["runs"]]
    assert titles == run_titles(runs)
    assert len(set(titles)) == 3
    same, refused = data["compared"]
    for place, value in enumerate((None, "loglikelihood")):
        found = compare_runs(runs[0], runs[1], value)
        scale = 100.0 if value is None else 1.0
        assert list(same["found"][place]) == ["one", "three", "all"]
        for task, one in found.items():
            shown = same["found"][place][task]
            assert shown["value"] == pytest.approx((scale * one.difference).tolist(), rel=1e-4, abs=1e-9)
            assert shown["low"] == pytest.approx((scale * one.ci.low).tolist(), rel=1e-4, abs=1e-9)
            assert shown["sure"] == one.significant.tolist()
    # runs of other players are on the page, and the page says why they are not compared
    assert refused["found"] == [{}, {}]
    assert "cannot be compared: " in unescape(text)
    assert {path.name for path in (tmp_path / "tables").iterdir()} >= {
        "1-against-2-acc.csv",
        "1-against-2-loglikelihood.tex",
    }
    assert (tmp_path / "figures" / "1-against-2-acc.svg").is_file()


def test_a_run_of_the_full_model_has_nothing_to_compare(runs, tmp_path):
    with pytest.raises(UsageError, match="full model only"):
        write_joint_report([runs[0], made(tmp_path / "r", "m", 0, max_removed=0)], tmp_path / "report", ("svg",))


def test_a_run_of_quantised_sublayers_says_so_and_not_that_they_were_removed(tmp_path, bench):
    made = bench()
    runs = [
        run_study(StudySpec(tasks=("one",), max_removed=2, change=change), tmp_path / str(place), prepare=made.prepare)
        for place, change in enumerate(("quantise:q4_0", "remove"))
    ]
    text = summary(runs[0].manifest, ["one"], 8)
    assert "neighbouring sublayers quantised to q4_0" in text
    assert "removed" not in text + " ".join(answer(runs[0], runs[0].findings))
    assert "quantised to q4_0 alone, the" in answer(runs[0], runs[0].findings)[1]
    assert "the model needs them" not in answer(runs[0], runs[0].findings)[2]
    # a loss that is shown as 0.0 is no fall
    findings = runs[0].findings
    none = replace(findings.sides[0].overall, ablation_drop=np.full(len(findings.sides[0].overall.players), 0.0004))
    flat = replace(findings, sides=(replace(findings.sides[0], found=(none,)),))
    assert "changes by less than 0.1 points (95 % interval" in answer(runs[0], flat)[1]
    assert "change (quantise:q4_0 / remove)" in differences(*runs)
    assert [title.split(" · ")[1] for title in run_titles(runs)] == ["quantised to q4_0", "removed"]
    assert open_run(runs[0].folder).manifest.change.name == "quantise:q4_0"
    with pytest.raises(UsageError, match="its sublayers were quantised to q4_0"):
        choose(runs[0], Request(remove=1), FORMS["zeroed"], None)
