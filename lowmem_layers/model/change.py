"""What is done to a sublayer in the coalitions that name it: removing it is one change among several.

A `Change` is part of what a run measures, so its name is part of the run's identity, and its words stand in reports.
Nothing here needs torch: a format's name, its bits and who runs it are known before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lowmem_layers.errors import UsageError, did_you_mean

Runtime = Literal["llama.cpp", "bitsandbytes"]
Kind = Literal["remove", "mean", "repeat", "quantise"]


@dataclass(frozen=True)
class QuantFormat:
    """A format that dense weights can be quantised to.

    `runtime` names whose format it is. Units: `bits` for each weight, scales included (those of bitsandbytes' int8,
    one a row, left out); `block` counts the numbers that are packed together: rows must be a multiple of it. Where
    they are not, `instead` names the format that llama-quantize takes (`tensor_type_fallback` in llama-quant.cpp).
    """

    name: str
    bits: float
    runtime: Runtime
    block: int = 1
    instead: str = ""

    def for_rows(self, width: int) -> QuantFormat:
        """Choose the format for rows of `width` numbers: this one, or the one that stands in for it."""
        return QUANT_FORMATS[self.instead] if self.instead and width % self.block else self

    @property
    def most_bits(self) -> float:
        """Count the bits of a weight where the larger of both formats is taken."""
        return max(self.bits, QUANT_FORMATS[self.instead].bits if self.instead else 0.0)


_ROWS = (
    QuantFormat("nf4", 4.5, "bitsandbytes"),
    QuantFormat("fp4", 4.5, "bitsandbytes"),
    QuantFormat("int8", 8.0, "bitsandbytes"),
    QuantFormat("q8_0", 8.5, "llama.cpp", 32),
    QuantFormat("q6_k", 6.5625, "llama.cpp", 256, "q8_0"),
    QuantFormat("q5_1", 6.0, "llama.cpp", 32),
    QuantFormat("q5_k", 5.5, "llama.cpp", 256, "q5_1"),
    QuantFormat("q5_0", 5.5, "llama.cpp", 32),
    QuantFormat("q4_1", 5.0, "llama.cpp", 32),
    QuantFormat("q4_k", 4.5, "llama.cpp", 256, "q5_0"),
    QuantFormat("q4_0", 4.5, "llama.cpp", 32),
    QuantFormat("mxfp4", 4.25, "llama.cpp", 32),
    QuantFormat("q3_k", 3.4375, "llama.cpp", 256, "q4_0"),
    QuantFormat("q2_k", 2.625, "llama.cpp", 256, "q4_0"),
    QuantFormat("tq2_0", 2.0625, "llama.cpp", 256, "q4_0"),
    QuantFormat("tq1_0", 1.6875, "llama.cpp", 256, "q4_0"),
)
QUANT_FORMATS: Mapping[str, QuantFormat] = {row.name: row for row in _ROWS}
_FORMATS = f"formats: {', '.join(QUANT_FORMATS)}"
# What llama.cpp quantises, most of it only with an importance matrix, and what is only read here.
NO_QUANTISER = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs")
CHANGES = ("remove", "mean", "repeat", "quantise:FORMAT")


@dataclass(frozen=True)
class Change:
    """What becomes of a sublayer f, which the full model computes as x + f(x).

    remove: x. mean: x + m, where m is the mean of f's output over all tokens of all items' right answers in the full
    model. repeat: f twice, y = x + f(x), then y + f(y). quantise: x + g(x), where g has f's linear weights (of
    attention, feed-forward, experts, mixer; no norms, biases, routers or convolutions) rounded to `format`.
    """

    kind: Kind = "remove"
    format: QuantFormat | None = None

    @property
    def name(self) -> str:
        """Name the change as `--change` takes it."""
        return self.kind if self.format is None else f"{self.kind}:{self.format.name}"

    @property
    def passes(self) -> int:
        """Count how often a changed sublayer is computed."""
        return {"remove": 0, "mean": 0, "repeat": 2, "quantise": 1}[self.kind]

    @property
    def bits(self) -> float:
        """Count the bits a weight of what is quantised. Units: bits; infinite where nothing is."""
        return float("inf") if self.format is None else self.format.bits

    @property
    def words(self) -> str:
        """Say what was done to a sublayer: it was removed, or quantised to nf4."""
        if self.format is not None:
            return f"quantised to {self.format.name}"
        return {"remove": "removed", "mean": "replaced by its mean output", "repeat": "run twice"}[self.kind]


REMOVE = Change()


def parse_change(text: str) -> Change:
    """Read a change as `--change` takes it.

    Raises:
        UsageError: there is no such change or format, or no quantiser for the format.
    """
    kind, colon, name = text.partition(":")
    if kind == "quantise" and colon:
        return Change("quantise", quant_format(name))
    if kind == "quantise":
        raise UsageError("--change quantise names no format", f"write quantise:FORMAT; {_FORMATS}")
    for each in (REMOVE, Change("mean"), Change("repeat")):
        if each.name == text:
            return each
    hint = f"{did_you_mean(kind, ('remove', 'mean', 'repeat', 'quantise'))}--change takes {', '.join(CHANGES)}"
    raise UsageError(f"--change {text!r} is not known", hint)


def quant_format(name: str) -> QuantFormat:
    """Look a format up by its name.

    Raises:
        UsageError: there is no such format, or nothing here can quantise to it.
    """
    known = name.lower()
    if known in QUANT_FORMATS:
        return QUANT_FORMATS[known]
    if known in NO_QUANTISER:
        raise UsageError(f"{known} is read here, but there is no quantiser for it", _FORMATS)
    raise UsageError(f"there is no format {name!r} to quantise to", f"{did_you_mean(known, QUANT_FORMATS)}{_FORMATS}")
