"""A run's model is put together once more, and what is to be known of it is said once more."""

from __future__ import annotations

from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.versions import prepare_again
from lowmem_layers.study.events import Noted, StageStarted


def test_stages_and_notes_are_both_said(tmp_path, bench):
    made, said = bench(), []
    run = run_study(StudySpec(tasks=("one",), max_removed=1), tmp_path / "r", prepare=made.prepare)

    def prepare(specification, announce, earlier):
        announce(StageStarted("reading the weights"))
        announce(Noted("activations not quantised"))
        assert earlier == run.manifest.engine
        return made.prepare(specification, announce)

    assert prepare_again(run, said.append, prepare).players == made.prepare(run.manifest.resolved, said.append).players
    assert said == ["reading the weights", "note: activations not quantised"]
