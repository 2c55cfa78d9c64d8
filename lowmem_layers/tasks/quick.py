"""The built-in task: short questions about everyday things, written for this project."""

from __future__ import annotations

from pathlib import Path

from lowmem_layers.tasks.items import Item, make_item
from lowmem_layers.tasks.records import Record

QUICK_FILE = Path(__file__).with_name("quick.jsonl")


def read_quick(record: Record, task: str, item_id: str) -> Item:
    """Complete a sentence with one of four words. Fields: id, context, choices, gold."""
    choices = record.texts("choices", at_least=2)
    context = record.text("context")
    return make_item(task, item_id, (context,) * len(choices), choices, record.choice_index("gold", len(choices)))
