"""Few-shot examples: the same ones for every item, put before its context by lm-evaluation-harness' rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.items import Examples, Item

_DELIMITER = "\n\n"  # lm-evaluation-harness: `fewshot_delimiter`


def first_distinct(examples: Iterable[Item], count: int) -> tuple[Item, ...]:
    """Take the first `count` different examples, and one more as a reserve."""
    kept: dict[tuple[object, ...], Item] = {}
    for example in examples:
        kept.setdefault(_content(example), example)
        if len(kept) > count:
            break
    return tuple(kept.values())


def with_examples(items: Sequence[Item], pool: Sequence[Item], count: int) -> tuple[tuple[Item, ...], str]:
    """Put the first `count` examples of the pool before every context, but never an item before itself.

    For an item that is among those examples, the next one of the pool takes its place. Returns the items, and the text
    with which the contexts of all other items begin.

    Raises:
        TaskError: the pool has too few examples.
    """
    usual = written(pool, count)
    contents = {_content(example) for example in pool[:count]}
    prefixed: list[Item] = []
    for item in items:
        content, examples = _content(item), usual
        if content in contents:
            examples = written([example for example in pool if _content(example) != content], count)
        joined = {context: examples.text + context for context in item.contexts}  # one string where choices share one
        contexts = tuple(joined[context] for context in item.contexts)
        prefixed.append(replace(item, contexts=contexts, examples=examples))
    return tuple(prefixed), usual.text


def written(pool: Sequence[Item], count: int) -> Examples:
    """Write the first `count` examples with their answers, as text and as turns.

    Source: lm-evaluation-harness, `ConfigurableTask.build_qa_turn`.

    Raises:
        TaskError: the pool has too few examples.
    """
    if len(pool) < count:
        raise TaskError(f"{count} few-shot examples are asked for and there are {len(pool)}", "lower --fewshot")
    pairs = [(shot.contexts[shot.gold], shot.continuations[shot.gold]) for shot in pool[:count]]
    text = "".join(question + answer + _DELIMITER for question, answer in pairs)
    return Examples(text, tuple((question, answer.removeprefix(" ")) for question, answer in pairs))


def _content(item: Item) -> tuple[object, ...]:
    """Give what makes two examples the same, whatever their ids."""
    return item.contexts, item.continuations, item.gold
