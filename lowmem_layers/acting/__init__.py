"""From what a run found to a smaller model: what goes, the checkpoint without it, and what that really cost."""
