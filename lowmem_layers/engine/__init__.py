"""From a model, items and coalitions to log-likelihoods, every shared prefix computed once."""

from lowmem_layers.engine.changes import Changes
from lowmem_layers.engine.engine import Engine, ready_engine
from lowmem_layers.engine.reference import reference_loglikelihoods
from lowmem_layers.engine.sweep import Sizes

__all__ = ["Changes", "Engine", "Sizes", "ready_engine", "reference_loglikelihoods"]
