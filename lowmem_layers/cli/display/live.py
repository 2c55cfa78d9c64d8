"""A live picture on a terminal: the stage, a bar, the time left, what is done, and who is ahead."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lowmem_layers.cli.display.progress import Progress, advance, spell_rate, spell_time
from lowmem_layers.cli.output import visible
from lowmem_layers.study.events import Event, Noted

_WIDEST = 100


class LiveDisplay:
    """Redraw a few lines four times a second, from the first moment on."""

    def __init__(self, console: Console, clock: Callable[[], float], title: str) -> None:
        self._clock = clock
        self._title = title
        self._spinner = Spinner("dots", style="cyan")
        self._progress = Progress(started=clock())
        self._live = Live(console=console, get_renderable=self.picture, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error before the run began leaves no RunFinished: without a status, the spinner would stay on the screen.
        if self._progress.status is None and error is not None:
            self._progress = Progress(self._progress.started, stage="stopped", status="stopped")
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take the event in; the next redraw shows it. A note stays on the screen, above the picture."""
        if isinstance(event, Noted):
            self._live.console.print(Text(visible(f"note: {event.words}"), style="yellow"))
        self._progress = advance(self._progress, event, self._clock())

    def picture(self) -> RenderableType:
        """Draw the run's state as lines of text, none wider than the terminal."""
        at, plan, now = self._progress, self._progress.plan, self._clock()
        # 1) what is being done, and for how long
        headline = Table.grid(padding=(0, 1), expand=False)
        mark: RenderableType = self._spinner
        if at.status is not None:
            mark = Text("✓", style="green") if at.status == "done" else Text("■", style="yellow")
        headline.add_row(
            mark,
            _line(self._title, style="bold"),
            _line(at.stage, style="cyan") if at.status is None else Text(at.status),
            Text(spell_time(now - at.started), style="dim"),
        )
        if plan is None:
            return headline
        # 2) how much of the whole job is done, and the time left
        left, done = at.left_s(now), at.evaluations
        words = "time left: measuring" if left is None else f"{spell_time(left)} left"
        width = max(10, min(_WIDEST, self._live.console.width) - 30)
        bar = Table.grid(padding=(0, 1), expand=False)
        bar.add_row(
            ProgressBar(total=1.0, completed=at.fraction, width=width),
            f"{at.fraction:4.0%}",
            Text("" if at.status else words, style="bold"),
        )
        counts = Text.assemble(
            "items ", (f"{at.items_done}", "bold"), f"/{plan.n_items}",
            " · coalitions ", (f"{plan.n_coalitions}", "bold"),
            " · evaluations ", (f"{done[0]:,}", "bold"), f"/{done[1]:,}",
            (f" · {spell_rate(at.throughput(now))}MAC/s", "dim"),
            overflow="ellipsis", no_wrap=True,
        )  # fmt: skip
        if not at.leaders or at.status is not None:
            return Group(headline, bar, counts)
        # 3) the sublayers whose removal costs most so far
        leaders = _line("nats lost without it, so far: ", style="dim")
        for name, drop in at.leaders:
            leaders.append(f"{visible(name)} ", style="cyan")
            leaders.append(f"{drop:.1f}  ", style="bold")
        return Group(headline, bar, counts, leaders)


def _line(text: str, style: str) -> Text:
    """Make one line of text that is cut where the terminal ends; names in it are shown as they are."""
    return Text(visible(text), style=style, overflow="ellipsis", no_wrap=True)
