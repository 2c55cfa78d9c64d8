"""The plan's counts against counting, and its sizes against what loading really takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowmem_layers.engine.budget import Widths
from lowmem_layers.errors import ModelError, UsageError
from lowmem_layers.forecast.machine import (
    CARDS,
    SHARE_OF_BANDWIDTH,
    SHARE_OF_PEAK,
    Machine,
    measure_machine,
    named_card,
)
from lowmem_layers.forecast.work import forecast_work, moved_bytes, rates_of
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.players.tree import prefix_tree
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.shape import SHIPPED, shape_of, shipped_config
from tests.model.conftest import save_model, tiny_config

GIB = 1 << 30


def counted_by_walking(n_players: int, max_removed: int) -> tuple[int, int, int]:
    """Walk every coalition from the first sublayer on and count distinct (prefix, sublayer) applications."""
    windows = [
        frozenset(range(start, start + size))
        for size in range(1, max_removed + 1)
        for start in range(n_players - size + 1)
    ]
    coalitions = [frozenset(), *windows]
    shared = {
        (position, frozenset(p for p in removed if p < position))
        for removed in coalitions
        for position in range(n_players)
        if position not in removed
    }
    naive = sum(n_players - len(removed) for removed in coalitions)
    return len(coalitions), len(shared), naive


def counted_by_the_tree(n_players: int, max_removed: int) -> tuple[int, int, int]:
    """Count as the engine does, and the plan with it."""
    coalitions = windows(n_players, max_removed)
    tree = prefix_tree(coalitions, n_players)
    return tree.n_slots, tree.applications, sum(n_players - len(removed) for removed in coalitions)


@pytest.mark.parametrize(("n_players", "max_removed"), [(2, 1), (6, 2), (8, 4), (60, 4), (5, 5), (4, 0)])
def test_counts(n_players: int, max_removed: int) -> None:
    assert counted_by_the_tree(n_players, max_removed) == counted_by_walking(n_players, max_removed)


def test_published_counts() -> None:
    assert counted_by_the_tree(64, 4) == (251, 7754, 15444)
    assert counted_by_the_tree(160, 4)[1:] == (50090, 100020)


@pytest.mark.parametrize(
    ("name", "players", "parameters", "packed_gib"),
    [("llama-3-8b", 64, 8.03e9, 3.66), ("llama-3-70b", 160, 70.55e9, 35.9), ("mixtral-8x7b", 64, 46.70e9, 24.3)],
)
def test_shipped_shapes(name: str, players: int, parameters: float, packed_gib: float) -> None:
    shape = shape_of(shipped_config(name), "nf4", torch.bfloat16)
    assert len(shape.players) == players
    assert shape.n_parameters == pytest.approx(parameters, rel=0.001)
    assert shape.n_bytes.packed / GIB == pytest.approx(packed_gib, rel=0.02)


def test_a_token_visits_two_of_mixtrals_eight_experts() -> None:
    shape = shape_of(shipped_config("mixtral-8x7b"), "nf4", torch.bfloat16)
    assert [player.name for player in shape.players[:2]] == ["attn.0", "moe.0"]
    assert shape.macs[1] == 2 * 3 * 4096 * 14336 + 8 * 4096


def test_the_ideal_of_an_8b_model_on_a_4090() -> None:
    shape = shape_of(shipped_config("llama-3-8b"), "nf4", torch.bfloat16)
    coalitions = windows(64, 4)
    tree = prefix_tree(coalitions, 64)
    cost = Widths.of(shape).count(777_781, 60_000, 0, tree)
    moved = moved_bytes(shape, tree, 777_781, 60_000)
    plan = forecast_work(shape, coalitions, tree, cost, 100, rates_of(named_card("rtx-4090"), "cpu"), moved)
    assert plan.streaming_s < plan.compute_s
    layers = 777_781 * (7754 / 64) * 6.98e9 * 2  # tokens, live states on average, weights of the decoder layers, flops
    layers -= (777_781 - 60_000) * 247 * 3 * 4096 * 14_336 * 2  # the last feed-forward, where nothing is scored
    head = 60_000 * 251 * 128_256 * 4096 * 2
    assert plan.flops == pytest.approx(layers + head, rel=0.03)
    assert plan.compute_s == pytest.approx((layers + head) / 165e12 / SHARE_OF_PEAK, rel=0.03)
    # a token's way through a layer: about 117 numbers a channel and five a number of the widest intermediate, by hand
    by_hand = 777_781 * (7754 / 64) * 32 * 2 * (37 * 4096 + 21 * 4096 + 5 * 14_336)
    assert plan.elementwise_s == pytest.approx(by_hand / (1008e9 * SHARE_OF_BANDWIDTH), rel=0.05)
    assert plan.unpacking_s == pytest.approx(100 * 6.98e9 * 7 / (1008e9 * SHARE_OF_BANDWIDTH), rel=0.01)
    # the model of kernels that this stands for foresees 54 to 65 % of the peak on cards from H100 to 4090
    assert 0.5 < (layers + head) / 165e12 / 3600 / plan.hours < 0.65
    assert plan.state_bytes_per_token == 251 * 4096 * 2


@pytest.mark.parametrize("quant", ["none", "4bit", "8bit"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3"])
def test_planned_bytes_are_the_loaded_ones(family: str, quant: str, tmp_path: Path) -> None:
    target = {"none": "none", "4bit": "nf4", "8bit": "int8"}[quant]
    save_model(tmp_path, family)
    model = load_model(ModelSpec(str(tmp_path), quant, "bfloat16", "cpu", cache=False))  # type: ignore[arg-type]
    shape = shape_of(tiny_config(family), target, torch.bfloat16)
    about = model.describe()
    assert about["slot_bytes"] == shape.n_bytes.slots
    padding = about["packed_bytes"] - shape.n_bytes.packed  # each part starts at a multiple of 256 bytes
    assert 0 <= padding <= 256 * 3 * 7 * 3


def test_unknown_names() -> None:
    with pytest.raises(ModelError, match="no shipped shape"):
        shipped_config("llama-9")
    with pytest.raises(UsageError, match="no card"):
        named_card("voodoo-2")
    assert set(SHIPPED) == {"llama-3-8b", "llama-3-70b", "mixtral-8x7b"}
    assert all(isinstance(card, Machine) for card in CARDS.values())


def test_this_machine_is_measured_in_moments() -> None:
    machine = measure_machine(torch.device("cpu"), torch.float32, seconds=0.02)
    assert machine.measured
    assert min(machine.macs_s, machine.host_to_device_bytes_s, machine.disk_bytes_s) > 1e6
