"""Displays, with a clock that the test holds."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from lowmem_layers.cli.display.lines import JsonDisplay, PlainDisplay
from lowmem_layers.cli.display.live import LiveDisplay
from lowmem_layers.cli.display.progress import Progress, advance, spell_rate, spell_time
from lowmem_layers.study.events import ModelExamined, RunFinished, RunPlanned, StageStarted, TileCommitted, WorkDone

PLAN = RunPlanned("r", "tiny", 60, 235, 128, 4, 4_000, 32, 1, 1_000)


def commit(tile: int, items_done: int) -> TileCommitted:
    """Commit a tile of a thousand."""
    return TileCommitted(tile, 32, 1_000, items_done, tile + 1, 5.0, (("ffn.0", 34.6), ("attn.1", 15.8)))


class Clock:
    """A clock that moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_that_of_the_whole_job_and_only_this_calls_rate_counts():
    at = Progress(started=0.0)
    for now, event in [(5, PLAN), (10, StageStarted("scoring")), (20, WorkDone(500))]:
        at = advance(at, event, now)
    assert at.fraction == pytest.approx(0.375)
    assert at.left_s(20) == pytest.approx(2_500 / 50)
    at = advance(at, commit(1, 64), 30)
    assert at.fraction == pytest.approx(0.5), "the tile counts as planned, whatever was reported on the way"
    assert at.left_s(30) == pytest.approx(40)
    assert at.evaluations == (64 * 235, 128 * 235)


def test_nothing_is_claimed_before_anything_is_known():
    at = Progress(started=0.0)
    assert (at.fraction, at.left_s(3.0), at.throughput(3.0), at.evaluations) == (0.0, None, None, (0, 0))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (0, "0 s"), (59.4, "59 s"), (61, "1:01"), (3_725, "1:02:05"), (200_000, "2 d 7 h")],
)
def test_durations_read_like_durations(seconds, words):
    assert spell_time(seconds) == words


def test_rates():
    assert [spell_rate(rate) for rate in (None, 5.0, 2_500.0, 3.2e9)] == ["–", "5 ", "2.5 k", "3.2 G"]


def test_plain_lines_come_now_and_then():
    clock, stream = Clock(), io.StringIO()
    display = PlainDisplay(stream, clock, every_s=10)
    for now, event in [(0, StageStarted("loading")), (8, PLAN), (9, StageStarted("scoring"))]:
        clock.now = now
        display(event)
    for now in range(10, 40):
        clock.now = now
        display(WorkDone(50))
    display(RunFinished("r", "done", 40.0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[0 s] loading"
    assert lines[1] == "[8 s] 128 items × 235 coalitions of 60 players, 4 tiles (1 done already)"
    assert lines[-1] == "[39 s] done"
    assert len(lines) == 3 + 3 + 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_picture_fits_and_tells(width):
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, color_system=None)
    display = LiveDisplay(console, clock, "SmolLM2-135M-Instruct · 4bit · quick")

    def shown() -> str:
        before = len(stream.getvalue())
        console.print(display.picture())
        return stream.getvalue()[before:]

    assert "starting" in shown(), "something is there before anything has happened"
    display(StageStarted("loading the model"))
    assert "loading" in shown()
    clock.now = 20.0
    for event in (PLAN, StageStarted("scoring")):
        display(event)
    clock.now = 30.0
    display(commit(1, 64))
    picture = shown()
    assert all(len(line) <= width for line in picture.splitlines())
    for words in ("50%", "20 s left", "64/128", "ffn.0 34.6", "235"):
        assert words in picture
    display(RunFinished("r", "done", 30.0))
    assert "✓" in shown()


def test_the_live_display_is_there_from_the_first_moment():
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True)
    with LiveDisplay(console, Clock(), "tiny · none · quick"):
        assert "starting" in stream.getvalue()


@pytest.mark.parametrize(
    ("takes_tries", "words"), [(True, "rows share their prefixes"), (False, "rows are computed one by one")]
)
def test_the_examination_is_one_line(takes_tries, words):
    event = ModelExamined(takes_tries, "rows differ by 3e-05 nats", 4.6e-05, 2.34)
    stream = io.StringIO()
    PlainDisplay(stream, Clock())(event)
    assert stream.getvalue() == (
        "[0 s] examined in 2.3 s: the sweep differs from whole passes by 4.6e-05 nats; "
        f"{words} (rows differ by 3e-05 nats)\n"
    )
    stream = io.StringIO()
    JsonDisplay(stream, Clock())(event)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["takes_tries"], line["sweep_gap_nats"]) == ("ModelExamined", takes_tries, 4.6e-05)
    assert advance(Progress(started=0.0), event, 1.0) == Progress(started=0.0), "it moves no bar"


def test_markup_and_control_characters_in_names_are_shown_not_obeyed():
    named = TileCommitted(0, 32, 1_000, 32, 1, 5.0, (("[red]x[/red]", 3.0), ("a\x1b[31mb", 2.0)))
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, color_system=None)
    display = LiveDisplay(console, Clock(), "[bold]m[/bold] :smile: · \x1b[2J")
    for event in (PLAN, StageStarted("reading [i]t[/i]\x07"), named):
        display(event)
    console.print(display.picture())
    shown = stream.getvalue()
    for words in ("[bold]m[/bold] :smile: · \\x1b[2J", "reading [i]t[/i]\\x07", "[red]x[/red]", "a\\x1b[31mb"):
        assert words in shown
    assert "\x1b[31mb" not in shown
    stream = io.StringIO()
    PlainDisplay(stream, Clock())(StageStarted("reading a\x1b[31mb\nc"))
    assert stream.getvalue() == "[0 s] reading a\\x1b[31mb\\x0ac\n"
