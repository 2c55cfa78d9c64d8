"""From a checkpoint's names and shapes to the model's: transformers' own conversion, a few tensors at a time.

transformers renames tensors, fuses experts and splits or joins projections while loading. Its loader takes a model and
a dictionary of tensors; given one decoder layer's tensors it does just that layer. Source:
`transformers.core_model_loading`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError

_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"

# Names of an expert's three matrices: Mixtral's own, and those of all others, which gptqmodel writes for Mixtral too.
_EXPERT = re.compile(r"(?P<stem>.*\bexperts\.\d+)\.(?P<leaf>w1|w2|w3|gate_proj|down_proj|up_proj)\.weight")
_SYNONYMS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_SYNONYMS |= {name: short for short, name in _SYNONYMS.items()}


@dataclass(frozen=True)
class Joint:
    """Say where a checkpoint's matrix stands in a joined weight: which expert's, and which of its pieces."""

    target: str
    expert: int
    piece: int


class Converter:
    """One model's conversion rules.

    `layer_of` sorts the checkpoint's names by decoder layer; `fill` puts tensors where they belong.
    """

    def __init__(self, model: Any, prefix: str, dtype: torch.dtype) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._model = model
        self._wrapped_in: str = getattr(model, "checkpoint_prefix", "")
        self._dtype = dtype
        self._mapping = get_model_conversion_mapping(model)
        naming = deepcopy(self._mapping)  # matching a name marks a rule as used
        self._renamings = [rule for rule in naming if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in naming if isinstance(rule, WeightConverter)]
        self._layer = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        self._known = {name: value.is_floating_point() for name, value in model.state_dict().items()}
        self._ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ()) or r"(?!)")

    def target(self, name: str) -> tuple[str, bool]:
        """Translate a checkpoint's name; the flag says whether its tensor is joined with others or cut on the way."""
        from transformers.core_model_loading import rename_source_key

        prefix, name = self._model.base_model_prefix, name.removeprefix(self._wrapped_in)
        target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._known)
        if target not in self._known and name in self._known:
            return name, False
        return target, pattern is not None

    def familiar(self, name: str) -> str:
        """Call an expert's matrix as the model's own checkpoints do, where it has a name that leads nowhere."""
        found = _EXPERT.fullmatch(name)
        if found is None or self.target(name)[0] in self._known:
            return name
        synonym = f"{found['stem']}.{_SYNONYMS[found['leaf']]}.weight"
        return synonym if self.target(synonym)[0] in self._known else name

    def ignores(self, name: str) -> bool:
        """Tell the tensors that the model's own code leaves out on loading, such as further layers for drafting."""
        return bool(self._ignored.search(name) or self._ignored.search(self.target(name)[0]))

    def has_place(self, target: str) -> bool:
        """Tell whether the model has a tensor of this name."""
        return target in self._known

    def is_float(self, target: str) -> bool:
        """Tell whether the model's tensor of this name holds floating-point numbers."""
        return self._known.get(target, False)

    def joint(self, name: str) -> Joint | None:
        """Tell where a tensor stands in the weight it is joined into; None where joining is more than stacking rows."""
        from transformers.core_model_loading import Concatenate, MergeModulelist, rename_source_key

        prefix, name = self._model.base_model_prefix, name.removeprefix(self._wrapped_in)
        target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._known)
        rule = next((rule for rule in self._converters if pattern in rule.source_patterns), None)
        if rule is None or pattern is None:
            return None
        steps = [(type(step), step.dim) for step in rule.operations if isinstance(step, Concatenate | MergeModulelist)]
        stacking = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)], [(Concatenate, 0)])
        if len(steps) != len(rule.operations) or steps not in stacking:
            return None
        number = re.search(r"\bexperts\.(\d+)\.", name)
        is_expert = steps[0][0] is MergeModulelist
        if is_expert and number is None:
            return None
        return Joint(target, int(number[1]) if is_expert and number else 0, rule.source_patterns.index(pattern))

    def layer_of(self, target: str) -> int:
        """Tell the decoder layer that a model's tensor belongs to; −1 for embedding, final norm and head."""
        found = self._layer.match(target)
        return int(found[1]) if found else -1

    def fill(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Convert tensors and put them in their parameters' place, in the model's dtype.

        Raises:
            CheckpointError: a tensor has the wrong shape, belongs nowhere, or cannot be converted.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        mapping: list[Any] = deepcopy(self._mapping)
        config = LoadStateDictConfig(
            dtype=self._dtype,
            dtype_plan=self._model._get_dtype_plan(self._dtype),
            weight_mapping=mapping,
        )
        with _single_threaded():
            bare = {name.removeprefix(self._wrapped_in): tensor for name, tensor in tensors.items()}
            info, _ = convert_and_load_state_dict_in_model(self._model, bare, config)
        for name, found, expected in sorted(info.mismatched_keys):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(found)}, the config asks for {tuple(expected)}",
                "config.json and the weights belong to different models",
            )
        for name, reason in info.conversion_errors.items():
            raise CheckpointError(
                f"{where}: {name} cannot be put together: {str(reason).strip().splitlines()[-1]}",
                "tensors are missing or have the wrong shape",
            )
        for name in sorted(info.unexpected_keys):
            raise CheckpointError(
                f"{where}: the model has no place for the tensor {name}",
                "config.json and the weights belong to different models",
            )


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Keep transformers from converting in many threads: each would keep memory of its own for the next layers.

    (Measured: twice the growth of memory a layer. transformers reads this variable at every call.)
    """
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before
