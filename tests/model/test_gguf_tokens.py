"""The tokenizer of a GGUF file cuts words as its model's did, and a file whose way is not known is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import pre_tokenizers

from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint import embedded
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_tokens import read_gguf_tokenizer
from lowmem_layers.model.checkpoint.gguf_words import SPLITS, splitter
from tests.model.gguf_files import add_key

DATA = os.environ.get("LOWMEM_LAYERS_DATA")
TEXTS = [
    "It's 1990,  2 cats\n\n  3½ x²!  ", "def f(x):\n    return x**2 + 10\n", "Größe\u00a0 12,345.67 €",
    "DON'T we'LL  go\t7\r\n", "日本語123 한국어 العربية ٣٤", " leading  and trailing ", "a\n\n\nb 42",
    "iPhoneXS costs $999",
]  # fmt: skip


def words(way: Any, text: str) -> list[str]:
    return [word for word, _ in way.pre_tokenize_str(text)]


def sample() -> list[str]:
    """Take real strings where they are at hand: contexts of benchmarks."""
    files = sorted(Path(DATA).glob("*.jsonl")) if DATA else []
    lines = [line for path in files for line in path.read_text().splitlines()]
    return TEXTS + [" ".join(map(str, json.loads(line).values())) for line in lines[::10]]


def test_digits_stand_alone_for_smollm_as_its_published_tokenizer_has_them() -> None:
    published = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = splitter("smollm")
    for text in sample():
        assert words(ours, text) == words(published, text)


def test_gpt_2_is_the_librarys_own() -> None:
    for text in sample():
        assert words(splitter("gpt-2"), text) == words(pre_tokenizers.ByteLevel(add_prefix_space=False), text)


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("llama-bpe", "It's 12345!\n\nx", ["It", "'s", "Ġ", "123", "45", "!ĊĊ", "x"]),
        ("qwen2", "It'S 12 x", ["It", "'S", "Ġ", "1", "2", "Ġx"]),
        ("gpt-4o", "iPhoneXS's 1234/", ["i", "Phone", "XS's", "Ġ", "123", "4", "/"]),
        ("tekken", "iPhone's 12", ["i", "Phone", "'s", "Ġ", "1", "2"]),
        ("command-r", "a  12", ["a", "ĠĠ", "1", "2"]),
        ("falcon", "a=12345", ["a", "=", "123", "45"]),
        ("deepseek-coder", "x = 12\n", ["x", "Ġ=Ġ", "1", "2", "Ċ"]),
        ("deepseek-v3", "f(abc) 1234", ["f", "(abc", ")", "Ġ", "123", "4"]),
        ("deepseek-llm", "Hi, 12\n x", ["Hi", ",", "Ġ", "12", "Ċ", "Ġx"]),
        ("bloom", "a, bc 12!", ["a", ",", "Ġbc", "Ġ12", "!"]),
        ("viking", "a 12", ["a", "Ġ", "1", "2"]),
        ("kimi-k2", "iPhone日本語's 1234", ["i", "Phone", "æĹ¥æľ¬èªŀ", "'s", "Ġ", "123", "4"]),
        ("seed-coder", "a!!\n1", ["a", "!!", "Ċ", "1"]),
        ("tiny_aya", "1234567", ["1", "234", "567"]),
        ("qwen35", "ก่อน 12", ["à¸ģà¹Īà¸Ńà¸Ļ", "Ġ", "1", "2"]),
    ],
)
def test_words_of_a_way(pre: str, text: str, expected: list[str]) -> None:
    assert words(splitter(pre), text) == expected


def test_every_way_can_be_built_and_loses_nothing() -> None:
    for pre in SPLITS:
        for text in TEXTS:
            ends = [end for _, end in splitter(pre).pre_tokenize_str(text)]
            assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
            assert ends[-1][1] == len(text)


def write_vocabulary(path: Path, keys: dict[str, Any]) -> None:
    """Write a byte-level vocabulary of single bytes, one merge, and a word that no merge makes."""
    writer = gguf.GGUFWriter(path, "llama")
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "dog"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["1 2"])
    for key, value in ({"model": "gpt2", "bos_token_id": 0, "eos_token_id": 1} | keys).items():
        add_key(writer, f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def tokens_of(path: Path, text: str) -> list[str]:
    tokenizer = read_gguf_tokenizer(read_gguf_header(path))
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_the_files_way_and_its_flags_are_applied(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_vocabulary(path, {"pre": "gpt-2"})
    assert tokens_of(path, "12 dog") == ["12", "Ġ", "d", "o", "g"]
    write_vocabulary(path, {"pre": "smollm", "add_bos_token": True})
    assert tokens_of(path, "12dog") == ["<s>", "1", "2", "d", "o", "g"]
    write_vocabulary(path, {"pre": "llama-bpe"})  # begins with its own token unless told not to; takes whole words
    assert tokens_of(path, "dog12") == ["<s>", "dog", "12"]
    write_vocabulary(path, {"pre": "llama-bpe", "add_bos_token": False})
    assert tokens_of(path, "dog") == ["dog"]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentence_piece_vocabulary_begins_with_a_space_or_not(prefix: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "▁", "▁a"])
    writer.add_token_scores([0.0, 0.0, 0.0, -3.0, -2.0, -1.0])
    writer.add_token_types([2, 3, 3, 1, 1, 1])
    for name, number in (("unknown", 0), ("bos", 1), ("eos", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert tokens_of(path, "a a") == ["<s>", "▁a" if prefix else "a", "▁a"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pre": "martian"}, r"x\.gguf names the pre-tokenizer 'martian', which is not known here"),
        ({}, r"x\.gguf names no pre-tokenizer"),
        ({"pre": "gpt-2", "model": "rwkv"}, r"x\.gguf has a vocabulary of kind 'rwkv'"),
        ({"pre": "gpt-2", "magic": 1}, r"the key tokenizer\.ggml\.magic is not known here"),
        ({"pre": "gpt-2", "remove_extra_whitespaces": True}, r"remove_extra_whitespaces is on"),
    ],
)
def test_an_unknown_way_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "x.gguf", keys)
    with pytest.raises(ModelError, match=message) as caught:
        read_gguf_tokenizer(read_gguf_header(tmp_path / "x.gguf"))
    assert caught.value.hint


@pytest.mark.skipif(embedded.find_embedded_model() is None, reason="needs the embedded model")
def test_the_embedded_model_has_single_digits() -> None:
    path = embedded.find_embedded_model()
    assert path is not None
    assert tokens_of(path, "a  12") == ["a", "ĠĠ", "1", "2"]  # as GPT-2 cuts it: one space, then a space before 12
