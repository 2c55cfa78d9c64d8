"""Commands that ask more of a run: power, items."""

from __future__ import annotations

import csv
import io

import pyarrow.parquet as pq
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.cli.entry import run_command_line


def call(capfd, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process."""
    status = run_command_line([str(argument) for argument in arguments])
    return (status, *capfd.readouterr())


def rows(text: str) -> list[dict[str, str]]:
    """Read CSV."""
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def pilot(tmp_path_factory):
    """Give a run of two tasks with a few dozen items."""
    from tests.dictionary import Bench

    made = Bench(n_items=40)
    spec = StudySpec(tasks=("one", "three"), max_removed=2)
    return run_study(spec, tmp_path_factory.mktemp("pilot") / "r", prepare=made.prepare)


def test_power_of_both_estimators_on_every_task(capfd, pilot, tmp_path):
    status, out, err = call(capfd, "power", pilot.folder, "--value", "probability", "--size", "0.1", "--format", "csv")
    found = rows(out)
    assert status == 0
    assert {(row["task"], row["estimator"]) for row in found} == {
        (task, name) for task in ("one", "three", "all") for name in ("neighbourhood", "ablation")
    }
    assert len(found) == 6 * 6
    assert all(int(row["items_low"]) <= int(row["items"]) <= int(row["items_high"]) for row in found)
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "one, neighbourhood", "one, ablation", "three, neighbourhood", "three, ablation",
        "all, neighbourhood", "all, ablation", "one, drops by each value", "three, drops by each value",
    ]  # fmt: skip
    assert "resolve an effect of 0.1 for the median sublayer" in err
    assert "probability " in err.splitlines()[-1]
    call(capfd, "power", pilot.folder, "-o", tmp_path / "p.parquet", "--estimator", "ablation")
    assert pq.read_table(tmp_path / "p.parquet")["size"].to_pylist() == [0.01] * 18


def test_power_refuses_what_it_cannot_foretell(capfd, pilot, tmp_path, bench):
    for option, said in (("--size=0", "effect of size 0"), ("--power=1", "power of 1.0"), ("--level=2", "level of 2")):
        status, out, err = call(capfd, "power", pilot.folder, option)
        assert (status, out) == (2, "")
        assert said in err
    spec = StudySpec(tasks=("one",), coalitions="permutations", permutations=2)
    walked = run_study(spec, tmp_path / "walked", prepare=bench().prepare)
    status, _, err = call(capfd, "power", walked.folder)
    assert status == 2
    assert "--estimator ablation" in err
    assert call(capfd, "power", walked.folder, "--estimator", "ablation")[0] == 0


def test_values_of_other_units_have_no_mean_without_a_size(capfd, tmp_path, bench):
    made = bench(metrics={"three": "loglikelihood"})
    run = run_study(StudySpec(tasks=("one", "three"), max_removed=1), tmp_path / "r", prepare=made.prepare)
    _, out, _ = call(capfd, "power", run.folder, "--format", "csv")
    assert {(row["task"], row["size"]) for row in rows(out)} == {("one", "0.01"), ("three", "0.05")}
    _, out, _ = call(capfd, "power", run.folder, "--format", "csv", "--size", "0.02")
    assert {row["task"] for row in rows(out)} == {"one", "three", "all"}


def test_items_that_drive_an_estimate(capfd, pilot, tmp_path):
    status, out, err = call(
        capfd, "items", pilot.folder, "--value", "loglikelihood", "--sublayers", "ffn.1, attn.0", "--top", "2",
        "--format", "csv",
    )  # fmt: skip
    found = rows(out)
    assert status == 0
    assert [(row["task"], row["sublayer"]) for row in found] == [
        (task, name) for task in ("one", "three") for name in ("attn.0", "ffn.1") for _ in range(2)
    ]
    for row in found:
        assert float(row["value"]) + float(row["change"]) == pytest.approx(float(row["value_without"]))
    assert "the largest 1 % of items (1 of 40) carry" in err
    # all items, and without them one by one: the contributions average to the value
    _, out, _ = call(capfd, "items", pilot.folder, "--estimator", "ablation", "--top", "99", "--format", "csv")
    own = [row for row in rows(out) if (row["task"], row["sublayer"]) == ("one", "ffn.1")]
    assert len({row["item"] for row in own}) == 40
    assert sum(float(row["contribution"]) for row in own) / 40 == pytest.approx(float(own[0]["value"]))
    call(capfd, "items", pilot.folder, "--by-cluster", "-o", tmp_path / "c.parquet")
    assert "cluster" in pq.read_table(tmp_path / "c.parquet").column_names
    status, _, err = call(capfd, "items", pilot.folder, "--sublayers", "ffn.9")
    assert (status, "'ffn.9' is no sublayer of this run" in err) == (2, True)
