"""A model without its weights: transformers' own modules, built from the config; its parameters take no memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from logging import CRITICAL
from typing import Any

import torch
from torch import nn

from lowmem_layers.errors import ModelError
from lowmem_layers.model.anatomy.dissection import passed_by_text, text_config, text_decoder
from lowmem_layers.model.memory import is_shortage

_BY_TIMM = ("timm_wrapper", "gemma3n_vision")  # towers that need a package of their own (FastVLM, Perception LM)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' reports and progress bars off the terminal; errors still come as exceptions."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def build_skeleton(config: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """Build the causal language model of a config with its parameters on the meta device and its buffers computed.

    Parameters have the dtype that transformers' loader would give them: `dtype`, or float32 for those that it keeps so
    whatever is asked for (some mixtures' routers). Source: `PreTrainedModel._get_dtype_plan` and
    `transformers.core_model_loading`.

    Of a multimodal model, only what its text needs is kept: see `drop_towers`.

    Raises:
        ModelError: transformers has no causal language model for this config.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
    from transformers.core_model_loading import build_glob_alternation
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    plain = deepcopy(getattr(config, "thinker_config", None) or config)  # Qwen-Omni's part that reads and writes text
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    if getattr(getattr(plain, "vision_config", None), "model_type", None) in _BY_TIMM:
        vars(plain)["vision_config"] = _another_tower(plain.vision_config)  # past a check of its type
    if getattr(plain, "rescale_every", 0):
        plain.rescale_every = 0  # RWKV halves weights in place and states between layers, only to suit float16
    try:
        with _weightless():
            # Llama 3.2 Vision's folders have the names of the class for pictures and text.
            is_causal = plain.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or hasattr(plain, "auto_map")
            is_causal = is_causal and not passed_by_text(plain.get_text_config())
            auto = AutoModelForCausalLM if is_causal else AutoModelForMultimodalLM
            model = auto.from_config(plain, dtype=dtype, trust_remote_code=trust_remote_code)
    # A config's numbers go into the family's own code unchecked, so anything may come of a damaged one.
    except Exception as error:
        if is_shortage(error):
            raise
        first_line = str(error).strip().split("\n")[0]
        if isinstance(error, KeyError):  # which holds nothing but the word: a kind of rotary scaling, an activation
            first_line = f"it asks for {first_line}, which is not known"
        raise ModelError(
            f"no causal language model can be built from this config: {first_line}",
            "the numbers in config.json make no model; download or save it again",
        ) from error
    model = _text_only(model)
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if plan:
        in_float32 = build_glob_alternation(list(plan))[0]
        for name in [name for name, _ in model.named_parameters() if in_float32.search(name)]:
            set_tensor(model, name, model.get_parameter(name).data.to(torch.float32))
    return model.eval().requires_grad_(False)


@contextmanager
def _weightless() -> Iterator[None]:
    """Keep the parameters of modules that are built in a `with` block on the meta device; buffers are computed."""
    register = nn.Module.register_parameter

    def register_without_data(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None:
            empty = torch.empty_like(param.data, device="meta")
            self._parameters[name] = nn.Parameter(empty, requires_grad=param.requires_grad)

    nn.Module.register_parameter = register_without_data
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _another_tower(tower: Any) -> Any:
    """Give the config of a tower of the same width that needs no timm, which text meets as little as the own one."""
    from transformers import SiglipVisionConfig

    own = {name: value for name, value in tower.to_dict().items() if name not in ("model_type", "architectures")}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28, "patch_size": 14}
    return SiglipVisionConfig(**{**own, **sizes})


class Absent(nn.Module):
    """Stands where a multimodal model has a module that its text does not go through; whoever calls it is refused."""

    device = torch.device("cpu")  # Qwen2-Audio asks its tower for it before it looks whether there is any sound

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def forward(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse.

        Raises:
            ModelError: always; text must not get here.
        """
        raise ModelError(
            f"text goes through {self._name}, which is not a part of the model's text decoder",
            "lowmem-layers takes the decoder of a multimodal model; this one needs more than that",
        )


def _text_only(model: Any) -> Any:
    """Keep of a model what its text needs: see `drop_towers`.

    Raises:
        ModelError: tokens do not come in by one matrix and go out by one, or a weight is shared with what was dropped.
    """
    model = _language_model_of(model)
    drop_towers(model)
    name, hint = type(model).__name__, "lowmem-layers takes decoder-only language models"
    try:
        embeddings = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
        model.tie_weights()
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{name}: its decoder shares weights with parts that text does not meet", hint) from error
    for place, module in embeddings.items():
        if not isinstance(getattr(module, "weight", None), torch.Tensor):
            raise ModelError(f"{name}: its {place} embedding is not one matrix with a row for each token", hint)
    if name.endswith("ThinkerForConditionalGeneration"):
        _leave_out(model, r"^(talker|token2wav|code2wav)\.")  # the parts of Qwen-Omni that speak
    return model


def drop_towers(model: Any) -> None:
    """Take out of a multimodal model what pictures, films and sounds go through.

    A module goes if it stands beside the path from the model to its text decoder and holds no output embedding, if it
    is a tower with a config of its own inside the decoder, or a decoder layer that text alone passes by. Its tensors in
    a checkpoint count as ones that the model's own code leaves out on loading.
    """
    decoder, head, config = text_decoder(model), model.get_output_embeddings(), text_config(model)
    path = next(name for name, module in model.named_modules() if module is decoder)
    # 1) decoder layers that attend to pictures alone (Llama 3.2 Vision)
    passed = [index for index in passed_by_text(config) if index < config.num_hidden_layers]
    dropped = [".".join(part for part in (path, f"layers.{index}") if part) for index in passed]
    # 2) whatever stands beside the decoder
    parts = path.split(".") if decoder is not model and config is not model.config and head is not None else []
    for depth, part in enumerate(parts):
        parent = model.get_submodule(".".join(parts[:depth]))
        for name, child in list(parent.named_children()):
            if name != part and head not in set(child.modules()) and any(True for _ in child.parameters()):
                dropped.append(".".join([*parts[:depth], name]))
    # 3) towers inside it (GIT)
    towers = [getattr(model.config, name, None) for name in ("vision_config", "audio_config")]
    for name, child in decoder.named_children():
        if any(getattr(child, "config", None) is tower for tower in towers if tower is not None):
            dropped.append(".".join(part for part in (path, name) if part))
    for name in dropped:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Absent(name))
    _leave_out(model, *(rf"^{re.escape(name)}\." for name in dropped))


def _language_model_of(model: Any) -> Any:
    """Take the causal language model that a multimodal one wraps, where the whole takes no text without pictures.

    (BLIP-2, InstructBLIP, Kosmos-2; Nemotron Omni hides its output embedding.) `checkpoint_prefix` says what stands
    before its tensors' names in a checkpoint; those of all other parts are left out.
    """
    name = next((name for name in ("language_model", "text_model") if hasattr(model, name)), "")
    inner: Any = getattr(model, name, None)
    parameters = signature(model.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    takes_text = all(p.name == "input_ids" for p in needed) and model.main_input_name != "pixel_values"
    takes_text = takes_text and model.get_output_embeddings() is not None
    if takes_text or not type(inner).__name__.endswith("ForCausalLM"):
        return model
    others = [other for other, _ in (*model.named_children(), *model.named_parameters(recurse=False))]
    _leave_out(inner, *(rf"^{re.escape(other)}(\.|$)" for other in others if other != name))
    inner.checkpoint_prefix = f"{name}."
    return inner


def _leave_out(model: Any, *patterns: str) -> None:
    """Count tensors whose names match as ones that the model's own code leaves out on loading."""
    model._keys_to_ignore_on_load_unexpected = [*(model._keys_to_ignore_on_load_unexpected or ()), *patterns]


def layers_prefix(model: nn.Module, layer: nn.Module) -> str:
    """Name the list that holds the decoder layers: `model.layers`."""
    path = next(name for name, module in model.named_modules() if module is layer)
    return path.rpartition(".")[0]


def set_tensor(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor in a parameter's or buffer's place."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if attribute in module._buffers:
        module._buffers[attribute] = value
    else:
        module._parameters[attribute] = nn.Parameter(value, requires_grad=False)
