"""The picture of a run on a terminal: what runs, the stages, bars, facts, and the answer as it emerges.

Drawn from the run's state alone, to fit a given width and height: what matters less is left out first.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowmem_layers.cli.display.memory import Memory
from lowmem_layers.cli.display.progress import Progress, spell_rate, spell_time
from lowmem_layers.cli.display.shape import layer_strip, leading_bars
from lowmem_layers.cli.output import visible
from lowmem_layers.findings.words import counted
from lowmem_layers.study.events import Step

# The stages of a run, in order: while one goes on, when it is done, and in one word
_WORDS: dict[Step, tuple[str, str, str]] = {
    "tasks": ("reading the tasks", "tasks read", "tasks"),
    "libraries": ("importing torch", "libraries imported", "libraries"),
    "headers": ("opening the model", "model opened", "model"),
    "items": ("encoding the items", "items encoded", "items"),
    "weights": ("reading the weights", "weights read", "weights"),
    "examination": ("examining the model", "examined", "examination"),
    "plan": ("planning", "planned", "plan"),
}
_HOMES = {"device": "on the device", "cpu": "in RAM", "disk": "on disk"}
_LABEL = 18  # columns for the name of a bar
_TALL = 34  # rows from which the stages keep a line each while scoring


def draw(
    at: Progress, now: float, title: str, mark: RenderableType, memory: Memory | None, width: int, height: int
) -> RenderableType:
    """Draw a run's state, at most `width` columns and `height` rows.

    `mark` is what moves while something goes on.
    """
    # 1) what runs, and for how long
    headline = Table.grid(padding=(0, 1), expand=False)
    if at.status is not None:
        mark = Text("✓", style="green") if at.status == "done" else Text("■", style="yellow")
    spent = Text(spell_time(now - at.started), style="dim")
    headline.add_row(mark, _line(title, "bold"), _line(at.status or at.stage, "cyan"), spent)
    parts: list[RenderableType] = [headline]
    if about := _what_runs(at):
        parts.append(_line(about, "dim"))
    if at.plan is None:
        return Group(*parts, *_stages(at, now, mark), *([_line(f"  {at.remark}", "dim")] if at.remark else []))

    # 2) the stages behind, the bars and the facts
    parts += _stages(at, now, mark) if height >= _TALL else [_line(_stages_in_brief(at), "dim")]
    n_tasks = max(1, min(len(at.plan.tasks), (height - 12) // 2)) if len(at.plan.tasks) > 1 else 0
    bars, hidden = _bars(at, now, width, n_tasks), len(at.plan.tasks) - n_tasks
    parts += [bars, *([_line(f"and {hidden} more tasks", "dim")] if n_tasks and hidden else [])]
    facts = [
        _counts(at),
        *([_throughput(at, now)] if at.status is None else []),
        *_memory(at, memory),
        *_workers(at, now),
    ]
    if at.judged is not None:
        word = "is certain" if at.judged.holds else "is not certain yet"
        facts.append(f"{at.judged.statement} {word}: {at.judged.detail}")
    left = height - 3 - (len(at.steps) if height >= _TALL else 1) - n_tasks - bool(n_tasks and hidden)
    parts += [_line(fact, "") for fact in facts[: max(1, left)]]
    if at.status is not None or at.standing is None:
        return Group(*parts)

    # 3) the answer as it emerges, in the rows that are left
    left -= len(facts)
    strip = layer_strip(at.plan.players, at.standing, width)
    if strip and left >= len(strip) + 3:
        parts += [*strip]
        left -= len(strip)
    if left >= 2:
        parts.append(_line(f"nats lost without it, after {counted(at.items_done, 'item')}, 95 %", "bold"))
        parts.append(leading_bars(at.plan.players, at.standing, min(left - 1, 20), width))
    return Group(*parts)


def _what_runs(at: Progress) -> str:
    """Say in one line what is known of the run."""
    words = []
    if at.placed is not None:
        packing = at.placed.packing.removesuffix(", kept as it is")
        words += [f"weights {packing} {_HOMES.get(at.placed.home, at.placed.home)}"]
        words += [f"{at.placed.device} {at.placed.dtype}"]
    if at.tasks is not None:
        tasks = f"{len(at.tasks.tasks)} tasks, " if len(at.tasks.tasks) > 1 else ""
        words.append(f"{tasks}{counted(sum(at.tasks.n_items), 'item')}")
    if at.plan is not None:
        words.append(counted(at.plan.n_coalitions, "coalition"))
    return " · ".join(words)


def _stages(at: Progress, now: float, mark: RenderableType) -> list[RenderableType]:
    """List the stages with their times: those that are done, the one that goes on, and those to come."""
    table = Table.grid(padding=(0, 1))
    begun = dict(at.steps)
    starts = [start for _, start in at.steps]
    for step, (going, done, _) in _WORDS.items():
        if step not in begun:
            if at.plan is None:
                table.add_row("", Text(going, style="dim"), "")
            continue
        place = starts.index(begun[step])
        is_over = place + 1 < len(starts)
        spent = spell_time((starts[place + 1] if is_over else now) - begun[step])
        words = done if is_over else going
        if step == "weights" and at.layers is not None:
            words += f", layer {at.layers.done} of {at.layers.n_layers}"
        over = Text("✓", style="green")
        table.add_row(over if is_over else mark, Text(words, style="" if is_over else "cyan"), Text(spent, style="dim"))
    return [table]


def _stages_in_brief(at: Progress) -> str:
    """Put the stages that are over into one line, with the time of each that took a second or more."""
    taken: list[tuple[Step, float]] = [
        (step, after - before) for (step, before), (_, after) in zip(at.steps, at.steps[1:], strict=False)
    ]
    longest = [f"{_WORDS[step][2]} {spell_time(seconds)}" for step, seconds in taken if seconds >= 1]
    return " · ".join([f"✓ ready after {spell_time(sum(seconds for _, seconds in taken))}", *longest])


def _bars(at: Progress, now: float, width: int, n_tasks: int) -> Table:
    """Draw a bar for the whole job and one for each of the first tasks."""
    table = Table.grid(padding=(0, 1), expand=False)
    names = [task.task for task in at.plan.tasks[:n_tasks]] if at.plan is not None else []
    label = min(_LABEL, max(map(len, ["all", *names])))
    length = max(10, min(80, width - label - 26))
    left = at.left_s(now)
    words = "" if at.status else "time left: measuring" if left is None else f"{spell_time(left)} left"
    rows = [("all", at.fraction, Text(words, style="bold"))]
    rows += [(name, part, Text("")) for name, part in zip(names, at.task_fractions, strict=False)]
    for name, part, beside in rows:
        # rich's own grey of what is left is near black, which looks like done on a light background
        bar = ProgressBar(total=1.0, completed=part, width=length, style="grey50")
        table.add_row(_line(name[:_LABEL], "bold" if name == "all" else ""), bar, f"{part:4.0%}", beside)
    return table


def _counts(at: Progress) -> str:
    """Say how much is saved, and how much is evaluated."""
    if at.plan is None:
        return ""
    done, total = at.evaluations
    tiles = f"saved: {at.tiles_done} of {counted(at.plan.n_tiles, 'tile')}, items {at.items_done}/{at.plan.n_items}"
    return f"{tiles} · evaluations {done:,}/{total:,}"


def _throughput(at: Progress, now: float) -> str:
    """Say how fast the run is, and which share of bare matrix products that is."""
    rate = at.throughput(now)
    share = ""
    if rate and at.macs_s:  # other programs may have slowed what was timed at the start
        words = f"{100 * rate / at.macs_s:.0f} % of bare" if rate <= at.macs_s else "more than the first second's"
        share = f", {words} matrix products"
    return f"speed {spell_rate(rate)}MAC/s{share}"


def _workers(at: Progress, now: float) -> list[str]:
    """Say what each worker does, and how fast it is."""
    rates = at.worker_rates(now) if at.status is None else []
    words = [f"{name} {f'{spell_rate(rate)}MAC/s' if state == 'ready' else state}" for name, state, rate in rates]
    return [" · ".join(words[start : start + 4]) for start in range(0, len(words), 4)]


def _memory(at: Progress, memory: Memory | None) -> list[str]:
    """Say what memory is taken now and was at most, of what may be taken."""
    if memory is None or at.placed is None:
        return []
    from lowmem_layers.model.spec import format_bytes

    host = f"RAM {format_bytes(memory.host)} now, {format_bytes(memory.host_peak)} at most"
    words = f"{host}, of {format_bytes(at.placed.cpu_bytes)}"
    if memory.gpu is not None and memory.gpu_peak is not None and at.placed.gpu_bytes is not None:
        gpu = f"GPU {format_bytes(memory.gpu)} now, {format_bytes(memory.gpu_peak)} at most"
        words = f"{gpu}, of {format_bytes(at.placed.gpu_bytes)} · {words}"
    return [words]


def _line(text: str, style: str) -> Text:
    """Make one line of text that is cut where the terminal ends; names in it are shown as they are."""
    return Text(visible(text), style=style, overflow="ellipsis", no_wrap=True)
