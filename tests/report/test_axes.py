"""Where players stand along x, whatever sublayers a decoder layer has."""

from __future__ import annotations

import numpy as np

from lowmem_layers.game.players.player import Player
from lowmem_layers.report.axes import cell_edges, player_places


def test_two_sublayers_of_a_layer_stand_on_both_sides_of_its_number():
    players = [Player(layer, kind) for layer in range(2) for kind in ("attn", "ffn")]
    np.testing.assert_array_equal(player_places(players), [-0.25, 0.25, 0.75, 1.25])
    np.testing.assert_array_equal(cell_edges(player_places(players)), [-0.5, 0.0, 0.5, 1.0, 1.5])


def test_the_only_sublayer_of_a_layer_stands_in_its_middle():
    players = [Player(0, "mixer"), Player(1, "attn"), Player(1, "moe"), Player(2, "mixer")]
    np.testing.assert_array_equal(player_places(players), [0.0, 0.75, 1.25, 2.0])
    edges = cell_edges(player_places(players))
    np.testing.assert_array_equal(edges[1:-1], [0.375, 1.0, 1.625])
    assert (np.diff(edges) > 0).all()
    np.testing.assert_array_equal(cell_edges(np.array([3.0])), [2.5, 3.5])
