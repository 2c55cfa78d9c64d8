"""How figures look: fit for a paper, readable without colour vision, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.player import parse_player

# Vermillion and blue of Okabe and Ito: told apart with every common colour vision deficiency; markers differ too.
ATTENTION = "#D55E00"
FEED_FORWARD = "#0072B2"
QUIET = "#555555"
GROUP = "#009E73"  # players that are groups of sublayers
MARKERS = {ATTENTION: "o", FEED_FORWARD: "s", GROUP: "D"}
FULL_WIDTH_IN = 6.9  # a text width of two columns
FORMATS = ("svg", "png", "pdf")

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "lowmem-layers",
    "pdf.fonttype": 42,
}
_NO_DATES: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw in this style, whatever the user's matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield


def new_figure(height_in: float, width_in: float = FULL_WIDTH_IN) -> Figure:
    """Make an empty figure that no window system knows of."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> None:
    """Write a figure in these formats, without dates; laid out once, alike in all."""
    for form in formats:
        figure.savefig(folder / f"{name}.{form}", metadata=_NO_DATES[form])
        figure.set_layout_engine("none")


def colour(player: str) -> str:
    """Colour attention red, feed-forward blue and groups green."""
    if is_group(player):
        return GROUP
    return ATTENTION if parse_player(player).is_attention else FEED_FORWARD


def is_group(player: str) -> bool:
    """Tell a group of sublayers, which has a name of its own, from a sublayer."""
    try:
        parse_player(player)
    except UsageError:
        return True
    return False


def layer(sublayer: str) -> int:
    """Read a sublayer's decoder-layer index."""
    return parse_player(sublayer).layer


def kind_words(players: tuple[str, ...]) -> dict[str, str]:
    """Name the kinds that play, by their colour."""
    words = {
        ATTENTION: "attention",
        FEED_FORWARD: feed_forward_word(players),
        GROUP: "groups of sublayers",
    }
    found = {colour(name) for name in players}
    return {kind: word for kind, word in words.items() if kind in found}


def feed_forward_word(players: tuple[str, ...]) -> str:
    """Name the feed-forward kind that the model has."""
    kinds = {name.split(".")[0] for name in players}
    return " / ".join(word for kind, word in (("ffn", "FFN"), ("moe", "MoE")) if kind in kinds)
