"""How a byte-level vocabulary in a GGUF file cuts text into words before its merges apply: the file's `pre`.

A vocabulary's merges were learned on words cut in one way; cut otherwise, the same text gives other tokens. Each way
is a row of regular expressions, applied one after the other to what the one before left whole. Source: the published
tokenizers' own `pre_tokenizer`, by the names of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

from typing import Any

_SUFFIXES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English: it's, don't, we're
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES


def _words(
    digits: str, letter: str = r"\p{L}", beside: str = r"\p{L}\p{N}", lines: str = r"[\r\n]*", suffixes: str = _SUFFIXES
) -> str:
    """Spell the pattern that GPT-4 began, for runs of `digits`; `beside` is what punctuation is not."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{letter}+"
    parts = [suffixes, word, digits, rf" ?[^\s{beside}]+{lines}", _LINES, _SPACES]
    return "|".join(part for part in parts if part)


def _cased(digits: str, suffixes: str, but: str = "", lines: str = r"[\r\n/]*") -> str:
    """Spell the pattern that GPT-4o began: a word, whose letters are none of `but`, breaks before a capital letter."""
    big, small = (rf"[{first}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]" for first in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
    before = r"[^\r\n\p{L}\p{N}]?"
    lower, upper = f"{before}{big}*{small}+{suffixes}", f"{before}{big}+{small}*{suffixes}"
    return "|".join([lower, upper, digits, rf" ?[^\s\p{{L}}\p{{N}}]+{lines}", _LINES, _SPACES])


_CHINESE, _KANA = "\u4e00-\u9fa5", "\u3040-\u309f\u30a0-\u30ff"
_DEEPSEEK_V3 = "|".join(
    [
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _SPACES,
    ]
)  # fmt: skip

# DeepSeek LLM's words are of letters that have a case, as an older table of them lists these.
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u0560-\u0588\u10c7-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d\ua790-\ua7fa\uab30-\uab68"
    r"\x{10570}-\x{105bc}\x{10d50}-\x{10d85}\x{16e40}-\x{16e7f}\x{1d400}-\x{1d7cb}\x{1df00}-\x{1df2a}]]"
)
_DEEPSEEK_LLM = (
    r"[\r\n]", rf"\s?{_CASED}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
    f"[{_CHINESE}\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}+",
)  # fmt: skip
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BAILING = "|".join(
    [
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]",
        _SPACES,
    ]
)
_EXAONE_MOE = "|".join(
    [
        _SUFFIXES, r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
        r"\s*[\r\n]", _SPACES,
    ]
)  # fmt: skip

_BY_GPT2 = (_GPT2,)
_BY_DIGIT = (r"\p{N}", _GPT2)
_BY_LLAMA_3 = (_words(r"\p{N}{1,3}"),)
_BY_QWEN_2 = (_words(r"\p{N}"),)
_BY_GPT_4O = (_cased(r"\p{N}{1,3}", f"{_SUFFIXES}?"),)
_BY_DEEPSEEK_V3 = (r"\p{N}{1,3}", f"[{_CHINESE}{_KANA}]+", _DEEPSEEK_V3)

_LIKE = {
    _BY_GPT2: "gpt-2 phi-2 mpt olmo exaone4 a.x-4.0 mellum trillion gigachat jais granite-docling",
    _BY_DIGIT: "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    _BY_LLAMA_3: "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe chatglm-bpe glm4",
    _BY_QWEN_2: "qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan f2llmv2 solar-open grok-2",
    _BY_GPT_4O: "gpt-4o llama4 kanana2 talkie minimax-m2",
    _BY_DEEPSEEK_V3: "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    (_BLOOM,): "bloom poro-chat gpt3-finnish",
    (_BAILING,): "bailingmoe bailingmoe2 llada-moe",
    (r"\d{1,3}(?=(?:\d{3})*\b)", *_BY_GPT_4O): "tiny_aya cohere2moe",
}

SPLITS: dict[str, tuple[str, ...]] = {
    **{name: way for way, names in _LIKE.items() for name in names.split()},
    "qwen35": (_words(r"\p{N}", r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}"),),
    "tekken": (_cased(r"\p{N}", ""),),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_CHINESE}\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"),
    "deepseek-llm": _DEEPSEEK_LLM,
    "viking": (_BLOOM, r"\p{N}"),
    "kimi-k2": (r"\p{Han}+|" + _cased(r"\p{N}{1,3}", f"{_SUFFIXES}?", r"&&[^\p{Han}]", r"[\r\n]*"),),
    "seed-coder": (_words(r"\p{N}", beside=r"\p{L}\p{N}\r\n", lines=""),),
    "exaone-moe": (_EXAONE_MOE,),
    "minicpm5": (r"\p{N}{1,3}", _words(r"\p{N}+")),
    "laguna": (r"[^\n]+|\n+", *_BY_QWEN_2),
    "ufakzeka": (_words(r"\p{N}", suffixes=""),),
}

# These vocabularies take a whole word that is a token as it is, and begin a text with a token of their own.
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")


def splitter(kind: str) -> Any:
    """Build the pre-tokenizer for a `pre` of `SPLITS`."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in SPLITS[kind]]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
