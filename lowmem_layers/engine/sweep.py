"""The sweep: one pass over the decoder layers with every live state of a tile.

Each layer is visited once. At a visit, every batch of the tile lets its states fork (copies, for the coalitions that
name the sublayer) and advances all others through the sublayer in chunks; the copies get what the sublayer is changed
to, nothing where it is removed. Behind the last attention sublayer only
the scored positions are kept; what follows (the last feed-forward, the final norm, the head) is computed for those
alone. A sublayer that every coalition removes is neither computed nor fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from lowmem_layers.engine.batches import Batch
from lowmem_layers.engine.calls import Stretcher, growth
from lowmem_layers.engine.changes import Changes, Rounded
from lowmem_layers.engine.scoring import LEAST_ROWS, Head, pairs_of
from lowmem_layers.errors import EngineError
from lowmem_layers.game.players.player import Role
from lowmem_layers.game.players.tree import PrefixTree, Step
from lowmem_layers.model.anatomy.branches import branch_output, run_layer
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import LayerCall, prologue
from lowmem_layers.model.anatomy.removal import layer_without
from lowmem_layers.model.homes.store import Visit


@dataclass(frozen=True)
class Sizes:
    """How much is computed at once. Units: tokens (rows of a matrix product), rows of logits, rows of a log-softmax."""

    chunk_tokens: int
    head_rows: int
    softmax_rows: int

    @classmethod
    def of(cls, recorded: Mapping[str, float]) -> Sizes | None:
        """Take the sizes that a run's record has (None: it has none)."""
        names = [each.name for each in fields(cls)]
        return cls(*(int(recorded[name]) for name in names)) if all(name in recorded for name in names) else None


@dataclass
class Counter:
    """What was computed, counted where it is computed: sublayer applications by batch, and multiply-adds."""

    on_work: Callable[[int], None]
    applications: int = 0
    work: int = 0

    def count_work(self, macs: int) -> None:
        """Count multiply-adds."""
        self.work += macs
        self.on_work(macs)


@dataclass
class Live:
    """The live states of one batch. Shapes: `states` (slots, g, T, D), later (slots, 1, S, D); `pending` alike;
    `scored` (S,), indices into g · T.

    `pending` holds what attention adds while a layer whose sublayers act in parallel is under way.
    """

    batch: Batch
    scored: torch.Tensor
    states: torch.Tensor
    calls: Sequence[LayerCall]
    stretcher: Stretcher
    pending: torch.Tensor | None = None
    scored_only: bool = False

    @property
    def tokens(self) -> int:
        """Count the positions of one state that are computed."""
        return len(self.batch.scored) if self.scored_only else self.batch.n_tokens


@dataclass(frozen=True)
class Sweep:
    """Everything that stays the same from tile to tile."""

    model: DecoderModel
    tree: PrefixTree
    sizes: Sizes
    head: Head
    inputs: Callable[[Batch], dict[str, Any]]
    changes: Changes
    counter: Counter = field(default_factory=lambda: Counter(lambda _: None))
    indices: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)  # brought to the device once

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[tuple[tuple[int, int], ...], torch.Tensor]]:
        """Evaluate all coalitions on the batches of a tile.

        Shapes: yields, for each batch, its (item, choice) owners and (coalitions, owners) float64 nats.

        Raises:
            EngineError: the sublayer applications counted are not those of the prefix tree.
        """
        live = [self.start(batch) for batch in batches]
        self.visit_layers(live)
        while live:
            yield self._finish(live.pop(0))

    def start(self, batch: Batch) -> Live:
        """Compute what comes before the first layer, and see which of the layers' arguments grow with the batch."""
        layers = self.model.anatomy.layers
        first = prologue(self.model.module, layers, self.inputs(batch))
        twice = prologue(self.model.module, layers, self.inputs(Batch(batch.rows * 2)))
        hidden = first.hidden  # (g, T, D)
        states = torch.empty(self.tree.n_slots, *hidden.shape, dtype=hidden.dtype, device=hidden.device)
        states[0] = hidden
        growths = [growth(a, b) for a, b in zip(first.calls, twice.calls, strict=True)]
        scored = torch.tensor(batch.scored, device=hidden.device)
        return Live(batch, scored, states, first.calls, Stretcher(growths))

    def visit_layers(self, live: Sequence[Live]) -> None:
        """Visit every layer once with all live states.

        Raises:
            EngineError: the sublayer applications counted are not those of the prefix tree.
        """
        before = self.counter.applications
        visits = []
        for layer in range(len(self.model.programs)):  # only sublayers that at least one state is advanced by
            steps = self._steps(layer)
            visits.append(Visit(layer, frozenset(kind for kind, step in steps.items() if step.applications)))
        for visit in self.model.store.sweep(visits):
            steps = self._steps(visit.layer)
            rounded = self.changes.rounded(self.model, visit.layer, (role for role in steps if steps[role].changed))
            for each in live:
                self._visit(visit.layer, each, rounded)
        counted, expected = self.counter.applications - before, self.tree.applications * len(live)
        if counted != expected:
            raise EngineError(f"the sweep made {counted} sublayer applications where its tree has {expected}")

    def _steps(self, layer: int) -> dict[Role, Step]:
        """Give a layer's steps by the place of their sublayer."""
        anatomy = self.model.anatomy
        return {role: self.tree.steps[anatomy.position(layer, role)] for role in anatomy.layers[layer].roles}

    def _visit(self, layer: int, live: Live, rounded: Rounded) -> None:
        """Advance the states of one batch through one layer."""
        steps, program = self._steps(layer), self.model.programs[layer]
        attn, ffn = steps.get("attn"), steps.get("ffn")
        is_last = layer == len(self.model.programs) - 1
        if program.whole:
            self._run_whole(layer, steps, live, rounded)
            if is_last:
                _keep_scored(live, self.sizes.chunk_tokens)
            live.stretcher.forget()
            return
        if program.parallel and attn and ffn:
            # The feed-forward reads the same input as attention, whose output is kept apart until then.
            live.pending = torch.zeros_like(live.states[: self.tree.live_slots[ffn.position]])
        if attn:
            self._advance(layer, "attn", attn, live, rounded)
        if is_last and not program.ffn_mixes:
            _keep_scored(live, self.sizes.chunk_tokens)
        if ffn:
            self._advance(layer, "ffn", ffn, live, rounded)
        if live.pending is not None and ffn:
            n_live = self.tree.live_slots[ffn.position]
            live.states[:n_live].add_(live.pending[:n_live])
            live.pending = None
        if isinstance(scale := program.anatomy.scale, torch.Tensor):
            live.states.mul_(scale)
        if is_last and program.ffn_mixes:
            _keep_scored(live, self.sizes.chunk_tokens)
        live.stretcher.forget()

    def _run_whole(self, layer: int, steps: Mapping[Role, Step], live: Live, rounded: Rounded) -> None:
        """Advance all states by the layer's own forward, each with the sublayers that it has removed or rounded."""
        anatomy, call = self.model.programs[layer].anatomy, live.calls[layer]
        # 1) fork at all of the layer's sublayers; who is copied has what its source has
        n_live = 1 if layer == 0 else self.tree.live_slots[min(step.position for step in steps.values()) - 1]
        present: list[frozenset[Role]] = [frozenset[Role]()] * n_live
        for role, step in steps.items():
            _fork(step, live)
            present += [present[source] for source, _ in step.copies]
            advanced = set(step.advanced)
            for slot in advanced:
                present[slot] = present[slot].union((role,))
            self.counter.applications += step.applications
        # 2) states with the same sublayers together
        for kept in dict.fromkeys(present):
            slots = [slot for slot, roles in enumerate(present) if roles == kept]
            macs = sum(self.model.shape.macs[steps[role].position] for role in steps if role in kept or role in rounded)
            with ExitStack() as stack:
                for role in set(steps) - kept:
                    change = rounded[role].standing_in() if role in rounded else layer_without(anatomy, role)
                    stack.enter_context(change)
                for rows in self._chunks(slots, live):
                    wide = _widened(live.states[rows])  # (c, g, T, D)
                    stretched = live.stretcher.stretch(layer, call, len(wide))
                    output = run_layer(anatomy, wide.flatten(0, 1), stretched).reshape(wide.shape)
                    n_states = live.states[rows].shape[0]
                    live.states[rows] = output[:n_states]
                    self.counter.count_work(n_states * live.tokens * macs)

    def _advance(self, layer: int, role: Role, step: Step, live: Live, rounded: Rounded) -> None:
        """Fork, then add a sublayer's output to the states that keep it, and what it is changed to, to the others."""
        _fork(step, live)
        program, call, change = self.model.programs[layer], live.calls[layer], self.changes.of[step.position]
        apart = live.pending if role == "attn" else None  # the feed-forward beside attention reads the same states
        for changed, slots in [(False, step.advanced)] + [(True, step.changed)] * change.passes:
            with rounded[role].standing_in() if changed and role in rounded else nullcontext():
                for rows in self._chunks(slots, live):
                    x = live.states[rows]  # (c, g, T, D)
                    wide = _widened(x)
                    given = call if live.scored_only else live.stretcher.stretch(layer, call, len(wide))
                    output = branch_output(program.anatomy, role, program.forms[role], wide.flatten(0, 1), given)
                    output = output.reshape(wide.shape)[: len(x)]  # (c·g, T, D) → (c, g, T, D)
                    if apart is not None:
                        apart[rows] = output
                    elif isinstance(rows, slice):
                        x.add_(output)
                    else:
                        live.states[rows] = x.add_(output)
                    self.counter.applications += len(x)
                    self.counter.count_work(len(x) * live.tokens * self.model.shape.macs[step.position])
        if change.kind == "mean":
            into = live.states if apart is None else apart
            for slot in step.changed:
                into[slot].add_(self.changes.mean_of(step.position))

    def _chunks(self, slots: Sequence[int], live: Live) -> Iterator[slice | torch.Tensor]:
        """Cut the slots to be advanced into chunks of about `chunk_tokens`, as slices where they lie side by side.

        Other indices are kept on the device: bringing them there makes the host wait.
        """
        size = self.model.shape.states_at_once(self.sizes.chunk_tokens, *live.states.shape[1:3])
        side_by_side = len(slots) > 0 and slots[-1] - slots[0] == len(slots) - 1
        for low in range(0, len(slots), size):
            part = tuple(slots[low : low + size])
            if side_by_side:
                yield slice(part[0], part[-1] + 1)
                continue
            if part not in self.indices:
                self.indices[part] = torch.tensor(part, device=live.states.device)
            yield self.indices[part]

    def _finish(self, live: Live) -> tuple[tuple[tuple[int, int], ...], torch.Tensor]:
        """Score every final state. Shapes: (coalitions, owners)."""
        states = live.states[:, 0]  # (slots, S, D)
        pairs = pairs_of(live.batch.rows, live.batch.n_nodes, live.batch.scored)
        size = max(1, self.sizes.head_rows // states.shape[1])

        def parts() -> Iterator[torch.Tensor]:
            for part in states.split(size):
                yield part
                self.counter.count_work(part.numel() * self.head.vocabulary)

        by_slot = self.head.loglikelihoods(parts(), pairs, self.sizes.head_rows)
        return pairs.owners, by_slot[list(self.tree.final_slots)]


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Repeat so few positions as would be multiplied by another kernel, which rounds differently.

    Shapes: `x` (c, g, T, D), the result as many states or more.
    """
    n_positions = x.shape[0] * x.shape[1] * x.shape[2]
    return x.repeat(-(-LEAST_ROWS // n_positions), 1, 1, 1) if n_positions < LEAST_ROWS else x


def _fork(step: Step, live: Live) -> None:
    """Copy the states of the coalitions that remove the sublayer, before the others move on."""
    for source, target in step.copies:
        live.states[target] = live.states[source]
        if live.pending is not None:
            live.pending[target] = live.pending[source]


def _keep_scored(live: Live, chunk_tokens: int) -> None:
    """Drop all positions but the scored ones. Shapes: (slots, g, T, D) → (slots, 1, S, D).

    They move to the front of their state, a chunk at a time: of a text all are scored, and twice they may not fit.
    """
    n_scored = len(live.scored)

    def kept(states: torch.Tensor) -> torch.Tensor:
        flat = states.flatten(1, 2)  # (slots, g · T, D)
        for some in flat.split(max(1, chunk_tokens // n_scored)):
            some[:, :n_scored] = some[:, live.scored]
        return flat[:, :n_scored].unsqueeze(1)

    live.states = kept(live.states)
    live.pending = None if live.pending is None else kept(live.pending)
    live.scored_only = True
