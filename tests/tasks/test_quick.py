"""The built-in task keeps its promises: size, form, balance, no repeats."""

from __future__ import annotations

from collections import Counter

from lowmem_layers.tasks import load_tasks


def quick():
    (task,) = load_tasks(["quick"])
    return task


def test_there_are_enough_items_of_four_different_choices():
    items = quick().items
    assert len(items) >= 144
    assert all(len(set(item.continuations)) == 4 for item in items)
    assert (quick().metric, quick().chance) == ("acc", 0.25)


def test_gold_is_balanced_over_the_positions():
    counts = Counter(item.gold for item in quick().items)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts) == {0, 1, 2, 3}


def test_no_question_is_asked_twice():
    contexts = [item.contexts[0] for item in quick().items]
    assert len(set(contexts)) == len(contexts)


def test_questions_are_short_and_choices_are_words():
    for item in quick().items:
        assert len(item.contexts[0].split()) <= 12
        assert all(choice.startswith(" ") and choice[1:].isalpha() for choice in item.continuations)
        assert item.contexts[0] == item.contexts[0].strip()
