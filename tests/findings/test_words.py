"""Numbers in sentences have a minus sign, not a hyphen, whoever says them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.choosing import Request, choose
from lowmem_layers.acting.forms import Zeroed
from lowmem_layers.cli.acting import _choice_lines
from lowmem_layers.findings.comparing import agreement_lines, compare_runs
from lowmem_layers.findings.drivers import driver_lines, find_drivers
from lowmem_layers.findings.power import foretell, power_lines
from lowmem_layers.findings.statement import judge
from lowmem_layers.findings.words import counted, minus
from tests.dictionary import Bench, DictionaryEngine

HYPHEN = re.compile(r"(?<!\w)-\d")


@pytest.fixture(scope="module")
def gaining(tmp_path_factory):
    """Give two runs in which every removal gains, but for attn.0 alone, which costs."""

    class Gaining(DictionaryEngine):
        def _block(self, item, coalitions):
            block = super()._block(item, coalitions)
            block[:, item.gold] = [(-3.0 if removed == (0,) else 2.0 * len(removed)) for removed in coalitions]
            return block + np.random.default_rng([self.seed, item.choices[0].tokens[1]]).normal(0, 0.3, block.shape)

    spec = StudySpec(max_removed=3, tasks=("one",), until="top=1", value="loglikelihood")
    runs = []
    for seed in (0, 1):
        made = Bench(n_items=40, engine=Gaining(seed=seed))
        runs.append(run_study(spec, tmp_path_factory.mktemp("r") / "r", prepare=made.prepare))
    return runs


def test_every_sentence_with_a_number_below_zero_has_a_minus_sign(gaining):
    run, other = gaining
    found, decision = run.findings, judge(run.values, "rank", "loglikelihood")
    assert decision is not None
    said = {
        "cautions": found.cautions,
        "lines": found.lines,
        "agreement": agreement_lines(compare_runs(run, other, "loglikelihood")),
        "drivers": driver_lines(find_drivers(run, "loglikelihood", None)),
        "power": power_lines(foretell(run, "loglikelihood", size=-0.5)),
        "choice": _choice_lines(choose(run, Request(remove=1), Zeroed(), "loglikelihood")),
        "statement": [decision.detail, found.verdict],
    }
    assert not [line for lines in said.values() for line in lines if HYPHEN.search(line)]
    assert {name for name, lines in said.items() if any("−" in line for line in lines)} >= {
        "cautions", "agreement", "drivers", "power", "choice", "statement",
    }  # fmt: skip


def test_hyphens_within_words_stay():
    assert minus("SmolLM2-135M: -0.52 nats [-1.0, 2e-5], top-3") == "SmolLM2-135M: −0.52 nats [−1.0, 2e-5], top-3"


@pytest.mark.parametrize(("count", "text"), [(0, "0 items"), (1, "1 item"), (2, "2 items"), (1_000, "1,000 items")])
def test_one_is_no_plural(count, text):
    assert counted(count, "item") == text
