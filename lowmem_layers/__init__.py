"""Which sublayers of a language model matter? Shapley values and ablations on hardware people own."""

from lowmem_layers._version import __version__

__all__ = ["__version__"]
