"""From items to tokens, by the rules of lm-evaluation-harness (`TemplateLM.loglikelihood`, `_encode_pair`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Item, Task
from lowmem_layers.tasks.text import encode_windows, token_starts

Bos = Literal["auto", "none", "always"]

_BATCH_ITEMS = 512  # texts held as token lists at once; the rest of the data set is either text or finished


class Tokenizer(Protocol):
    """What is asked of a tokenizer (transformers' have it)."""

    bos_token_id: Any
    eos_token_id: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool, **options: Any) -> Any:
        """Encode texts; the answer has `input_ids`, one list a text."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Turn tokens back into text."""
        ...


def encode_task(task: Task, tokenizer: Tokenizer, *, bos: str = "auto", max_length: int) -> list[EncodedItem]:
    """Encode every item: trailing spaces of a context move to the continuation; what is too long is cut on the left.

    `bos`: `auto` leaves the beginning-of-sequence token to the tokenizer (lm-evaluation-harness from 0.4.9.2), `none`
    never adds one (its default before), `always` makes sure there is one. An empty context becomes that token, or the
    end-of-sequence token where there is none, in all three.

    Units: `max_length` in tokens, the longest input of the model; tokens are kept up to `max_length` + 1, the last of
        which is only ever predicted.

    Raises:
        UsageError: an unknown `bos`, or `always` without such a token.
        TaskError: a continuation has no token of its own, or more than `max_length`.
    """
    encoder = Encoder(tokenizer, _checked_bos(bos, tokenizer))
    if task.windows is not None:
        return encoder.encode_text(task, max_length)
    interned: dict[int, int] = {}
    encoded: list[EncodedItem] = []
    for batch in _batches(task.items):
        for item, pairs in zip(batch, encoder.encode_items(batch), strict=True):
            encoded.append(_encoded_item(item, pairs, max_length, interned))
    return encoded


def _checked_bos(bos: str, tokenizer: Tokenizer) -> Bos:
    if bos not in get_args(Bos):
        raise UsageError(f"there is no --bos {bos!r}", "use auto, none or always")
    if bos == "always" and tokenizer.bos_token_id is None:
        raise UsageError("this tokenizer has no beginning-of-sequence token", "use --bos auto or --bos none")
    return bos  # type: ignore[return-value]


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _BATCH_ITEMS):
        yield items[start : start + _BATCH_ITEMS]


@dataclass
class Encoder:
    """Encode many texts in one call each, which fast tokenizers spread over their threads."""

    tokenizer: Tokenizer
    bos: Bos
    prefix_id: int = field(init=False)
    prefix_text: str = field(init=False)

    def __post_init__(self) -> None:
        token = self.tokenizer.bos_token_id
        token = self.tokenizer.eos_token_id if token is None else token
        self.prefix_id = -1 if token is None else int(token)
        self.prefix_text = "" if token is None else str(self.tokenizer.decode([int(token)]))

    def encode_items(self, items: Sequence[Item]) -> list[list[tuple[list[int], list[int]]]]:
        """Encode each choice of each item as (context, continuation)."""
        split = [[split_pair(*pair) for pair in zip(i.contexts, i.continuations, strict=True)] for i in items]
        flat = [pair for pairs in split for pair in pairs]
        tokens = self._encode_distinct([c for c, _ in flat if c] + [c + t for c, t in flat if c], special=True)
        alone = self._encode_distinct([t for c, t in flat if not c], special=False)
        return [[self._pair(context, text, tokens, alone) for context, text in pairs] for pairs in split]

    def encode_text(self, task: Task, max_length: int) -> list[EncodedItem]:
        """Encode a plain text as windows.

        Raises:
            TaskError: the tokenizer cannot say where in the text its tokens begin.
        """
        text = task.items[0].continuations[0]
        if not getattr(self.tokenizer, "is_fast", False):
            raise TaskError("this model's tokenizer does not tell where tokens begin", "text needs a fast tokenizer")
        encoding = self.tokenizer([text], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = list(encoding["input_ids"][0])
        first = [] if self.prefix_id < 0 else [self.prefix_id]
        windows = encode_windows(task, tokens, token_starts(encoding), self._lead(), first, max_length)
        return [_with_context(item) for item in windows]

    def _lead(self) -> list[int]:
        """Say which token begins every text under this rule."""
        opened = self._open(["a"])["a"]
        return opened[:1] if opened[:1] == [self.prefix_id] else []

    def _pair(
        self, context: str, text: str, tokens: dict[str, list[int]], alone: dict[str, list[int]]
    ) -> tuple[list[int], list[int]]:
        if context:
            start = tokens[context]
            return start, tokens[context + text][len(start) :]
        scored = alone[text]
        if self.prefix_id < 0:
            raise TaskError(
                "an item has an empty context, and this tokenizer has neither a BOS nor an EOS token to begin with",
                "give every item a context",
            )
        return (scored[:1], scored[1:]) if scored[:1] == [self.prefix_id] else ([self.prefix_id], scored)

    def _encode_distinct(self, texts: list[str], *, special: bool) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        begins = [self.prefix_text != "" and text.startswith(self.prefix_text) for text in distinct]
        plain = [text for text, begun in zip(distinct, begins, strict=True) if not special or begun]
        opened = [text for text, begun in zip(distinct, begins, strict=True) if special and not begun]
        return self._call(plain, special=False) | self._open(opened)

    def _open(self, texts: list[str]) -> dict[str, list[int]]:
        """Encode texts that do not begin with the BOS token's own text."""
        if self.bos == "auto":
            return self._call(texts, special=True)
        first = [self.prefix_id] if self.bos == "always" else []
        return {text: first + tokens for text, tokens in self._call(texts, special=False).items()}

    def _call(self, texts: list[str], *, special: bool) -> dict[str, list[int]]:
        if not texts:
            return {}
        encoded = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about length: cutting on the left is our business
        )
        return dict(zip(texts, encoded["input_ids"], strict=True))


def _with_context(item: EncodedItem) -> EncodedItem:
    """Refuse a first token that nothing stands before."""
    choice = item.choices[0]
    if len(choice.tokens) <= choice.n_scored:
        raise TaskError("this tokenizer has neither a BOS nor an EOS token to begin a text with", "use another model")
    return item


def split_pair(context: str, continuation: str) -> tuple[str, str]:
    """Move the context's trailing whitespace to the continuation, where tokenizers expect it."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _encoded_item(
    item: Item, pairs: list[tuple[list[int], list[int]]], max_length: int, interned: dict[int, int]
) -> EncodedItem:
    choices = []
    for context, scored in pairs:
        if not 0 < len(scored) <= max_length:
            raise TaskError(
                f"{item.task}, item {item.id!r}: a choice has {len(scored)} tokens, the model takes 1 to {max_length}",
                "shorten the choice, or leave the item out",
            )
        tokens = (context + scored)[-(max_length + 1) :]
        # one int object a token id, not one an occurrence: 8 bytes a token instead of 36
        choices.append(EncodedChoice(tuple(interned.setdefault(token, token) for token in tokens), len(scored)))
    return EncodedItem(
        item.task, item.id, tuple(choices), item.gold, item.cluster, item.choice_chars, item.choice_bytes
    )
