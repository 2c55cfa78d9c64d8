"""Few-shot examples: fixed ones, put before every context by lm-evaluation-harness' rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.items import Item

_DELIMITER = "\n\n"  # lm-evaluation-harness: `fewshot_delimiter`


def first_distinct(examples: Iterable[Item], count: int) -> tuple[Item, ...]:
    """Take the first `count` examples, and one more in reserve, leaving out repeats."""
    seen: set[tuple[object, ...]] = set()
    kept: list[Item] = []
    for example in examples:
        if _content(example) in seen:
            continue
        seen.add(_content(example))
        kept.append(example)
        if len(kept) > count:
            break
    return tuple(kept)


def with_examples(items: Sequence[Item], pool: Sequence[Item], count: int) -> tuple[tuple[Item, ...], str]:
    """Put the first `count` examples before every context; an item never sees itself.

    An item that is itself among the examples gets the reserve in its place. Returns the items and the text that all
    others begin with.

    Raises:
        TaskError: there are too few examples.
    """
    usual = example_text(_enough(pool, count))
    contents = {_content(example) for example in pool[:count]}
    return tuple(
        _prefixed(item, _text_without(item, pool, count) if _content(item) in contents else usual) for item in items
    ), usual


def example_text(examples: Sequence[Item]) -> str:
    """Write examples with their answers. Source: lm-evaluation-harness, `ConfigurableTask.build_qa_turn`."""
    return "".join(shot.contexts[shot.gold] + shot.continuations[shot.gold] + _DELIMITER for shot in examples)


def _enough(pool: Sequence[Item], count: int) -> Sequence[Item]:
    if len(pool) < count:
        raise TaskError(f"{count} few-shot examples are asked for and there are {len(pool)}", "lower --fewshot")
    return pool[:count]


def _text_without(item: Item, pool: Sequence[Item], count: int) -> str:
    others = [example for example in pool if _content(example) != _content(item)]
    return example_text(_enough(others, count))


def _prefixed(item: Item, text: str) -> Item:
    joined = {context: text + context for context in item.contexts}  # one string where choices share a context
    return replace(item, contexts=tuple(joined[context] for context in item.contexts))


def _content(item: Item) -> tuple[object, ...]:
    return item.contexts, item.continuations, item.gold
