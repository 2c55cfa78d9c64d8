"""Which of a GGUF file's tensors make up one of the model's, and which may stay unread.

Names are translated by the `gguf` package, but for those that are no `weight` or `bias`. Source: llama.cpp's
`convert_hf_to_gguf.py` and the tensors that its graphs ask for.
"""

from __future__ import annotations

import re
from typing import Any

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from lowmem_layers.model.checkpoint.gguf_family import Family
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader, GgufTensor
from lowmem_layers.model.checkpoint.gguf_rope import FACTORS

EXPERTS = re.compile(r".*\.(?P<layer>\d+)\.(?:mlp\.)?experts\.(?P<stack>gate_up_proj|down_proj)(?P<bias>_bias)?")
CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")  # GPT-2's name for a linear layer that is transposed
JOINT = re.compile(r".*\.(?P<layer>\d+)\.linear_attn\.in_proj_qkvz\.weight")

LATENT = re.compile(r".*\.(?P<layer>\d+)\.self_attn\.kv_b_proj\.weight")

_STACKS = {"gate_up_proj": ("ffn_gate", "ffn_up"), "down_proj": ("ffn_down",)}
# computed by llama.cpp as by transformers, and left out by its converter since 2023
_COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")
# the end of a name in the model, and in the file
_OTHERS = {
    "self_attn.sinks": "attn_sinks.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
    "layer_scalar": "layer_output_scale.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
_OTHER = re.compile(r".*\.(?P<layer>\d+)\.(?P<name>" + "|".join(map(re.escape, _OTHERS)) + ")")


class GgufNames:
    """The names of one file's tensors."""

    def __init__(self, header: GgufHeader, family: Family, config: Any) -> None:
        self._tensors, self._n_layers = header.tensors, config.num_hidden_layers
        n_drafts = header.metadata.get(f"{header.architecture}.nextn_predict_layers", 0) if family.drafts else 0
        self._drafts = range(self._n_layers, self._n_layers + n_drafts)
        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
        self._map = get_tensor_name_map(arch, self._n_layers)

    def sources(self, name: str, n_experts: int) -> dict[str, GgufTensor | None]:
        """Find the file's tensors that make up one of the model's, by the names that messages use.

        A stack of experts is one stack or two in the file, or as many tensors an expert; any other tensor is one, None
        where the file lacks it. `n_experts` is how many experts a stack has.
        """
        if (experts := EXPERTS.fullmatch(name)) is not None:
            stems = [f"blk.{experts['layer']}.{part}" for part in _STACKS[experts["stack"]]]
            ending, fused = "bias" if experts["bias"] else "weight", f"blk.{experts['layer']}.ffn_gate_up_exps.weight"
            if f"{stems[0]}.0.weight" in self._tensors:
                parts = [f"{stem}.{expert}.weight" for expert in range(n_experts) for stem in stems]
            elif len(stems) > 1 and fused in self._tensors:
                parts = [fused]
            else:
                parts = [f"{stem}_exps.{ending}" for stem in stems]
            return {part: self._tensors.get(part) for part in parts}
        if (joint := JOINT.fullmatch(name)) is not None:
            block = f"blk.{joint['layer']}."
            kinds = ("ssm_in",) if f"{block}ssm_in.weight" in self._tensors else ("attn_qkv", "attn_gate")
            return {f"{block}{kind}.weight": self._tensors.get(f"{block}{kind}.weight") for kind in kinds}
        if (latent := LATENT.fullmatch(name)) and f"blk.{latent['layer']}.attn_k_b.weight" in self._tensors:
            halves = [f"blk.{latent['layer']}.attn_{kind}_b.weight" for kind in ("k", "v")]
            return {half: self._tensors.get(half) for half in halves}
        if (other := _OTHER.fullmatch(name)) is not None:
            return {name: self._tensors.get(f"blk.{other['layer']}.{_OTHERS[other['name']]}")}
        stem, _, suffix = name.rpartition(".")
        return {name: self._tensors.get(f"{self._map.get_name(stem)}.{suffix}")}

    def may_stay_unread(self, name: str) -> bool:
        """Tell the tensors that change no numbers: they are read elsewhere, computed, or not used by the graph."""
        if name in FACTORS or _COMPUTED.fullmatch(name):
            return True
        block = re.match(r"blk\.(\d+)\.", name)  # further blocks guess the token after the next
        return block is not None and int(block[1]) in self._drafts
