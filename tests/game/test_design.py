"""The design of a run: who plays, and which coalitions are measured."""

from __future__ import annotations

import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import Design, Group, Grouping, Player, group_players, players_of, windows

SUBLAYERS = players_of(["ffn", "moe"])


def test_sublayers_play_where_nothing_is_grouped():
    design = Design(SUBLAYERS, max_removed=2)
    assert design.players == SUBLAYERS
    assert design.names == ("attn.0", "ffn.0", "attn.1", "moe.1")
    assert design.of_players == design.removed == windows(4, 2)
    assert not any(player.is_group for player in design.players)


def test_a_group_of_one_that_bears_its_sublayers_name_is_that_sublayer():
    attention = Design(SUBLAYERS, grouping=group_players(SUBLAYERS, "attention"))
    assert attention.players == (Player(0, "attn"), Player(1, "attn"))


@pytest.mark.parametrize("group", [Group("attn.0", (0, 1)), Group("attn.0", (3,)), Group("first", (0,))])
def test_any_other_group_is_a_group_whatever_its_name(group):
    design = Design(SUBLAYERS, max_removed=1, grouping=Grouping((group, Group("attn.1", (2,)))))
    assert design.players == (group, Player(1, "attn"))
    assert [player.is_group for player in design.players] == [True, False]
    assert design.names == (group.name, "attn.1")
    assert design.removed == [(), group.members, (2,)]


def test_more_removed_than_there_are_is_refused():
    with pytest.raises(UsageError, match="up to 3 of 2"):
        _ = Design(SUBLAYERS, max_removed=3, grouping=group_players(SUBLAYERS, "attention")).of_players


def test_every_design_names_the_estimator_it_is_made_for():
    assert [Design(SUBLAYERS, kind).estimator for kind in ("windows", "permutations", "all")] == [
        "neighbourhood", "permutation", "shapley",
    ]  # fmt: skip
