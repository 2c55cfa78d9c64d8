"""From a data set to scored items, and from log-likelihoods to metrics."""

from __future__ import annotations

from lowmem_layers.tasks.benchmarks import BENCHMARKS, Benchmark
from lowmem_layers.tasks.encode import Bos, Tokenizer, encode_task, encode_tasks
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Item, Task
from lowmem_layers.tasks.load import TASK_NAMES, load_tasks
from lowmem_layers.tasks.metrics import VALUES, Value, item_values
from lowmem_layers.tasks.show import Segment, ShownChoice, ShownItem, show_items

__all__ = [
    "BENCHMARKS",
    "TASK_NAMES",
    "VALUES",
    "Benchmark",
    "Bos",
    "EncodedChoice",
    "EncodedItem",
    "Item",
    "Segment",
    "ShownChoice",
    "ShownItem",
    "Task",
    "Tokenizer",
    "Value",
    "encode_task",
    "encode_tasks",
    "item_values",
    "load_tasks",
    "show_items",
]
