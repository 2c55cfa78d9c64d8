"""The prefix tree of coalitions: what a sweep over the sublayers computes, each shared prefix once.

Two coalitions whose removed sets agree on the first p sublayers have the same residual stream in front of sublayer p.
So a sweep needs one state for each distinct *prefix* (the removed set cut at p), not one for each coalition. Walking
p from 0 to N − 1, a prefix whose coalitions all keep p is advanced; one whose coalitions all remove p is left as it is;
one with both kinds forks: the state is copied for those that remove p, and advanced for the others.

The states live in numbered slots. A prefix keeps its slot as it advances, so a state is moved only where it forks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import Removed, check_coalitions


@dataclass(frozen=True)
class Step:
    """What happens at one sublayer: first the copies (from slot, to slot), then the sublayer on the slots `advanced`.

    The other live slots, `changed`, get what has become of the sublayer, which is computed `passes` times for each of
    them: never where it is removed.
    """

    position: int
    copies: tuple[tuple[int, int], ...]
    advanced: tuple[int, ...]
    changed: tuple[int, ...] = ()
    passes: int = 0

    @property
    def applications(self) -> int:
        """Count how often the sublayer is computed, as it is or changed."""
        return len(self.advanced) + self.passes * len(self.changed)


@dataclass(frozen=True)
class PrefixTree:
    """The steps of a sweep over all coalitions, and the slot in which each one ends.

    Shapes: `steps` has N entries, `final_slots` one a coalition (in the order given); slots are 0 … n_slots − 1 and
    slot 0 holds the state before the first step.
    """

    n_players: int
    steps: tuple[Step, ...]
    final_slots: tuple[int, ...]
    n_slots: int

    @property
    def applications(self) -> int:
        """Count the sublayer applications: the nodes of the tree at which something is computed."""
        return sum(step.applications for step in self.steps)

    @cached_property
    def live_slots(self) -> tuple[int, ...]:
        """Count the slots in use once the copies of each step are made. Shapes: (N,)."""
        return tuple(accumulate((len(step.copies) for step in self.steps), initial=1))[1:]


def prefix_tree(coalitions: Sequence[Removed], n_players: int, passes: Sequence[int] | None = None) -> PrefixTree:
    """Build the tree of any coalitions: windows, single removals, permutation chains, arbitrary sets.

    A coalition given twice ends twice in the same slot and costs nothing more. `passes` says of each player how often
    it is computed where a coalition names it (None: never, it is removed).

    Raises:
        UsageError: no coalition, or one that is not a sorted set of positions below `n_players`.
    """
    if not coalitions:
        raise UsageError("there is no coalition to evaluate", "give at least the full model, ()")
    check_coalitions(coalitions, n_players)
    slot_members: list[list[Removed]] = [sorted(set(coalitions))]  # which coalitions each slot's state stands for
    steps: list[Step] = []
    for position in range(n_players):
        copies: list[tuple[int, int]] = []
        advanced: list[int] = []
        for slot in range(len(slot_members)):  # slots made at this position hold removers only, and are not split again
            removing = [c for c in slot_members[slot] if position in c]
            keeping = [c for c in slot_members[slot] if position not in c]
            if keeping:
                advanced.append(slot)
                slot_members[slot] = keeping
            if keeping and removing:
                copies.append((slot, len(slot_members)))
                slot_members.append(removing)
        changed = tuple(slot for slot in range(len(slot_members)) if slot not in advanced)
        steps.append(Step(position, tuple(copies), tuple(advanced), changed, passes[position] if passes else 0))
    slot_of = {members[0]: slot for slot, members in enumerate(slot_members)}  # in the end one coalition a slot
    return PrefixTree(n_players, tuple(steps), tuple(slot_of[c] for c in coalitions), len(slot_members))


def windows_formula(n_players: int, max_removed: int) -> int:
    """Count the applications of a sweep over all windows of 1 … L sublayers and the full model, in closed form.

    N + Σ_{k=1..L} (N − k)(N − k + 1) / 2: the full model's N, and each window removed from position i on costs the
    sublayers behind it.
    """
    return n_players + sum((n_players - k) * (n_players - k + 1) // 2 for k in range(1, max_removed + 1))
