"""Models whose layers are driven as a whole: what cannot be done with them is refused with the reason."""

from __future__ import annotations

import pytest

from benchmarks.families_build import tiny_model
from lowmem_layers.acting.prune import FORMS, write_pruned
from lowmem_layers.acting.reading import inspect_dense
from lowmem_layers.engine import Changes
from lowmem_layers.engine.trunk import branch_means, trunk_statistics
from lowmem_layers.errors import ModelError, RemovalError, UsageError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.change import parse_change
from lowmem_layers.model.spec import ModelSpec
from tests.engine.conftest import random_items
from tests.model.conftest import tiny_tokenizer

WHY = {
    "longcat_flash": "a decoder layer holds two attentions and several feed-forwards, which are removed together",
    "rwkv": "what a layer does with embeddings beside its sublayers stays when these are removed",
}
ZEROED = "with its last matrices zeroed .* a layer still differs from one without ffn"
LLAMA = "the form nemotron takes models of the type llama, and this is"


@pytest.mark.parametrize("family", [pytest.param("longcat_flash", marks=pytest.mark.slow), "rwkv"])
def test_what_needs_single_sublayers_is_refused_with_the_reason(family, tmp_path):
    module = tiny_model(family)
    module.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = DecoderModel(module)
    model.examine()
    # 1) proxies, mean outputs, sublayers that run twice
    for measure in (trunk_statistics, branch_means):
        with pytest.raises(RemovalError, match=f"cannot be seen on its own: {WHY[family]}"):
            measure(model, random_items(1), 1 << 30)
    for change in ("mean", "repeat"):
        with pytest.raises(UsageError, match=f"needs layers that add one sublayer after another: {WHY[family]}"):
            Changes.alike(len(model.players), parse_change(change)).check(model)
    Changes.alike(len(model.players), parse_change("quantise:nf4")).check(model)
    # 2) checkpoints in which a sublayer is silent
    found = inspect_dense(ModelSpec(model=str(tmp_path / "model"), dtype="float32"), None)
    for form, kind, why in (("zeroed", RemovalError, ZEROED), ("nemotron", ModelError, LLAMA)):
        with pytest.raises(kind, match=why):
            write_pruned(found, (1,), FORMS[form], tmp_path / form, print)
        assert not (tmp_path / form).exists()
