"""How figures look: fit for a paper, readable without colour vision, the same bytes for the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player

# Vermillion of Okabe and Ito and a darker shade of their blue: told apart with every common colour vision deficiency,
# and in grey by their lightness (54 and 34 of 100); markers differ too.
ATTENTION = "#D55E00"
FEED_FORWARD = "#00528A"
QUIET = "#555555"
GROUP = "#009E73"  # players that are groups of sublayers
MARKERS = {ATTENTION: "o", FEED_FORWARD: "s", GROUP: "D"}
FULL_WIDTH_IN, COLUMN_IN = 6.9, 3.3  # a text of two columns, and one of them
FORMATS = ("svg", "png", "pdf")

# Control characters (XML has no place for them), half surrogates and non-characters (nor has UTF-8 or XML for these),
# and marks that turn the direction of the text around them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

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
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
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
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text() != shown(text.get_text()):
            text.set_text(shown(text.get_text()))
    for form in formats:
        figure.savefig(folder / f"{name}.{form}", metadata=_NO_DATES[form])
        figure.set_layout_engine("none")


def shown(text: str) -> str:
    """Replace signs that are not to be seen, but obeyed: names come from data."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def colour(player: Player | Group) -> str:
    """Colour attention and mixers red, feed-forward blue and groups green, whatever a group is called."""
    if isinstance(player, Group):
        return GROUP
    return ATTENTION if player.is_attention else FEED_FORWARD


def kind_words(players: Sequence[Player | Group]) -> dict[str, str]:
    """Name the kinds that play, by their colour."""
    kinds = {player.kind for player in players if isinstance(player, Player)}
    feed_forward = " / ".join(word for kind, word in (("ffn", "FFN"), ("moe", "MoE")) if kind in kinds)
    mixing = " / ".join(word for kind, word in (("attn", "attention"), ("mixer", "mixers")) if kind in kinds)
    words = {ATTENTION: mixing, FEED_FORWARD: feed_forward, GROUP: "groups of sublayers"}
    found = {colour(player) for player in players}
    return {kind: word for kind, word in words.items() if kind in found}
