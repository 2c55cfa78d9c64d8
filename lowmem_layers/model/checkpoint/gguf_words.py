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


def _words(digits: str, letter: str = r"\p{L}", beside: str = r"\p{L}\p{N}") -> str:
    """Spell the pattern that GPT-4 began, for runs of `digits`; `beside` is what punctuation is not."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{letter}+"
    return "|".join([_SUFFIXES, word, digits, rf" ?[^\s{beside}]+[\r\n]*", _LINES, _SPACES])


def _cased(digits: str, suffixes: str) -> str:
    """Spell the pattern that GPT-4o began: a word breaks before a capital letter."""
    big, small = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    lower, upper = f"{before}{big}*{small}+{suffixes}", f"{before}{big}+{small}*{suffixes}"
    return "|".join([lower, upper, digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _LINES, _SPACES])


_CHINESE, _KANA = "\u4e00-\u9fa5", "\u3040-\u309f\u30a0-\u30ff"
_DEEPSEEK_V3 = "|".join(
    [
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _SPACES,
    ]
)  # fmt: skip

_BY_GPT2 = (_GPT2,)
_BY_DIGIT = (r"\p{N}", _GPT2)
_BY_LLAMA_3 = (_words(r"\p{N}{1,3}"),)
_BY_QWEN_2 = (_words(r"\p{N}"),)
_BY_GPT_4O = (_cased(r"\p{N}{1,3}", f"{_SUFFIXES}?"),)
_BY_DEEPSEEK_V3 = (r"\p{N}{1,3}", f"[{_CHINESE}{_KANA}]+", _DEEPSEEK_V3)

SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4", "a.x-4.0", "mellum", "trillion"), _BY_GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _BY_DIGIT),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2"), _BY_LLAMA_3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _BY_LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), _BY_QWEN_2),
    "qwen35": (_words(r"\p{N}", r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}"),),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _BY_GPT_4O),
    "tekken": (_cased(r"\p{N}", ""),),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_CHINESE}\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"),
    "deepseek-v3": _BY_DEEPSEEK_V3,
    "hunyuan-dense": _BY_DEEPSEEK_V3,
}  # fmt: skip

# These vocabularies take a whole word that is a token as it is, and begin a text with a token of their own.
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2", "tekken")


def splitter(kind: str) -> Any:
    """Build the pre-tokenizer for a `pre` of `SPLITS`."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in SPLITS[kind]]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
