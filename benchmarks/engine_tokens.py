"""How many tokens do tries save on the six benchmarks, and which share of a batch is padding?

All given items are laid out in the engine's own tiles and batches; nothing is computed. The last line is one JSON
document.
"""

from __future__ import annotations

from benchmarks.setting import SIX, all_windows, finish, parser, real_items, start
from lowmem_layers.engine import ready_engine
from lowmem_layers.engine.batches import make_batches


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(items=None)
    options = options.parse_args()
    model = start(options)
    engine, coalitions = ready_engine(model), all_windows(model, options)
    result = {}
    print("task            items   tokens in rows   in tries  saved  scored nodes  padding")
    for name in SIX:
        items = real_items(model, options, [name])
        tiles = [engine._rows([items[i] for i in tile]) for tile in engine.plan_tiles(items, coalitions)]
        rows = [row for tile in tiles for row in tile]
        batches = [batch for tile in tiles for batch in make_batches(tile, engine.sizes.chunk_tokens // 8)]
        plain = sum(len(choice.tokens) - 1 for item in items for choice in item.choices)
        nodes, padded = sum(len(row) for row in rows), sum(batch.n_nodes * len(batch.rows) for batch in batches)
        scored = sum(len(row.scored_nodes) for row in rows)
        result[name] = {"items": len(items), "rows": plain, "tries": nodes, "scored": scored, "padded": padded}
        print(
            f"{name:14s} {len(items):6,d} {plain:16,d} {nodes:10,d}  {plain / nodes:4.2f}× {scored:13,d}"
            f"  {100 * (1 - nodes / padded):5.2f} %"
        )
    finish({"benchmark": "engine_tokens", "tasks": result}, options)


if __name__ == "__main__":
    main()
