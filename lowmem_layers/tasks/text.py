"""Plain text as a task: windows of tokens, each token scored once, in nats per byte."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Item, Task, Windows, fingerprint
from lowmem_layers.tasks.records import open_data

TEXT_PREFIX = "text:"
MIN_STRIDE_TOKENS = 16  # windows have at least half as many tokens: more than one character can take


def load_text(path: Path, *, window: int, stride: int, limit: int | None) -> Task:
    """Read a text file as one task; it is cut into windows when a tokenizer is at hand (`encode_windows`).

    Units: `window` and `stride` in tokens: an item sees at most `window` and scores at most `stride` of them.

    Raises:
        TaskError: no such file, not UTF-8 text, or nothing in it.
        UsageError: a stride that is too short or longer than the window.
    """
    if not MIN_STRIDE_TOKENS <= stride <= window:
        raise UsageError(
            f"stride {stride} and window {window} do not fit", f"use {MIN_STRIDE_TOKENS} <= stride <= window"
        )
    text = read_text(path)
    name = TEXT_PREFIX + path.name
    document = Item(name, "text", ("",), (text,), (len(text),), (len(text.encode()),), 0, "text")
    source = {
        "kind": "text",
        "file": path.name,
        "window_tokens": window,
        "stride_tokens": stride,
        "bytes": document.choice_bytes[0],
        "limit": limit,
        "fingerprint": fingerprint([document]),
    }
    return Task(name, (document,), "nll_per_byte", 0.0, source, windows=Windows(window, stride, limit))


def read_text(path: Path) -> str:
    """Read a UTF-8 text file as it stands.

    Raises:
        TaskError: no such file, not UTF-8, binary, or blank.
    """
    if not path.is_file():
        raise TaskError(f"no text file {path}", "write --tasks text:FILE")
    with open_data(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TaskError(f"{path.name}, line {line}: not UTF-8", "save the file as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TaskError(f"{path.name}, line {line}: a zero byte; this is not a text file", "give a plain text file")
    if not text.strip():
        raise TaskError(f"{path.name} holds no text", "give a file with some text in it")
    return text


def encode_windows(
    task: Task, tokens: list[int], starts: list[int], lead: list[int], first: list[int], max_length: int
) -> Iterator[EncodedItem]:
    """Cut a tokenised text into items whose scored parts follow each other without gap or overlap.

    The scored parts differ in length by at most one token, so that the mean over items is that of the text. `lead`
    (a BOS token, where the tokenizer adds one) begins every window; without it, `first` stands before the very first
    token (lm-evaluation-harness: `prefix_token_id` in `loglikelihood_rolling`).

    Shapes: `starts` has one entry a token, the position in the text where it begins.
    """
    assert task.windows is not None
    text = task.items[0].continuations[0]
    for index, (begin, end) in enumerate(islice(_spans(len(tokens), task.windows, max_length), task.windows.limit)):
        seen = _input(tokens, begin, end, lead, first, min(task.windows.window, max_length))
        piece = text[starts[begin] if begin else 0 : starts[end] if end < len(tokens) else len(text)]
        choice = EncodedChoice(tuple(seen), end - begin)
        name = f"window-{index}"
        yield EncodedItem(task.name, name, (choice,), 0, name, (len(piece),), (len(piece.encode()),))


def _spans(n_tokens: int, windows: Windows, max_length: int) -> Iterator[tuple[int, int]]:
    n_items = -(-n_tokens // min(windows.stride, windows.window, max_length))
    return pairwise(n_tokens * index // n_items for index in range(n_items + 1))


def _input(tokens: list[int], begin: int, end: int, lead: list[int], first: list[int], window: int) -> list[int]:
    """Take the scored tokens and as much before them as fits; the last token is predicted, never fed."""
    start = max(0, end - (window + 1 - len(lead)))
    opening = lead or (first if begin == 0 else [])
    return opening + tokens[start:end]


def token_starts(encoding: Any) -> list[int]:
    """Read from a fast tokenizer's answer where in the text each token begins."""
    return [start for start, _ in encoding["offset_mapping"][0]]
