"""Pictures of what people see, made of a real run: the live terminal as an image that moves.

    python -m benchmarks.pictures terminal -o benchmarks/figures

It runs the embedded model on a few items, takes the live display's own picture every few seconds, and writes two SVG
files: `terminal.svg`, one frame from the middle, and `terminal-recording.svg`, all frames one after another. Both are
text, need no script and stay sharp.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.spinner import Spinner

from lowmem_layers import StudySpec, run_study
from lowmem_layers.cli.display.memory import Memory, read_memory
from lowmem_layers.cli.display.picture import draw
from lowmem_layers.cli.display.progress import Progress, advance
from lowmem_layers.study.events import Event, LayerRead, Noted, RunFinished, WorkDone

_WIDTH, _HEIGHT = 100, 26
_SECONDS = 1.2  # that a frame is shown
_MOST_FRAMES = 24

Frame = tuple[float, Progress, Memory]


class Recorder:
    """Keep the state of the run at every event but the many small ones, and at these every `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._at = Progress(started=time.monotonic())
        self.frames: list[Frame] = []

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        self._at = advance(self._at, event, now)
        if isinstance(event, RunFinished):
            return
        small = isinstance(event, WorkDone | LayerRead | Noted)
        if not small or not self.frames or now - self.frames[-1][0] >= self._every_s:
            self.frames.append((now, self._at, read_memory()))


def as_svg(frame: Frame, title: str, number: int) -> str:
    """Draw one frame as rich's own SVG."""
    now, at, memory = frame
    console = Console(record=True, file=io.StringIO(), width=_WIDTH, height=_HEIGHT, force_terminal=True)
    console.print(draw(at, now, title, Spinner("dots", style="cyan"), memory, _WIDTH, _HEIGHT - 1))
    n_lines = console.export_text(clear=False).count("\n")
    console.print("\n" * max(0, _HEIGHT - n_lines - 1), end="")  # so that all frames have one size
    svg = console.export_svg(title="lowmem-layers run", unique_id=f"frame{number}")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # the reader's own fonts: nothing is fetched


def recording(frames: list[str]) -> str:
    """Put SVG images into one that shows them in turn, by CSS alone."""
    sizes = [tuple(map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', frame)[0])) for frame in frames]
    width, height = (max(size[side] for size in sizes) for side in (0, 1))
    whole = len(frames) * _SECONDS
    share = 100 / len(frames)
    rules = [
        f"@keyframes turn {{ 0% {{ opacity: 1 }} {share:.3f}% {{ opacity: 1 }} {share + 0.01:.3f}% {{ opacity: 0 }} "
        "100% { opacity: 0 } }",
        f".turn {{ opacity: 0; animation: turn {whole:.1f}s infinite }}",
        *(f".turn{k} {{ animation-delay: {k * _SECONDS:.1f}s }}" for k in range(len(frames))),
    ]
    images = "".join(f'<g class="turn turn{k}">{frame}</g>' for k, frame in enumerate(frames))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">'
        f"<style>{' '.join(rules)}</style>{images}</svg>\n"
    )


def terminal(folder: Path, limit: int, max_removed: int, every_s: float) -> None:
    """Run the embedded model and write both images."""
    recorder = Recorder(every_s)
    spec = StudySpec(limit=limit, max_removed=max_removed, quant="4bit")
    with tempfile.TemporaryDirectory(prefix="lowmem-layers-") as run:
        run_study(spec, Path(run) / "run", announce=recorder)
    resolved = spec.resolved()
    title = f"{resolved.model} · {resolved.quant} · {','.join(resolved.tasks)}"
    step = max(1, len(recorder.frames) // _MOST_FRAMES)
    kept = recorder.frames[::step]
    images = [as_svg(frame, title, number) for number, frame in enumerate(kept)]
    with_answer = [number for number, (_, at, _) in enumerate(kept) if at.standing is not None]
    middle = with_answer[len(with_answer) // 2] if with_answer else len(kept) // 2
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("terminal.svg", images[middle]), ("terminal-recording.svg", recording(images))):
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {len(text) / 1024:.0f} KiB")


def main() -> None:
    """Make the pictures that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["terminal"])
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/figures"))
    parser.add_argument("--limit", type=int, default=100, help="items of the built-in task")
    parser.add_argument("--max-removed", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between frames")
    options = parser.parse_args()
    terminal(options.output, options.limit, options.max_removed, options.every)


if __name__ == "__main__":
    main()
