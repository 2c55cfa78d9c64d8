"""From a data set to scored items, and from log-likelihoods to metrics."""

from __future__ import annotations

from lowmem_layers.tasks.encode import Tokenizer, encode_task
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Item, Task
from lowmem_layers.tasks.load import TASK_NAMES, load_tasks
from lowmem_layers.tasks.metrics import VALUES, Value, item_values

__all__ = [
    "TASK_NAMES",
    "VALUES",
    "EncodedChoice",
    "EncodedItem",
    "Item",
    "Task",
    "Tokenizer",
    "Value",
    "encode_task",
    "item_values",
    "load_tasks",
]
