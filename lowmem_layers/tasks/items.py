"""Tasks and their items: the contexts and the scored continuations, as text and as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.metrics import Value


@dataclass(frozen=True, slots=True)
class Examples:
    """Few-shot examples: the text that stands before an item's question, and the same as turns of a chat.

    A turn is what the user asks and what the assistant answers.
    """

    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()


NO_EXAMPLES = Examples()


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its choices, as text.

    The score of choice j is log P(continuations[j] given contexts[j]); in most tasks all choices have the same context.
    A continuation begins with the space that separates it from its context. `choice_chars` and `choice_bytes` are the
    lengths of the choice without that space (lm-evaluation-harness: `completion_len`, `byte_length`).
    Items that share material (a passage, a twin sentence) have the same `cluster`. `system` is the part with which the
    contexts begin that is the system's turn in a chat: the description of the task; `examples` are what follows it.
    `asks_likeliest` says that a single
    continuation is also judged by whether the model would have written it.
    """

    task: str
    id: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    choice_chars: tuple[int, ...]
    choice_bytes: tuple[int, ...]
    gold: int
    cluster: str
    system: str = ""
    asks_likeliest: bool = False
    examples: Examples = NO_EXAMPLES


@dataclass(frozen=True)
class ChatTemplate:
    """How contexts are written as chats: a template and its file's name; None means the tokenizer's own."""

    name: str
    source: str | None


@dataclass(frozen=True)
class Task:
    """A named list of items, and the metric by which they are usually judged.

    `chance` is the expected accuracy of random guessing. `source` says where the items come from, for the run's record.
    `shared_prefix` is the few-shot text with which the contexts begin. `windows` is set for plain text, which is cut
    into items only when it is encoded. `chat` is set where contexts are to be written as chats when they are encoded;
    `delimiter`, which begins each continuation, is then left out. `rolls` says that every item is a document, which is
    cut into windows when it is encoded.
    """

    name: str
    items: tuple[Item, ...]
    metric: Value
    chance: float
    source: dict[str, Any] = field(default_factory=dict)
    shared_prefix: str = ""
    windows: Windows | None = None
    chat: ChatTemplate | None = None
    delimiter: str = " "
    rolls: bool = False


@dataclass(frozen=True, slots=True)
class Windows:
    """How plain text is cut: every item sees at most `window` tokens and scores at most `stride` of them.

    `limit` is the number of items that are kept, from the beginning of the text.
    """

    window: int
    stride: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedChoice:
    """Context and continuation as token ids, cut to the longest input of the model; the last `n_scored` are scored.

    The model is fed `tokens[:-1]`, because the last token is only predicted. `n_cut` tokens were lost on the left. Of
    the choice that `is_likeliest`, the model's likeliest token at each scored place is scored instead of the one there:
    it stands beside a single choice, which the model would have written if no other token is likelier anywhere.
    """

    tokens: tuple[int, ...]
    n_scored: int
    n_cut: int = 0
    is_likeliest: bool = False


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item as tokens, without text; the lengths of its choices are kept because the metrics need them.

    The length of a choice that is the likeliest is 0: it is none of the item's own.
    """

    task: str
    id: str
    choices: tuple[EncodedChoice, ...]
    gold: int
    cluster: str
    choice_chars: tuple[int, ...] = ()
    choice_bytes: tuple[int, ...] = ()


def make_item(
    task: str, item_id: str, contexts: Iterable[str], choices: Iterable[str], gold: int, cluster: str | None = None
) -> Item:
    """Make an item whose choices follow their contexts after one space.

    Source: lm-evaluation-harness, `target_delimiter`. Without a `cluster` the item has one of its own.
    """
    kept = tuple(choices)
    return Item(
        task=task,
        id=item_id,
        contexts=tuple(contexts),
        continuations=tuple(" " + choice for choice in kept),
        choice_chars=tuple(len(choice) for choice in kept),
        choice_bytes=tuple(len(choice.encode()) for choice in kept),
        gold=gold,
        cluster=item_id if cluster is None else cluster,
    )


def check_tokens(items: Iterable[EncodedItem], n_known: int) -> None:
    """See that the model knows every token: some tokenizers have more than their model's vocabulary.

    Raises:
        TaskError: an item has a token number of `n_known` or above.
    """
    for item in items:
        largest = max(max(choice.tokens) for choice in item.choices)
        if largest >= n_known:
            raise TaskError(
                f"{item.task}, item {item.id!r}: it has the token {largest}, the model knows {n_known} tokens",
                "the tokenizer is larger than the model's vocabulary: leave the item out, or use the model's own",
            )


def fingerprint(items: Iterable[Item]) -> str:
    """Hash the items in their order: sha256 over one canonical JSON line for each item."""
    digest = hashlib.sha256()
    for item in items:
        # the order and the form of these fields are part of every run's identity: they must not change
        fields = [item.id, item.contexts, item.continuations, item.choice_chars, item.gold, item.cluster]
        digest.update(json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def chance_level(items: Iterable[Item]) -> float:
    """Compute the expected accuracy of random guessing: the mean of 1 / number of choices."""
    shares = [1 / len(item.continuations) for item in items]
    return sum(shares) / len(shares)
