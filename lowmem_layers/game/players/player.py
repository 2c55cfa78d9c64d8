"""Players: the sublayers of a decoder-only model, in the order in which they are executed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from lowmem_layers.errors import UsageError

Kind = Literal["attn", "ffn", "moe", "mixer"]
Role = Literal["attn", "ffn"]
"""A sublayer's place in its decoder layer: what mixes tokens (attention or a mixer), or the feed-forward kinds."""

_KINDS: tuple[Kind, ...] = get_args(Kind)
_NAME = re.compile(rf"({'|'.join(_KINDS)})\.(0|[1-9]\d*)")


@dataclass(frozen=True, order=True)
class Player:
    """One sublayer: its decoder-layer index and its kind.

    The kinds are attention, dense FFN, mixture of experts, and whatever else mixes tokens in attention's place (linear
    attention, state-space models, convolutions): a mixer.
    """

    layer: int
    kind: Kind
    is_group: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS or self.layer < 0:
            raise ValueError(f"no such sublayer: kind {self.kind!r}, layer {self.layer}")

    @property
    def name(self) -> str:
        """Name it as the field does: `attn.0`, `ffn.0`, `moe.0`, `mixer.0`."""
        return f"{self.kind}.{self.layer}"

    @property
    def is_attention(self) -> bool:
        """Tell what mixes tokens (attention, or a mixer in its place) from the feed-forward kinds."""
        return self.role == "attn"

    @property
    def role(self) -> Role:
        """Name its place in the decoder layer."""
        return "attn" if self.kind in ("attn", "mixer") else "ffn"


def parse_player(name: str) -> Player:
    """Read `attn.0` back.

    Raises:
        UsageError: the name is not KIND.LAYER.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not a sublayer", "sublayers are named like attn.0, ffn.12, moe.3 or mixer.1")
    return Player(int(match[2]), _KINDS[_KINDS.index(match[1])])


def players_of(ffn_kinds: Sequence[Literal["ffn", "moe"]]) -> tuple[Player, ...]:
    """List the players of a model with one attention and one feed-forward sublayer a decoder layer.

    Shapes: `ffn_kinds` has one entry a decoder layer; the result has N = 2 × layers.
    """
    return tuple(Player(layer, kind) for layer, ffn in enumerate(ffn_kinds) for kind in ("attn", ffn))
