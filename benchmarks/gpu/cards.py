"""Section `cards`: what `plan --for CARD` foresees for the tiles that section `fast` has timed."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.setting import Case, Result, Setting, frame
from lowmem_layers.engine.budget import ItemCost, Widths
from lowmem_layers.forecast.machine import CARDS, Machine
from lowmem_layers.forecast.work import forecast_work, moved_bytes, rates_of
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.players.tree import prefix_tree


def cases(setting: Setting) -> Iterator[Case]:
    """List the timed tiles."""
    machine = setting.found.get("ceilings", {}).get("machine", {})
    card = named_in(str(machine.get("name", "")))
    for name, tile in setting.found.get("fast", {}).items():
        if "multiply_adds" in tile:
            yield name, lambda name=name, tile=tile: _foreseen(setting, card, name, tile)


def named_in(name: str) -> Machine | None:
    """Find the card of the table that a driver's name means; the longest name that fits."""
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("-", " ").split()
    fitting = [card for card in CARDS if all(part in words for part in card.split("-"))]
    return CARDS[max(fitting, key=len)] if fitting else None


def _foreseen(setting: Setting, card: Machine | None, name: str, tile: Result) -> Result:
    """Compare a tile's seconds with what the card's data sheet says."""
    if card is None:
        return {"skipped": f"no card of the table is meant by {setting.found['ceilings']['machine'].get('name')}"}
    shape = frame(setting.config(name.split(" ")[0]), "nf4", setting.dtype).shape
    coalitions = windows(len(shape.players), 2 if setting.tiny else 4)
    tree = prefix_tree(tuple(coalitions), len(shape.players))
    widths = Widths.of(shape)
    cost = ItemCost(widths.count(tile["tokens"], 0, 0, tree).n_bytes, tile["multiply_adds"], tile["head_multiply_adds"])
    moved = moved_bytes(shape, tree, tile["tokens"], tile["scored"])
    work = forecast_work(shape, coalitions, tree, cost, 1, rates_of(card, tile["home"]), moved)
    seconds = 3600 * work.hours
    return {"card": card.name, "foreseen_s": seconds, "measured_s": tile["seconds_of_tile"],
            "foreseen_to_measured": seconds / tile["seconds_of_tile"], "unpacking_s": work.unpacking_s,
            "compute_s": work.compute_s, "elementwise_s": work.elementwise_s,
            "streaming_s": work.streaming_s}  # fmt: skip
