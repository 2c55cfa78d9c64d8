"""Tokens: lm-evaluation-harness' pair rule, the BOS rules, truncation from the left."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks import Task, encode_task
from lowmem_layers.tasks.encode import split_pair
from lowmem_layers.tasks.items import make_item


def task_of(*pairs, gold=0):
    """Make a task of items with two choices each from (context, choice, choice)."""
    items = tuple(make_item("t", f"t-{n}", (c,) * 2, choices, gold) for n, (c, *choices) in enumerate(pairs))
    return Task("t", items, "acc", 0.5)


def pieces(tokenizer, choice):
    names = [tokenizer.names[token] for token in choice.tokens]
    return names[: -choice.n_scored], names[-choice.n_scored :]


def harness_pair(tokenizer, context, continuation):
    """Follow lm-evaluation-harness' own steps, one string at a time, as the second route."""
    encode = lambda text, special: tokenizer([text], add_special_tokens=special)["input_ids"][0]  # noqa: E731
    if context == "":
        return [tokenizer.bos_token_id], encode(continuation, False)
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    if context == "":
        return [tokenizer.bos_token_id], encode(continuation, False)
    whole, start = encode(context + continuation, True), encode(context, True)
    return start, whole[len(start) :]


TEXTS = st.text(st.sampled_from("ab \n."), max_size=12)
CHOICES = st.text(st.sampled_from("ab ."), min_size=1, max_size=6).filter(str.strip)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pairs=st.lists(st.tuples(TEXTS, CHOICES, CHOICES), min_size=1, max_size=5), adds_bos=st.booleans())
def test_tokens_equal_one_string_at_a_time(pairs, adds_bos, toy):
    tokenizer = toy(adds_bos=adds_bos)
    task = task_of(*pairs)
    expected = [
        [harness_pair(tokenizer, c, t) for c, t in zip(i.contexts, i.continuations, strict=True)] for i in task.items
    ]
    if any(not scored for item in expected for _, scored in item):
        with pytest.raises(TaskError, match="0 tokens"):
            encode_task(task, tokenizer, max_length=100)
        return
    encoded = encode_task(task, tokenizer, max_length=100)
    assert [[(c.tokens, c.n_scored) for c in item.choices] for item in encoded] == [
        [(tuple(start + scored), len(scored)) for start, scored in item] for item in expected
    ]


def test_trailing_space_moves_to_the_continuation(toy):
    tokenizer = toy()
    (item,) = encode_task(task_of(("one two  \n", "red", "blue")), tokenizer, max_length=100)
    assert pieces(tokenizer, item.choices[0]) == (["one", " two"], [" ", " ", "\n", " red"])
    assert split_pair("a \t", " b") == ("a", " \t b")


@pytest.mark.parametrize(
    ("bos", "adds_bos", "begins"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("none", False, False),
        ("none", True, False),
        ("always", False, True),
        ("always", True, True),
    ],
)
def test_who_adds_the_first_token(bos, adds_bos, begins, toy):
    tokenizer = toy(adds_bos=adds_bos)
    (item,) = encode_task(task_of(("one", "red", "blue")), tokenizer, bos=bos, max_length=100)
    assert [(choice.tokens[0] == 0, choice.tokens.count(0)) for choice in item.choices] == [(begins, begins)] * 2
    assert pieces(tokenizer, item.choices[0])[1] == [" red"]


@pytest.mark.parametrize("bos", ["auto", "always"])
def test_a_text_that_begins_with_the_token_gets_no_second_one(bos, toy):
    tokenizer = toy(adds_bos=True)
    (item,) = encode_task(task_of(("<s>one", "red", "blue")), tokenizer, bos=bos, max_length=100)
    assert item.choices[0].tokens.count(0) == 1


@pytest.mark.parametrize("bos", ["auto", "none", "always"])
@pytest.mark.parametrize("context", ["", "  "])
def test_an_empty_context_becomes_the_first_token(bos, context, toy):
    tokenizer = toy()
    (item,) = encode_task(task_of((context, "red", "blue")), tokenizer, bos=bos, max_length=100)
    start, scored = pieces(tokenizer, item.choices[0])
    assert start == ["<s>"]
    assert "".join(scored) == context + " red"


def test_without_a_bos_token_the_end_token_stands_in(toy):
    tokenizer = toy(bos=None)
    (item,) = encode_task(task_of(("", "red", "blue")), tokenizer, max_length=100)
    assert item.choices[0].tokens[0] == 1


def test_without_either_token_an_empty_context_is_refused(toy):
    with pytest.raises(TaskError, match="empty context"):
        encode_task(task_of(("", "red", "blue")), toy(bos=None, eos=None), max_length=100)


def test_always_needs_a_token(toy):
    with pytest.raises(UsageError, match="no beginning-of-sequence"):
        encode_task(task_of(("one", "red", "blue")), toy(bos=None), bos="always", max_length=100)


def test_an_unknown_rule_is_refused(toy):
    with pytest.raises(UsageError, match="--bos 'yes'"):
        encode_task(task_of(("one", "red", "blue")), toy(), bos="yes", max_length=100)


def test_a_long_context_is_cut_on_the_left(toy):
    tokenizer = toy(adds_bos=True)
    task = task_of(("one two six ten", "red", "blue"))
    (item,) = encode_task(task, tokenizer, max_length=3)
    assert pieces(tokenizer, item.choices[0]) == ([" two", " six", " ten"], [" red"])
    assert pieces(tokenizer, item.choices[1]) == ([" six", " ten"], [" blu", "e"])
    assert [choice.n_cut for choice in item.choices] == [2, 3]  # <s> and "one"; with the longer choice " two" as well
    (whole,) = encode_task(task, tokenizer, max_length=6)
    assert [choice.n_cut for choice in whole.choices] == [0, 0]


def test_a_choice_longer_than_the_window_is_refused_by_item(toy):
    with pytest.raises(TaskError, match="t, item 't-1': a choice has 4 tokens, the model takes 1 to 3"):
        encode_task(task_of(("one", "red", "sea"), ("one", "red", "blue bird")), toy(), max_length=3)


def test_texts_are_encoded_in_few_calls(toy):
    tokenizer = toy()
    encode_task(task_of(*((f"context {n}", "red", "blue") for n in range(600))), tokenizer, max_length=100)
    assert tokenizer.calls <= 4


def test_encoded_items_carry_what_metrics_need(toy):
    (item,) = encode_task(task_of(("one", "red", "süß"), gold=1), toy(), max_length=100)
    assert (item.task, item.id, item.gold, item.cluster) == ("t", "t-0", 1, "t-0")
    assert (item.choice_chars, item.choice_bytes) == ((3, 3), (3, 5))


def test_a_token_id_is_one_object_however_often_it_occurs(toy):
    """Keep 8 bytes a token: without this, a hundred thousand items take four times the memory."""
    items = encode_task(task_of(*((f"{n} {n + 1}", "red", "blue") for n in range(400))), toy(), max_length=100)
    tokens = [token for item in items for choice in item.choices for token in choice.tokens]
    assert max(tokens) > 300  # small integers are shared by Python itself
    assert len({id(token) for token in tokens}) == len(set(tokens))
