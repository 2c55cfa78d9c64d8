"""A text in pieces gives the tokens of the whole text, with every kind of tokenizer; or it is encoded as a whole."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lowmem_layers.tasks.pieces import encode_pieces

ROOT = Path(__file__).parents[2]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"))
TEXT = TEXT[:30_000] + "naïve 文字 😀\n\n\n  \tend\r\nof it\n" * 100
GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def byte_level_by_gpt_4s_words() -> Tokenizer:
    from tokenizers import Regex

    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT_4), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return tokenizer


def without_words() -> Tokenizer:
    """Build what Llama 2 and Gemma have: merges over the whole text, a sign before it, spaces that are letters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator([TEXT[:20_000]], trainer)
    return tokenizer


def encoder(tokenizer: Tokenizer, lengths: list[int]):
    def encode(text: str):
        lengths.append(len(text))
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    return encode


@pytest.mark.parametrize("kind", [byte_level, byte_level_by_gpt_4s_words, without_words, unigram])
def test_pieces_give_the_tokens_of_the_whole(kind):
    lengths: list[int] = []
    encode = encoder(kind(), lengths)
    for text, piece in ((TEXT, 3_000), (TEXT.replace("\n", "\n\n"), 5_000), (TEXT[:100], 3_000)):
        whole, places = encode(text)
        lengths.clear()
        tokens, starts = encode_pieces(text, encode, piece, 600)
        assert (tokens.tolist(), starts.tolist()) == (list(whole), list(places))
        if kind is not unigram:  # unknown signs are joined across lines: such pieces do not agree
            assert len(lengths) == 1 or max(lengths) < len(text) / 3


def test_a_tokenizer_whose_pieces_do_not_agree_gets_the_whole_text():
    """Every token depends on how many signs precede it, so that no piece is encoded as in the whole."""
    lengths: list[int] = []

    def encode(text: str):
        lengths.append(len(text))
        return [index * ord(sign) for index, sign in enumerate(text)], range(len(text))

    tokens, starts = encode_pieces(TEXT, encode, 3_000, 600)
    assert (tokens.tolist(), starts.tolist()) == (list(encode(TEXT)[0]), list(range(len(TEXT))))
    assert lengths[-1] == len(TEXT)


def test_tokens_that_span_a_seam_are_not_cut():
    """Pairs of signs from the left: where a pair spans a line's end, the pieces cannot agree."""
    rng = random.Random(0)
    text = "".join(rng.choice("abc\n") for _ in range(9_001))
    encode = lambda one: ([hash(one[i : i + 2]) for i in range(0, len(one), 2)], range(0, len(one), 2))  # noqa: E731
    tokens, starts = encode_pieces(text, encode, 1_000, 301)
    assert (tokens.tolist(), starts.tolist()) == (list(encode(text)[0]), list(encode(text)[1]))


@pytest.mark.parametrize("kind", [byte_level, byte_level_by_gpt_4s_words, without_words])
def test_a_text_without_lines_is_cut_between_words(kind):
    lengths: list[int] = []
    encode = encoder(kind(), lengths)
    for text in (" ".join(TEXT.split()), " ".join(TEXT.split()[:2_000]) + "\n" + " ".join(TEXT.split()[2_000:])):
        whole, places = encode(text)
        lengths.clear()
        tokens, starts = encode_pieces(text, encode, 3_000, 600)
        assert (tokens.tolist(), starts.tolist()) == (list(whole), list(places))
        if kind is not without_words:  # its tokens span words, so that pieces need not agree
            assert max(lengths) < len(text) / 3


def test_a_text_without_lines_and_words_is_one_piece():
    lengths: list[int] = []
    encode_pieces("word" * 5_000, encoder(byte_level(), lengths), 1_000, 100)
    assert lengths == [20_000]
