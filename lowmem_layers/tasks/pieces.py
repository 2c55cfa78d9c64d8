"""Tokenising a long text piece by piece: what a tokenizer keeps of ten megabytes at once is gigabytes."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

PIECE_CHARS = 1 << 17
OVERLAP_CHARS = 1 << 10
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")  # one space, a letter on either side

Encode = Callable[[str], tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class _Piece:
    """The tokens of a piece and of what lies around it. Shapes: (tokens,) each; `starts` in characters of the text."""

    tokens: Sequence[int]
    starts: Sequence[int]

    def between(self, begin: int, end: int) -> list[tuple[int, int]]:
        """List the tokens that start in a part of the text, with their places."""
        pairs = zip(self.starts, self.tokens, strict=True)
        return [(start, token) for start, token in pairs if begin <= start < end]


def encode_pieces(
    text: str, encode: Encode, piece_chars: int = PIECE_CHARS, overlap_chars: int = OVERLAP_CHARS
) -> tuple[array[int], array[int]]:
    """Tokenise a text as a whole, holding the tokenizer's account of one piece at a time: its tokens and their places.

    Pieces meet between a line's end and a sign that is not white space; where no line ends for as long as a piece (some
    corpora are one line of words), between two words, in front of the space. Each is encoded together with
    `overlap_chars` before and behind it, and two neighbours must agree on every token in the middle half of what both
    have seen, and on one that starts where they meet. Where any two do not agree, the text is encoded in one call.

    The tokens are then those of the whole text for every tokenizer that splits a text into words from left to right
    (all byte-level ones): a match begins where they meet, and what follows does not depend on what came before. For
    others (SentencePiece without words), they are unless a token is decided by text that is more than a quarter of
    `overlap_chars` away; no known vocabulary has a token with a sign that follows a line's end.

    Units: `encode` gives each token's start in characters of the text that it was given.
    """
    # 1) where pieces meet
    seams = [0]
    while (seam := _seam_after(text, seams[-1] + piece_chars, piece_chars)) < len(text):
        seams.append(seam)
    seams.append(len(text))
    # 2) piece by piece; the last one is remembered until the next has agreed with it
    tokens, starts = array("q"), array("q")
    last: _Piece | None = None
    for begin, end in pairwise(seams):
        around = max(0, begin - overlap_chars)
        found, places = encode(text[around : end + overlap_chars])
        piece = _Piece(found, [around + place for place in places])
        if last is not None:
            seen = (begin - overlap_chars // 2, begin + overlap_chars // 2)
            common = piece.between(*seen)
            if common != last.between(*seen) or begin not in dict(common):
                found, places = encode(text)
                return array("q", found), array("q", places)
        kept = piece.between(begin, end)
        starts.extend(start for start, _ in kept)
        tokens.extend(token for _, token in kept)
        last = piece
    return tokens, starts


def _seam_after(text: str, place: int, n_chars: int) -> int:
    """Find the next line that begins with a sign that is not white space, within `n_chars`; else the next word's space.

    Where there is none either, take the first such line behind these; else the end.
    """
    first = place
    while (place := text.find("\n", place) + 1) > 0:
        if place - first > n_chars and (space := _BETWEEN_WORDS.search(text, first, first + n_chars)):
            return space.start()
        if place < len(text) and not text[place].isspace():
            return place
    space = _BETWEEN_WORDS.search(text, first, first + n_chars)
    return space.start() if space else len(text)
