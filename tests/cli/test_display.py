"""Displays, with a clock that the test holds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lowmem_layers.cli.display.choose import choose_display
from lowmem_layers.cli.display.lines import JsonDisplay, PlainDisplay
from lowmem_layers.cli.display.live import LiveDisplay
from lowmem_layers.cli.display.memory import Memory
from lowmem_layers.cli.display.notebook import NotebookDisplay
from lowmem_layers.cli.display.progress import Progress, advance, spell_rate, spell_time
from lowmem_layers.cli.display.shape import layer_strip, leading_bars
from lowmem_layers.study.events import (
    LayerRead,
    MachineMeasured,
    ModelExamined,
    ModelPlaced,
    RunFinished,
    RunPlanned,
    StageStarted,
    Standing,
    StatementJudged,
    TaskPlanned,
    TasksRead,
    TileCommitted,
    TileStarted,
    WorkDone,
    undisturbed,
)

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
    for now, event in [(5, PLAN), (10, StageStarted("scoring", "scoring")), (20, WorkDone(500))]:
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
    for now, event in [(0, StageStarted("loading")), (8, PLAN), (9, StageStarted("scoring", "scoring"))]:
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
    for event in (PLAN, StageStarted("scoring", "scoring")):
        display(event)
    clock.now = 30.0
    display(commit(1, 64))
    picture = shown()
    assert all(len(line) <= width for line in picture.splitlines())
    for words in ("50%", "20 s left", "64/128", "saved: 2 of 4 tiles", "235"):
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
    named = TileCommitted(0, 32, 1_000, 32, 1, 5.0, (), Standing((3.0, 2.0), (2.0, 1.0), (4.0, 3.0)))
    plan = replace(PLAN, players=("[red]x[/red]", "a\x1b[31mb"))
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, color_system=None)
    display = LiveDisplay(console, Clock(), "[bold]m[/bold] :smile: · \x1b[2J")
    for event in (plan, StageStarted("reading [i]t[/i]\x07", "tasks"), named):
        display(event)
    console.print(display.picture())
    shown = stream.getvalue()
    for words in ("[bold]m[/bold] :smile: · \\x1b[2J", "reading [i]t[/i]\\x07", "[red]x[/red]", "a\\x1b[31mb"):
        assert words in shown
    assert "\x1b[31mb" not in shown
    stream = io.StringIO()
    PlainDisplay(stream, Clock())(StageStarted("reading a\x1b[31mb\nc"))
    assert stream.getvalue() == "[0 s] reading a\\x1b[31mb\\x0ac\n"


PLAYERS = tuple(f"{kind}.{layer}" for layer in range(30) for kind in ("attn", "ffn"))
VALUES = tuple(7.0 / (1 + place) for place in range(60))
STANDING = Standing(VALUES, tuple(0.8 * value for value in VALUES), tuple(1.2 * value for value in VALUES))
GIB = 1 << 30
EVENTS = (
    (0.0, StageStarted("reading the tasks", "tasks")),
    (1.0, TasksRead(("arc_easy", "piqa"), (64, 64))),
    (1.0, StageStarted("importing torch", "libraries")),
    (7.0, ModelPlaced("tiny", "NF4", "cpu", "cpu", "float32", 8 * GIB, None)),
    (7.0, StageStarted("reading the weights", "weights")),
    (9.0, LayerRead(12, 30)),
    (12.0, StageStarted("planning", "plan")),
    (13.0, MachineMeasured(200.0)),
    (
        13.0,
        replace(
            PLAN, tasks=(TaskPlanned("arc_easy", 64, 2_000, 1_000), TaskPlanned("piqa", 64, 2_000, 0)), players=PLAYERS
        ),
    ),
    (14.0, StageStarted("scoring", "scoring")),
    (14.0, TileStarted(1, 32, (1_000, 0))),
    (24.0, TileCommitted(1, 32, 1_000, 64, 2, 10.0, (), STANDING)),
    (24.0, StatementJudged("top3", False, "weakest comparison: attn.1 over ffn.1")),
    (24.0, TileStarted(2, 32, (0, 1_000))),
    (29.0, WorkDone(500)),
)


def drawn(width: int, height: int, until: float = 29.0, encoding: str = "utf-8", **options) -> str:
    """Draw the picture after the events up to a time, on a terminal of this size and encoding."""
    clock, stream = Clock(), io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=stream, width=width, height=height, force_terminal=True, **options)
    display = LiveDisplay(console, clock, "tiny · 4bit · arc_easy,piqa", lambda: Memory(GIB, 2 * GIB))
    for clock.now, event in EVENTS:
        if clock.now <= until:
            display(event)
    console.print(display.picture())
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 10)])
def test_the_whole_picture_fits_and_tells(width, height):
    lines = drawn(width, height, color_system=None).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    text = "\n".join(lines)
    for words in ("tiny", "62%", "all"):
        assert words in text
    if height < 24:
        return
    for words in (
        "weights NF4 in RAM · cpu float32 · 2 tasks, 128 items · 235 coalitions",
        "15 s left", "arc_easy", "100%", "piqa", "25%", "saved: 2 of 4 tiles, items 64/128",
        "speed 100 MAC/s, 50 % of bare matrix products", "RAM 1.0 GiB now, 2.0 GiB at most, of 8.0 GiB",
        "top3 is not certain yet: weakest comparison: attn.1 over ffn.1", "attention ", "attn.0", "7.00 [5.60, 8.40]",
    ):  # fmt: skip
        assert words in text


def test_stages_are_a_checklist_with_times():
    text = drawn(80, 24, until=9.0, color_system=None)
    for words in ("✓ tasks read", "✓ libraries imported", "6 s", "reading the weights, layer 12 of 30", "planning"):
        assert words in text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_signs_gets_others(encoding):
    text = drawn(80, 24, encoding=encoding, color_system=None)
    assert "?" not in text
    assert [len(line) for line in text.splitlines()] == [
        len(line) for line in drawn(80, 24, color_system=None).splitlines()
    ], "no column moves"


def test_no_color_has_no_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31" not in drawn(80, 24, color_system="standard")
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[31" in drawn(80, 24, color_system="standard")


def test_bars_hold_their_intervals_and_the_strip_all_layers():
    console = Console(width=80, color_system=None, file=io.StringIO())
    table = leading_bars(PLAYERS, STANDING, 2, 80)
    first = next(iter(table.columns[1].cells)).plain
    assert (first.count("█"), first.count("▓"), first.count("░")) == pytest.approx(
        (round(47 * 5.6 / 8.4), round(47 * 1.4 / 8.4), round(47 * 1.4 / 8.4)), abs=1
    )
    rows = layer_strip(PLAYERS, STANDING, 80)
    assert [len(row) for row in rows] == [10 + 2 * 30] * 3
    many = [f"ffn.{layer}" for layer in range(160)]
    wide = layer_strip(many, Standing((0.0,) * 159 + (5.0,), (0.0,) * 160, (9.0,) * 160), 80)
    assert wide[1].plain.endswith("█")
    assert max(map(len, wide)) <= 80
    assert layer_strip(["a", "b"], Standing((1.0, 2.0), (0.0,) * 2, (3.0,) * 2), 80) == [], "groups have no layer"
    unknown = Standing((float("nan"), 1.0), (float("nan"),) * 2, (float("nan"),) * 2)
    console.print(leading_bars(["attn.0", "ffn.0"], unknown, 5, 80))
    assert "nan" not in console.file.getvalue()


class Gone(io.StringIO):
    """A terminal whose window was closed."""

    attempts = 0

    def write(self, text: str) -> int:
        self.attempts += 1
        raise OSError(5, "Input/output error")


def test_a_closed_window_ends_the_display_and_not_the_run(monkeypatch):
    window = Gone()
    with LiveDisplay(Console(file=window, force_terminal=True), Clock(), "t") as display:
        display(PLAN)
        display(StageStarted("scoring", "scoring"))
    assert window.attempts > 0, "the display did write to the window that is gone"
    for name in ("plain", "json"):
        window = Gone()
        monkeypatch.setattr("sys.stderr", window)
        with choose_display(name, "t") as announce:
            tell = undisturbed(announce)
            tell(PLAN)
            tell(StageStarted("scoring", "scoring"))
        assert window.attempts == 1, "after the first line that nobody reads, none is written"


def test_a_dumb_terminal_gets_lines(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with choose_display("auto", "t") as announce:
        announce(StageStarted("reading the tasks", "tasks"))
    assert terminal.getvalue() == "[0 s] reading the tasks\n"


def test_a_notebook_gets_html_in_one_cell_that_is_updated():
    updates = []

    class Handle:
        """Stands for IPython's display handle."""

        def update(self, shown) -> None:
            updates.append(shown._repr_html_())

    clock = Clock()
    display = NotebookDisplay(clock, "<b>m</b> · 4bit", memory=lambda: None, show=lambda _, display_id: Handle())
    with display as announce:
        for clock.now, event in EVENTS:
            announce(event)
        before = len(updates)
        for _ in range(100):
            announce(WorkDone(1))
        assert len(updates) == before, "a hundred events at one moment are one picture"
    assert "&lt;b&gt;m&lt;/b&gt;" in updates[-1], "names stay text"
    for words in ("65%", "attn.0", "color:"):
        assert words in updates[-1]
    assert "attn.0" in repr(display)


@pytest.mark.slow
def test_a_real_notebook_shows_the_picture():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    code = (
        "import tempfile, pathlib\n"
        "from lowmem_layers import StudySpec, run_study, watch\n"
        "from tests.dictionary import Bench\n"
        "folder = pathlib.Path(tempfile.mkdtemp()) / 'r'\n"
        "with watch('tiny') as announce:\n"
        "    run = run_study(StudySpec(tasks=('one',), max_removed=1), folder, prepare=Bench().prepare, "
        "announce=announce)\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(Path.cwd())}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert "100%" in output.data["text/html"]
    assert "saved: 3 of 3 tiles" in output.data["text/plain"]


def test_json_lines_hold_no_nan():
    stream = io.StringIO()
    nan = Standing((float("nan"), 1.0), (float("-inf"), 0.0), (float("inf"), 2.0))
    JsonDisplay(stream, Clock())(TileCommitted(0, 1, 1, 1, 1, 1.0, (), nan))
    found = json.loads(stream.getvalue(), parse_constant=lambda name: pytest.fail(name))
    assert found["standing"] == {"value": [None, 1.0], "low": [None, 0.0], "high": [None, 2.0]}


def test_the_time_left_follows_a_change_of_pace():
    """Other programs that slow the machine down halfway must not leave the estimate at what it was before."""
    at = advance(advance(Progress(started=0.0), replace(PLAN, work_done=0, work_total=10_000), 0), EVENTS[9][1], 0.0)
    for second in range(1, 101):
        at = advance(at, WorkDone(100 if second <= 20 else 20), float(second))
    assert at.left_s(100.0) == pytest.approx((10_000 - 3_600) / 20, rel=0.05)


STRAY = """
import logging, sys, time, warnings
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler())  # before the picture, as when transformers was imported already
from lowmem_layers.cli.display.choose import choose_display
from lowmem_layers.study.events import StageStarted
with choose_display("rich", "tiny") as announce:
    announce(StageStarted("reading the weights", "weights"))
    late = logging.getLogger("late")
    late.addHandler(logging.StreamHandler())
    for round in range(3):
        early.warning(f"stray early {round}")
        late.warning(f"stray late {round}")
        warnings.warn_explicit(f"stray warning {round}", UserWarning, "x.py", 1)
        print(f"stray print {round}")
        time.sleep(0.3)  # the picture is drawn again in between
early.warning("stray at the end")
"""


def screen(written: str) -> list[str]:
    """Give the lines that a terminal shows after it was written to; only what rich's Live sends is understood."""
    lines, row, column = [""], 0, 0
    for sign in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|.|\n", written):
        if sign == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif sign == "\r":
            column = 0
        elif not sign.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
            column += 1
        elif sign[-1] == "A":
            row -= int(sign[2:-1] or 1)
        elif sign == "\x1b[2K":
            lines[row] = ""
        else:
            assert sign[-1] in "mhl", repr(sign)  # colours, cursor shown and hidden
    return [line.rstrip() for line in lines]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_lines_of_libraries_never_break_the_picture():
    parent, child = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", STRAY], stdin=child, stdout=child, stderr=child, env=environment, close_fds=True
    )
    os.close(child)
    written = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while piece := os.read(parent, 65536):
            written += piece
    os.close(parent)
    assert process.wait() == 0
    shown = screen(written.decode())
    for kind in ("early", "late", "print"):
        for round in range(3):
            assert shown.count(f"stray {kind} {round}") == 1
    assert sum("stray warning" in line for line in shown) == 3
    pictures = [row for row, line in enumerate(shown) if "tiny" in line]
    assert len(pictures) == 1, shown
    assert all("stray" not in line for line in shown[pictures[0] : -3])
    assert shown[-2:] == ["stray at the end", ""]
