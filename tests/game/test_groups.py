"""Groups as players."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import (
    Group,
    Grouping,
    ValueTable,
    all_coalitions,
    estimate,
    group_players,
    grouped_table,
    parse_groups,
    players_of,
    windows,
)
from tests.game.games import additive_game

PLAYERS = players_of(["ffn", "ffn", "moe"])


def grouped(*groups):
    return Grouping(tuple(Group(name, members) for name, members in groups))


@pytest.mark.parametrize(
    ("by", "names", "members"),
    [
        ("sublayer", tuple(p.name for p in PLAYERS), tuple((i,) for i in range(6))),
        ("attention", ("attn.0", "attn.1", "attn.2"), ((0,), (2,), (4,))),
        ("ffn", ("ffn.0", "ffn.1", "moe.2"), ((1,), (3,), (5,))),
        ("decoder-layer", ("layer.0", "layer.1", "layer.2"), ((0, 1), (2, 3), (4, 5))),
    ],
)
def test_kinds_of_players(by, names, members):
    assert group_players(PLAYERS, by) == grouped(*zip(names, members, strict=True))


def test_groups_of_the_users_own():
    grouping = parse_groups("early=attn.0+ffn.0, late=moe.2,attn.1", PLAYERS)
    assert grouping == grouped(("early", (0, 1)), ("late", (5,)), ("attn.1", (2,)))
    assert parse_groups("early = attn.0 + ffn.0 , late=moe.2, attn.1", PLAYERS) == grouping
    assert grouping.expand((0, 2)) == (0, 1, 2)
    assert grouping.expand_all([(), (1,)]) == [(), (5,)]


@pytest.mark.parametrize("text", ["a=attn.9", "a=attn.0,b=attn.0", "", "a=attn.0,a=ffn.0", "a=", "=attn.0,b=ffn.0"])
def test_bad_groups_are_refused(text):
    with pytest.raises(UsageError):
        parse_groups(text, PLAYERS)


def test_unknown_kind():
    with pytest.raises(UsageError, match="kind of players"):
        group_players(PLAYERS, "heads")


def test_additive_groups_sum_their_members():
    worths = [3.0, 1.0, 0.5, -1.0, 2.0, 0.0]
    grouping = group_players(PLAYERS, "decoder-layer")
    coalitions = grouping.expand_all(windows(3, 2))
    table = grouped_table(additive_game(worths).table([*coalitions, (0,), (1, 2)]), grouping)
    assert table.players == ("layer.0", "layer.1", "layer.2")
    assert table.coalitions == tuple(windows(3, 2))
    np.testing.assert_allclose(estimate(table).value, [4.0, -0.5, 2.0])


def test_exact_shapley_of_groups_needs_only_their_own_coalitions():
    game = additive_game([1.0, 2.0, 3.0, 4.0])
    grouping = grouped(("x", (0, 3)), ("y", (1, 2)))
    table = grouped_table(game.table(grouping.expand_all(all_coalitions(2))), grouping)
    np.testing.assert_allclose(estimate(table, "shapley").value, [5.0, 5.0])


def test_a_table_without_whole_groups_is_refused():
    table = ValueTable(("a", "b"), ((0,),), np.zeros((1, 1)))
    with pytest.raises(UsageError, match="whole groups"):
        grouped_table(table, grouped(("g", (0, 1))))
    with pytest.raises(UsageError, match="beyond"):
        grouped_table(table, grouped(("g", (0, 7))))
