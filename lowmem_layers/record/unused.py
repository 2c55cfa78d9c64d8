"""Options that would change nothing beside the others: refused at the door, not passed over in silence.

Records are not checked: an earlier version let some of these pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowmem_layers.errors import UsageError
from lowmem_layers.model.spec import EMBEDDED_MODEL

if TYPE_CHECKING:
    from lowmem_layers.record.spec import StudySpec


def check_used(spec: StudySpec) -> None:
    """Refuse options that were passed and mean nothing for these tasks, this model or this device.

    Raises:
        UsageError: one would change nothing.
    """
    from lowmem_layers.record.spec import PAPER_TASKS, PRESETS

    preset = PRESETS.get(spec.preset or "")
    tasks = spec.tasks or (preset and preset.tasks) or ("quick",)
    named = ",".join(tasks)
    own = any(task.endswith((".toml", ".yaml", ".yml")) for task in tasks)
    others = any(not task.startswith(("text:", "lm_eval:")) for task in tasks)
    model = spec.model or EMBEDDED_MODEL
    here = model.lower() == EMBEDDED_MODEL.lower() or Path(model).expanduser().exists()
    texts, harness = any(t.startswith("text:") for t in tasks), any(t.startswith("lm_eval:") for t in tasks)
    without = f"changes nothing for --tasks {named}"
    for option, passed, used, why, hint in (
        ("--data-dir", spec.data_dir, any(task in PAPER_TASKS for task in tasks), without,
         f"it holds the data of {', '.join(PAPER_TASKS)}; a task file names its own"),
        ("--window", spec.window, texts, without, "it belongs to text:FILE"),
        ("--stride", spec.stride, texts, without, "it belongs to text:FILE"),
        ("--include-path", spec.include_path, harness, without, "it belongs to lm_eval:NAME"),
        ("--trust-task-code", spec.trust_task_code or None, spec.include_path is not None,
         "changes nothing without --include-path", "leave it out, or name the folder with the task files"),
        ("--fewshot-file", spec.fewshot_file, others and (bool(spec.fewshot) or (own and spec.fewshot is None)),
         "is not read: no task takes examples from it", "add --fewshot K; lm_eval:NAME takes its own examples"),
        ("--revision", spec.revision, not here, f"is of a model on the Hub, and {model} lies here", "leave it out"),
        ("--max-gpu-memory", spec.max_gpu_memory, spec.device != "cpu", "limits no GPU with --device cpu",
         "--max-cpu-memory limits the host's memory"),
    ):  # fmt: skip
        if passed is not None and not used:
            raise UsageError(f"{option} {why}", hint)
