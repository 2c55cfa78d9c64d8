"""Rendered items: the scored part marked, nothing that a terminal would obey."""

from __future__ import annotations

from lowmem_layers.tasks import Segment, load_tasks, show_items
from lowmem_layers.tasks.show import printable


def test_the_scored_part_is_marked(data_dir):
    (task,) = load_tasks(["winogrande"], data_dir=data_dir)
    first = show_items(task, 1)[0]
    assert (first.task, first.id, first.cluster) == ("winogrande", "AB-1", "AB")
    assert [choice.gold for choice in first.choices] == [False, True]
    assert first.choices[0].segments == (
        Segment("The cup fell off the shelf because the cup", False),
        Segment(" was slippery.", True),
    )


def test_at_most_so_many_items_are_shown():
    (task,) = load_tasks(["quick"])
    assert len(show_items(task)) == 3
    assert len(show_items(task, 10_000)) == len(task.items)


def test_segments_together_are_what_the_model_reads():
    (task,) = load_tasks(["quick"])
    for item, shown in zip(task.items, show_items(task, 1000), strict=True):
        texts = ["".join(segment.text for segment in choice.segments) for choice in shown.choices]
        assert texts == [c + t for c, t in zip(item.contexts, item.continuations, strict=True)]
        assert [choice.gold for choice in shown.choices].index(True) == item.gold


def test_of_a_text_the_beginning_is_shown(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 1000)
    (task,) = load_tasks([f"text:{tmp_path / 'a.txt'}"])
    (shown,) = show_items(task)
    (segment,) = shown.choices[0].segments
    assert segment.scored
    assert len(segment.text) == 600


def test_control_characters_are_escaped():
    assert printable("a\x1b[31m\nb\u202e\x02é😀") == "a\\x1b[31m\nb\\u202e\\x02é😀"
