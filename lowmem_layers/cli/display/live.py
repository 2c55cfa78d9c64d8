"""A live picture on a terminal: bar, time left, items and evaluations done, who is ahead."""

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
from lowmem_layers.study.events import Event

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
        if self._progress.status is None and error is not None:
            self._progress = Progress(self._progress.started, stage="stopped", status="stopped")
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take the event in; the next redraw shows it."""
        self._progress = advance(self._progress, event, self._clock())

    def picture(self) -> RenderableType:
        """Draw where the run stands now."""
        at, now = self._progress, self._clock()
        lines: list[RenderableType] = [self._headline(now)]
        if at.plan is not None:
            lines += [self._bar(now), self._counts(now)]
        if at.leaders and at.status is None:
            lines.append(self._leaders())
        return Group(*lines)

    def _headline(self, now: float) -> RenderableType:
        at = self._progress
        row = Table.grid(padding=(0, 1), expand=False)
        elapsed = Text(spell_time(now - at.started), style="dim")
        title = Text(self._title, style="bold", overflow="ellipsis", no_wrap=True)
        if at.status is None:
            row.add_row(self._spinner, title, Text(at.stage, style="cyan", overflow="ellipsis", no_wrap=True), elapsed)
        else:
            mark = Text("✓", style="green") if at.status == "done" else Text("■", style="yellow")
            row.add_row(mark, title, Text(at.status), elapsed)
        return row

    def _bar(self, now: float) -> RenderableType:
        at = self._progress
        row = Table.grid(padding=(0, 1), expand=False)
        left = at.left_s(now)
        words = "" if at.status else (f"{spell_time(left)} left" if left is not None else "time left: measuring")
        width = max(10, min(_WIDEST, self._live.console.width) - 30)
        row.add_row(
            ProgressBar(total=1.0, completed=at.fraction, width=width), f"{at.fraction:4.0%}", Text(words, style="bold")
        )
        return row

    def _counts(self, now: float) -> RenderableType:
        at, plan = self._progress, self._progress.plan
        if plan is None:
            return Text("")
        done, total = at.evaluations
        return Text.assemble(
            "items ", (f"{at.items_done}", "bold"), f"/{plan.n_items}",
            " · coalitions ", (f"{plan.n_coalitions}", "bold"),
            " · evaluations ", (f"{done:,}", "bold"), f"/{total:,}",
            (f" · {spell_rate(at.throughput(now))}MAC/s", "dim"),
            overflow="ellipsis", no_wrap=True,
        )  # fmt: skip

    def _leaders(self) -> RenderableType:
        text = Text("nats lost without it, so far: ", style="dim", overflow="ellipsis", no_wrap=True)
        for name, drop in self._progress.leaders:
            text.append(f"{name} ", style="red" if name.startswith("attn") else "blue")
            text.append(f"{drop:.1f}  ", style="bold")
        return text
