"""The examples at the end of each command's help, and how a shell is taught to complete commands and options."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "run": (
        "lowmem-layers run --quant 4bit --limit 20",
        "lowmem-layers run --model my_model --tasks arc_easy,piqa --data-dir my_data",
        "lowmem-layers run --until top3 --value loglikelihood",
        "lowmem-layers run --config my_run.toml --seed 1",
        "lowmem-layers run --config runs/EARLIER/run.json --quant 8bit",
    ),
    "plan": (
        "lowmem-layers plan --quant 4bit",
        "lowmem-layers plan --model llama-3-70b --quant 4bit --for rtx-4090",
        "lowmem-layers plan --model llama-3-70b --for rtx-4090 --workers 64",
        "lowmem-layers plan --tasks piqa --pilot runs/small --size 0.02",
    ),
    "importance": (
        "lowmem-layers importance RUN",
        "lowmem-layers importance RUN --value margin --top 5 -o importance.csv",
    ),
    "scores": ("lowmem-layers scores RUN -o scores.parquet",),
    "report": ("lowmem-layers report RUN", "lowmem-layers report RUN_A RUN_B -o my_folder"),
    "compare": (
        "lowmem-layers compare RUN_A RUN_B --figure compared.png",
        "lowmem-layers compare RUN_A RUN_B --agreement",
        "lowmem-layers compare RUN_A RUN_B --value loglikelihood --equivalent-within 0.1",
    ),
    "interactions": ("lowmem-layers interactions RUN --value loglikelihood",),
    "tables": ("lowmem-layers tables RUN --table 3 --format latex",),
    "power": ("lowmem-layers power RUN --value probability --size 0.005",),
    "items": ("lowmem-layers items RUN --sublayers ffn.0,attn.1 --top 10",),
    "prune": (
        "lowmem-layers prune RUN --remove 4 -o my_folder",
        "lowmem-layers prune RUN --decoder-layers 3 --form layers -o my_folder",
        "lowmem-layers prune RUN --lose-at-most 1.0",
    ),
    "bits": ("lowmem-layers bits RUN_OF_Q4_0 RUN_OF_Q5_0 RUN_OF_Q8_0 --budget 5 -o my_folder",),
    "proxies": ("lowmem-layers proxies RUN --agreement",),
    "models": ("lowmem-layers models", "lowmem-layers models --cache --clear"),
    "tasks": ("lowmem-layers tasks", "lowmem-layers tasks show arc_easy --items 2"),
    "show": ("lowmem-layers tasks show quick",),
    "doctor": ("lowmem-layers doctor", "lowmem-layers doctor --measure"),
}

# `\b` keeps click from filling the lines.
COMPLETION = """\b
To complete commands and options with the Tab key:
  bash  eval "$(_LOWMEM_LAYERS_COMPLETE=bash_source lowmem-layers)"  # ~/.bashrc
  zsh   eval "$(_LOWMEM_LAYERS_COMPLETE=zsh_source lowmem-layers)"   # ~/.zshrc
  fish  _LOWMEM_LAYERS_COMPLETE=fish_source lowmem-layers | source
        (the last in ~/.config/fish/completions/lowmem-layers.fish)"""


def epilog(command: str) -> str | None:
    """Give the end of a command's help; None where there are no examples."""
    if command not in EXAMPLES:
        return None
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
