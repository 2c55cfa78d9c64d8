"""From items to tokens, by the rules of lm-evaluation-harness (`TemplateLM.loglikelihood`, `_encode_pair`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks.chat import in_chat
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Item, Task, Windows, check_tokens
from lowmem_layers.tasks.pieces import encode_pieces
from lowmem_layers.tasks.text import encode_windows

Bos = Literal["auto", "none", "always"]

_BATCH_ITEMS = 512  # the tokenizer's lists of this many items are held at once; all other items are text or finished


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that this room uses."""

    bos_token_id: Any
    eos_token_id: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool, **options: Any) -> Any:
        """Encode texts; the answer has `input_ids`, one list of tokens for each text."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Turn tokens back into text."""
        ...


def encode_tasks(
    tasks: Iterable[Task], tokenizer: Tokenizer, *, bos: Bos, max_length: int, n_known: int | None
) -> tuple[EncodedItem, ...]:
    """Encode every item of several tasks, and see that the model knows every token, as `check_tokens` says.

    `n_known` is the number of tokens in the model's vocabulary; None where the tokenizer is not the model's own.

    Raises:
        UsageError: `bos` is unknown, or is `always` and the tokenizer has no such token.
        TaskError: an item cannot be encoded, or has a token that the model does not know.
    """
    encoded = tuple(item for task in tasks for item in encode_task(task, tokenizer, bos=bos, max_length=max_length))
    if n_known is not None:
        check_tokens(encoded, n_known)
    return encoded


def encode_task(task: Task, tokenizer: Tokenizer, *, bos: Bos = "auto", max_length: int) -> list[EncodedItem]:
    """Encode every item of a task.

    The trailing spaces of a context move to its continuation. A text that is too long loses tokens on the left.
    `bos` says who adds the beginning-of-sequence token: with `auto` the tokenizer decides (lm-evaluation-harness from
    0.4.9.2), with `none` nobody adds one (lm-evaluation-harness before), with `always` every text has one. With all
    three, an empty context becomes that token, or the end-of-sequence token if the tokenizer has no other.

    Units: `max_length` is the longest input of the model, in tokens. Up to `max_length` + 1 tokens are kept, because
        the last one is only predicted and never fed.

    Raises:
        UsageError: `bos` is unknown, or is `always` and the tokenizer has no such token.
        TaskError: a continuation has no token of its own, or more than `max_length`.
    """
    if bos not in get_args(Bos):  # a caller without a type checker gets an error here, not other tokens
        raise UsageError(f"there is no --bos {bos!r}", "use auto, none or always")
    if bos == "always" and tokenizer.bos_token_id is None:
        raise UsageError("this tokenizer has no beginning-of-sequence token", "use --bos auto or --bos none")
    if task.chat is not None:
        task = in_chat(task, task.chat, tokenizer)
    encoder = _Encoder(tokenizer, bos, max_length)
    if task.windows is not None:
        return encoder.encode_text(task, task.windows)
    encode = encoder.encode_documents if task.rolls else encoder.encode_items
    encoded: list[EncodedItem] = []
    for start in range(0, len(task.items), _BATCH_ITEMS):
        encoded += encode(task.items[start : start + _BATCH_ITEMS])
    return encoded


@dataclass
class _Encoder:
    """One tokenizer under one BOS rule; many texts go into each call, because fast tokenizers use several threads."""

    tokenizer: Tokenizer
    bos: Bos
    max_length: int
    prefix: list[int] = field(init=False)  # the token that stands for an empty context; none in some tokenizers
    prefix_text: str = field(init=False)
    interned: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        token = self.tokenizer.bos_token_id
        token = self.tokenizer.eos_token_id if token is None else token
        self.prefix = [] if token is None else [int(token)]
        self.prefix_text = "" if token is None else str(self.tokenizer.decode(self.prefix))

    def encode_items(self, items: Sequence[Item]) -> Iterator[EncodedItem]:
        """Encode items with choices.

        Raises:
            TaskError: a continuation has no token of its own, or more than the model takes.
        """
        # 1) encode each distinct text once: the choices of an item often share their context
        split = [[split_pair(*pair) for pair in zip(i.contexts, i.continuations, strict=True)] for i in items]
        flat = [pair for pairs in split for pair in pairs]
        tokens = self._encode([c for c, _ in flat if c] + [c + t for c, t in flat if c])
        alone = self._call(list(dict.fromkeys(t for c, t in flat if not c)), special=False)
        if alone and not self.prefix:
            raise TaskError(
                "an item has an empty context, and this tokenizer has neither a BOS nor an EOS token to begin with",
                "give every item a context",
            )
        for item, pairs in zip(items, split, strict=True):
            choices = []
            for context, text in pairs:
                # 2) the scored tokens of a pair are those of the whole text after the context's own tokens;
                #    an empty context is the prefix token, which is not added to a text that begins with it
                whole = tokens[context + text] if context else alone[text]
                before = tokens[context] if context else self.prefix
                scored = whole[len(before) :] if context or whole[:1] == self.prefix else whole
                if not 0 < len(scored) <= self.max_length:
                    raise TaskError(
                        f"{item.task}, item {item.id!r}: a choice has {len(scored)} tokens, "
                        f"the model takes 1 to {self.max_length}",
                        "shorten the choice, or leave the item out",
                    )
                # 3) cut on the left; one int object for each token id, not for each occurrence: 8 bytes, not 36
                kept = tuple(self.interned.setdefault(one, one) for one in (before + scored)[-(self.max_length + 1) :])
                choices.append(EncodedChoice(kept, len(scored), len(before) + len(scored) - len(kept)))
            chars, n_bytes = item.choice_chars, item.choice_bytes
            if item.asks_likeliest:
                choices.append(replace(choices[0], is_likeliest=True))
                chars, n_bytes = (*chars, 0), (*n_bytes, 0)
            yield EncodedItem(item.task, item.id, tuple(choices), item.gold, item.cluster, chars, n_bytes)

    def encode_documents(self, items: Sequence[Item]) -> Iterator[EncodedItem]:
        """Cut documents into windows of the model's length; each window is an item, and a document's form a cluster.

        A document's characters and bytes are divided among its windows in proportion to their tokens. Source:
        lm-evaluation-harness, `HFLM.loglikelihood_rolling` (`get_rolling_token_windows` with a `context_len` of 1).

        Raises:
            TaskError: the tokenizer has no token to begin with.
        """
        if not self.prefix:
            raise TaskError(
                "this tokenizer has neither a BOS nor an EOS token to begin a text with", "use another model"
            )
        for item in items:
            (text,) = item.continuations
            tokens = self._encode([text])[text]
            begun, total = self.prefix + tokens, len(tokens)
            for number, begin in enumerate(range(0, total, self.max_length)):
                # the last token of a window is only predicted; a short last window sees more of what precedes it
                end = min(begin + self.max_length, total)
                kept = tuple(begun[max(0, end - self.max_length) : end + 1])
                chars, n_bytes = (
                    max(1, size * end // total - size * begin // total)
                    for size in (item.choice_chars[0], item.choice_bytes[0])
                )
                choice = EncodedChoice(kept, end - begin)
                yield EncodedItem(item.task, f"{item.id}-{number}", (choice,), 0, item.cluster, (chars,), (n_bytes,))

    def encode_text(self, task: Task, windows: Windows) -> list[EncodedItem]:
        """Encode a plain text as windows.

        Raises:
            TaskError: the tokenizer cannot say where in the text its tokens begin, or has no token to begin with.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise TaskError(
                "this model's tokenizer does not tell where tokens begin",
                "plain text needs a fast tokenizer: use another model",
            )
        if not self.prefix:  # the first token of the text would have nothing before it to be predicted from
            raise TaskError(
                "this tokenizer has neither a BOS nor an EOS token to begin a text with", "use another model"
            )

        # 1) encode the text piece by piece
        def encode(text: str) -> tuple[list[int], list[int]]:
            encoding = self.tokenizer([text], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return encoding["input_ids"][0], [start for start, _ in encoding["offset_mapping"][0]]

        tokens, starts = encode_pieces(task.items[0].continuations[0], encode)
        # 2) find out, with any text, whether a text begins with the prefix token under this rule
        opened = self._encode(["a"])["a"]
        lead = self.prefix if opened[:1] == self.prefix else []
        return list(encode_windows(task, windows, tokens, starts, lead, self.prefix, self.max_length))

    def _encode(self, texts: list[str]) -> dict[str, list[int]]:
        """Encode distinct texts by the BOS rule; a text that begins with the token's own text gets no second one."""
        begun: list[str] = []
        others: list[str] = []
        for text in dict.fromkeys(texts):
            (begun if self.prefix_text and text.startswith(self.prefix_text) else others).append(text)
        encoded = self._call(begun, special=False)
        first = self.prefix if self.bos == "always" else []
        return encoded | {one: first + found for one, found in self._call(others, special=self.bos == "auto").items()}

    def _call(self, texts: list[str], *, special: bool) -> dict[str, list[int]]:
        if not texts:
            return {}
        encoded = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about length: `encode_items` cuts on the left
        )
        return dict(zip(texts, encoded["input_ids"], strict=True))


def split_pair(context: str, continuation: str) -> tuple[str, str]:
    """Move the context's trailing whitespace to the continuation, where tokenizers expect it."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
