"""A format for each sublayer: chosen by one half of the items, measured on the other, said in other programs' words."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.allotting import KEEP, check_runs, measured
from lowmem_layers.acting.bit_files import skipped_modules, tensor_types, write_files
from lowmem_layers.acting.mixtures import Contender, bits_in, bits_of, contenders, measure_contenders
from lowmem_layers.engine import Changes
from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.player import players_of
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.change import parse_change
from lowmem_layers.model.homes.places import streamed_places
from tests.dictionary import Bench, DictionaryEngine

NEED = np.array([3.0, 0.1, 0.5, 2.0, 0.05, 0.2])  # what each sublayer loses by 4.5 bits, in nats
SHARE = {"q4_0": 1.0, "q5_0": 0.3, "q8_0": 0.01, "nf4": 1.0}
NUMBERS = [100, 200, 100, 200, 100, 200]


@dataclass
class ChangingEngine(DictionaryEngine):
    """Answer as if losses added up over sublayers: by their need and their format, but for noise of the items."""

    changes: Changes | None = field(default=None)
    together: float = 0.0  # what the first two lose besides, when both are changed

    def changed(self, changes):
        return ChangingEngine(self.seed, self.tile_items, changes=changes, together=self.together)

    def _block(self, item, coalitions):
        noise = np.random.default_rng([7, item.choices[0].tokens[1], len(item.task)])
        base, wobble = -noise.exponential(3.0, len(item.choices)), noise.normal(1.0, 0.05, 6)
        rows = []
        for changed in coalitions:
            share = [SHARE[self.changes.of[i].format.name] for i in changed]
            lost = sum(NEED[i] * wobble[i] * s for i, s in zip(changed, share, strict=True))
            lost += self.together * ({0, 1} <= set(changed))
            rows.append(base - lost)
        return np.array(rows)


def run_of(folder, name, together=0.0, max_removed=2):
    change = parse_change(f"quantise:{name}")
    bench = Bench(engine=ChangingEngine(changes=Changes.alike(6, change), together=together), n_items=40)
    spec = StudySpec(tasks=("one", "three"), max_removed=max_removed, change=change.name)
    return SimpleNamespace(run=run_study(spec, folder / name, prepare=bench.prepare), bench=bench)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits")
    return {name: run_of(folder, name) for name in ("q4_0", "q5_0", "q8_0", "nf4")}


def known_of(studies, names=("q8_0", "q4_0", "q5_0"), value="loglikelihood"):
    return measured([studies[name].run for name in names], value, None)


def test_the_sublayers_that_need_bits_get_them(studies):
    known = known_of(studies)
    assert [option.name for option in known.options] == ["q4_0", "q5_0", "q8_0"]
    chosen = known.choose(NUMBERS, 5.6)
    assert bits_of(known, chosen, NUMBERS) <= 5.6
    assert chosen[0] == 2
    assert chosen[3] > chosen[1], "the need decides, not the place"
    assert set(known.choose(NUMBERS, 4.5)) == {0}
    assert set(known.choose(NUMBERS, 8.5)) == {2}
    with pytest.raises(UsageError, match=r"--budget 4 is not a number of at least 4\.5"):
        known.choose(NUMBERS, 4.0)
    for endless in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="is not a number of at least"):
            known.choose(NUMBERS, endless)


def test_a_mixture_is_measured_on_held_out_items_beside_uniform_and_random_ones(studies):
    known = known_of(studies)
    chosen = known.choose(NUMBERS, 5.6)
    prepared = studies["q4_0"].bench.prepare(known.runs[0].manifest.resolved, lambda _: None)
    others = contenders(known, chosen, NUMBERS, 5.6, prepared, seed=0, say=lambda _: None)
    assert [each.name for each in others] == ["chosen", "all q4_0", "all q5_0", "all q8_0", "random (5 deals)"]
    assert {bits_of(known, mixture, NUMBERS) for mixture in others[-1].mixtures} == {others[0].bits}
    table = measure_contenders(known, prepared, others, "loglikelihood", lambda _: None).to_pylist()
    rows = {row["version"]: row for row in table if row["task"] == "all"}
    for each in others[:-1]:
        exact = sum(NEED[i] * SHARE[known.options[option].name] for i, option in enumerate(each.mixtures[0]))
        row = rows[each.name]
        assert row["loss"] == pytest.approx(exact, rel=0.05)
        assert row["foreseen"] == pytest.approx(exact, rel=0.05)
        assert row["foreseen_ci_low"] < row["foreseen"] < row["foreseen_ci_high"]
    assert rows["chosen"]["loss"] < min(rows["random (5 deals)"]["loss"], rows["all q5_0"]["loss"])
    n_held = rows["chosen"]["n_items"]
    assert 0 < n_held < sum(task.items for task in known.runs[0].manifest.data)
    assert {row["task"] for row in table} == {"one", "three", "all"}


def test_the_choice_sees_only_its_half(studies):
    known = known_of(studies)
    n_seen = sum(table.n_items for table in known.tables[0])
    n_all = sum(task.items for task in known.runs[0].manifest.data)
    prepared = studies["q4_0"].bench.prepare(known.runs[0].manifest.resolved, lambda _: None)
    one = [Contender("x", ((0,) * 6,), 4.5)]
    (row,) = [r for r in measure_contenders(known, prepared, one, "loglikelihood", lambda _: None).to_pylist()
              if r["task"] == "all"]  # fmt: skip
    assert n_seen + row["n_items"] == n_all


def test_neighbours_that_cost_more_together_are_foreseen_so(tmp_path):
    runs = [run_of(tmp_path, name, together=5.0).run for name in ("q4_0", "q8_0")]
    known = measured(runs, "loglikelihood", None)
    assert known.pairs is not None
    assert known.pairs[0] == pytest.approx(np.full((2, 2), 5.0), rel=1e-6)
    assert not known.pairs[1:].any()
    assert known.foreseen([(0,) * 6])[0][0] == pytest.approx(NEED.sum() + 5.0, rel=0.05)
    assert "with the significant interactions" in known.words
    assert known_of({"q4_0": SimpleNamespace(run=run_of(tmp_path / "1", "q4_0", 5.0, 1).run)}, ("q4_0",)).pairs is None


def test_a_model_may_keep_sublayers_as_they_are(studies):
    known = measured([studies["nf4"].run], "loglikelihood", 16.0)
    chosen = known.choose(NUMBERS, 6.5)
    assert [known.options[option].name for option in chosen] == [KEEP, "nf4", "nf4", "nf4", "nf4", "nf4"]
    assert known.foreseen([chosen])[0][0] == pytest.approx(NEED[1:].sum(), rel=0.05)


@pytest.mark.parametrize(("names", "message"), [
    (("q4_0", "nf4"), "no program runs these formats in one model: q4_0, nf4"),
    (("q4_0", "q4_0"), "two runs are of one format"),
])  # fmt: skip
def test_runs_that_cannot_be_mixed_are_refused(studies, names, message):
    with pytest.raises(UsageError, match=message):
        check_runs([studies[name].run for name in names])


def test_a_run_of_removals_or_of_other_items_is_refused(studies, tmp_path, finished):
    with pytest.raises(UsageError, match="its sublayers were removed, not quantised"):
        check_runs([finished])
    few = Bench(engine=ChangingEngine(changes=Changes.alike(6, parse_change("quantise:q8_0"))), n_items=30)
    spec = StudySpec(tasks=("one", "three"), max_removed=2, change="quantise:q8_0")
    other = run_study(spec, tmp_path / "few", prepare=few.prepare)
    with pytest.raises(UsageError, match="did not measure the same items"):
        check_runs([studies["q4_0"].run, other])


def test_llama_quantize_finds_each_sublayers_tensors_and_no_others():
    players = players_of(["ffn"] * 12)
    formats = ["q4_0" if player.layer % 2 else "q8_0" for player in players]
    lines = tensor_types(players, formats)
    patterns = [re.fullmatch(r'--tensor-type "(.+)=(\w+)"', line).groups() for line in lines]
    for player, name in zip(players, formats, strict=True):
        for tensor in ("attn_q", "attn_output") if player.kind == "attn" else ("ffn_gate", "ffn_down_exps"):
            hits = {kind for pattern, kind in patterns if re.search(pattern, f"blk.{player.layer}.{tensor}.weight")}
            assert hits == {name}
    assert not any(
        re.search(pattern, name) for pattern, _ in patterns for name in ("output.weight", "token_embd.weight")
    )
    with pytest.raises(UsageError, match=r"mixer.0: llama.cpp's names"):
        tensor_types([SimpleNamespace(kind="mixer", layer=0, name="mixer.0")], ["q4_0"])


def test_what_a_format_takes_is_counted_matrix_by_matrix(studies):
    """Rows of 96 are no blocks of 256: a sublayer's bits are those of the formats that its matrices get."""
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
    ))  # fmt: skip
    anatomy = dissect(module)
    found = SimpleNamespace(anatomy=anatomy, places=list(streamed_places(anatomy, "model.layers", torch.float32)))
    q3_k = parse_change("quantise:q3_k").format
    attention, feed_forward = bits_in(found)(q3_k)
    assert attention == 4.5  # q4_0 stands in for rows of 96
    assert feed_forward == pytest.approx((2 * 4.5 + 3.4375) / 3)  # gate and up have rows of 96, down of 256
    known = measured([studies["q4_0"].run], "loglikelihood", None, lambda _: np.array([4.0, 5.0, 4.0, 5.0, 4.0, 5.0]))
    assert bits_of(known, (0,) * 6, NUMBERS) == pytest.approx(4 / 3 + 5 * 2 / 3)
    with pytest.raises(UsageError, match=r"--budget 4\.6 is not a number of at least 4\.66667"):
        known.choose(NUMBERS, 4.6)


@pytest.mark.slow
def test_transformers_quantises_just_what_the_settings_say(studies, tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    module = transformers.LlamaForCausalLM(config)
    found = SimpleNamespace(anatomy=dissect(module), prefix="model.layers", module=module)
    formats = ["nf4"] * 24
    formats[2] = formats[23] = KEEP  # attention of layer 1 (not of 10 and 11), feed-forward of layer 11
    skipped = skipped_modules(found, formats)
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    linear = {path: type(part).__name__ for path, part in loaded.named_modules() if hasattr(part, "weight")}
    plain = {path for path, kind in linear.items() if kind == "Linear"}
    assert "lm_head" in plain
    kept = {path for path in plain if path.startswith("model.layers.")}
    assert kept == {f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"} | {
        f"model.layers.11.mlp.{name}_proj" for name in ("gate", "up", "down")
    }


@pytest.mark.parametrize(("name", "file", "gguf"), [
    ("q4_0", "llama-quantize.sh", None),
    ("q4_0", "llama-quantize.sh", "/my models/a.gguf"),
    ("nf4", "quantization_config.json", None),
])  # fmt: skip
def test_a_mixture_is_written_for_the_program_that_runs_it(studies, tmp_path, name, file, gguf):
    known = measured([studies[name].run], "loglikelihood", 16.0 if name == "nf4" else None)
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    ))  # fmt: skip
    source = SimpleNamespace(gguf_path=gguf and Path(gguf))
    found = SimpleNamespace(anatomy=dissect(module), prefix="model.layers", module=module, source=source)
    (said,) = write_files(found, known, (0,) * 6, tmp_path / "out")
    assert file in said
    text = (tmp_path / "out" / file).read_text()
    if name == "nf4":
        assert json.loads(text)["bnb_4bit_quant_type"] == "nf4"
        assert json.loads(text)["llm_int8_skip_modules"] == ["lm_head"]
    else:
        words = shlex.split(text.replace("\\\n", ""))
        own = ["--allow-requantize", "--tensor-type"] if gguf else ["--tensor-type"]
        assert words[: 1 + len(own)] == ["llama-quantize", *own]
        assert words[-3:] == [gguf or "model-f16.gguf", "mixture.gguf", name]
        assert text.count("--tensor-type") == 6
    assert (tmp_path / "out" / "formats.csv").read_text().splitlines()[1] == f"attn.0,{name}"
    with pytest.raises(UsageError):
        write_files(found, known, (0,) * 6, tmp_path / "out")


class AlwaysRight(ChangingEngine):
    """Give the right answer whatever is changed: no item tells anything of a loss of accuracy."""

    def changed(self, changes):
        return AlwaysRight(self.seed, self.tile_items, changes=changes)

    def _block(self, item, coalitions):
        row = np.full(len(item.choices), -3.0)
        row[item.gold] = -1.0
        return np.tile(row, (len(coalitions), 1))


def test_accuracies_have_the_intervals_of_accuracies(tmp_path):
    """A dozen items that all stay right do not prove a loss of exactly 0, and no accuracy lies outside 0 and 1."""
    change = parse_change("quantise:q4_0")
    bench = Bench(engine=AlwaysRight(changes=Changes.alike(6, change)), n_items=30)
    spec = StudySpec(tasks=("one", "three"), max_removed=2, change=change.name)
    known = measured([run_study(spec, tmp_path / "r", prepare=bench.prepare)], "acc", None)
    assert (known.loss == 0).all()
    assert (known.upper > 0.05).all(), "what no item has lost may still be lost by others"
    _, foreseen = known.foreseen([(0,) * 6])
    assert foreseen.low[0] < -0.05 < 0.05 < foreseen.high[0]
    prepared = bench.prepare(known.runs[0].manifest.resolved, lambda _: None)
    table = measure_contenders(known, prepared, [Contender("x", ((0,) * 6,), 4.5)], "acc", lambda _: None).to_pylist()
    for row in table:
        assert row["value"] == 1.0
        assert 0.5 < row["ci_low"] < 0.95
        assert row["ci_high"] == 1.0
        assert row["loss_ci_low"] < -0.02 < 0.02 < row["loss_ci_high"]
