"""Plain text as a task: windows of tokens, each token scored once, in nats per byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Item, Task, Windows, fingerprint
from lowmem_layers.tasks.records import open_data

TEXT_PREFIX = "text:"
_MOST_OVERLAPS, _FEWEST_OVERLAPS, _CLUSTERS = 10, 5, 30  # of a cluster; enough clusters for a statement (--until)
MIN_STRIDE_TOKENS = 16  # a window scores at least half of this: more tokens than one character can be made of


def load_text(path: Path, *, window: int, stride: int, limit: int | None) -> Task:
    """Read a text file as one task, which `encode_windows` cuts into items once there is a tokenizer.

    Units: `window` and `stride` in tokens: an item sees at most `window` tokens and scores at most `stride` of them.

    Raises:
        TaskError: the file does not exist, is not UTF-8 text, or is blank.
        UsageError: the stride is too short, or longer than the window.
    """
    if not MIN_STRIDE_TOKENS <= stride <= window:
        raise UsageError(
            f"--stride {stride} and --window {window} do not fit", f"use {MIN_STRIDE_TOKENS} <= stride <= window"
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
    """Read a UTF-8 text file as it is.

    Raises:
        TaskError: the file does not exist, is not UTF-8, is binary, or is blank.
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
        raise TaskError(f"{path.name}, line {line}: a zero byte, so this is not a text file", "give a plain text file")
    if not text.strip():
        raise TaskError(f"{path.name} holds no text", "give a file with some text in it")
    return text


def encode_windows(
    task: Task,
    windows: Windows,
    tokens: Sequence[int],
    starts: Sequence[int],
    lead: list[int],
    first: list[int],
    longest: int,
) -> Iterator[EncodedItem]:
    """Cut a tokenised text into items whose scored parts follow each other without gap or overlap.

    The scored parts differ in length by at most one token, so that the mean over items is the mean over the text.
    Items whose windows overlap share tokens, so that runs of neighbouring items are one cluster (`cluster_length`).
    `lead` (the BOS token, where the tokenizer adds one) begins every window. If it is empty, `first` stands before the
    first token of the text alone (lm-evaluation-harness: `prefix_token_id` in `loglikelihood_rolling`).

    Shapes: `tokens` and `starts` have one entry for each token; `starts` is its position in the text, in characters.
    Units: `longest` is the longest input of the model, in tokens.
    """
    text = task.items[0].continuations[0]
    window = min(windows.window, longest)
    # 1) as few items as the stride allows, of equal length within one token
    stride = min(windows.stride, window)
    n_items = -(-len(tokens) // stride)
    together = cluster_length(min(n_items, windows.limit or n_items), window, stride)
    spans = pairwise(len(tokens) * index // n_items for index in range(n_items + 1))
    for index, (begin, end) in enumerate(islice(spans, windows.limit)):
        # 2) the scored tokens, and before them as many as fit: the last token is only predicted, so one more fits
        opening = lead or (first if begin == 0 else [])
        earliest = max(0, end - (window + 1 - len(lead)))
        seen = [*opening, *tokens[earliest:end]]
        n_cut = earliest - max(0, end - (windows.window + 1 - len(lead)))  # what a longer model would have seen
        # 3) the piece of text that is scored: white space before the first token and after the last one counts too
        piece = text[starts[begin] if begin else 0 : starts[end] if end < len(tokens) else len(text)]
        choice = EncodedChoice(tuple(seen), end - begin, n_cut)
        name, cluster = f"window-{index}", f"windows-{index // together}"
        yield EncodedItem(task.name, name, (choice,), 0, cluster, (len(piece),), (len(piece.encode()),))


def cluster_length(n_items: int, window: int, stride: int) -> int:
    """Say how many neighbouring windows of a text form a cluster: five to ten times as many as one overlaps with.

    A chain of overlaps joins all windows of a text, and one cluster has no intervals. So the chain is cut, and windows
    at a cut still overlap: the fewer cuts, the smaller the part of their dependence that is missed. With five overlaps
    intervals cover 93 % or more however strong the dependence, with ten 94 % (`benchmarks/overlap.py`); ten are taken
    where 30 clusters remain. Windows that do not overlap stay single items.
    Units: `window` and `stride` in tokens. Source: the block jackknife, Künsch 1989.
    """
    overlaps = -(-window // stride) - 1
    return max(1, overlaps * min(_MOST_OVERLAPS, max(_FEWEST_OVERLAPS, n_items // (_CLUSTERS * max(1, overlaps)))))
