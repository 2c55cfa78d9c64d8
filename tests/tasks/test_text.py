"""Plain text: every token scored once, every byte counted once."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks import encode_task, load_tasks
from lowmem_layers.tasks.text import cluster_length


def load(path, **options):
    (task,) = load_tasks([f"text:{path}"], **options)
    return task


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    text=st.text(st.sampled_from("abé😀 \n"), min_size=1, max_size=300).filter(str.strip),
    stride=st.integers(16, 40),
    extra=st.integers(0, 40),
    max_length=st.integers(16, 60),
    bos=st.sampled_from(["auto", "none", "always"]),
    adds_bos=st.booleans(),
)
def test_windows_cover_the_text_once(text, stride, extra, max_length, bos, adds_bos, tmp_path, toy):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    tokenizer = toy(adds_bos=adds_bos)
    task = load(tmp_path / "a.txt", window=stride + extra, stride=stride)
    items = encode_task(task, tokenizer, bos=bos, max_length=max_length)
    choices = [item.choices[0] for item in items]
    scored = [token for choice in choices for token in choice.tokens[-choice.n_scored :]]
    assert scored == tokenizer([text], add_special_tokens=False)["input_ids"][0]
    assert sum(item.choice_chars[0] for item in items) == len(text)
    assert sum(item.choice_bytes[0] for item in items) == len(text.encode())
    assert all(1 < len(choice.tokens) <= min(stride + extra, max_length) + 1 for choice in choices)
    assert max(choice.n_scored for choice in choices) - min(choice.n_scored for choice in choices) <= 1
    assert max(choice.n_scored for choice in choices) <= stride
    # what is cut is what a model that takes the whole window would have seen beside it
    if stride <= max_length:
        roomy = encode_task(task, tokenizer, bos=bos, max_length=stride + extra)
        seen = [len(one.choices[0].tokens) for one in roomy]
        assert [choice.n_cut for choice in choices] == [a - len(c.tokens) for a, c in zip(seen, choices, strict=True)]


def test_windows_begin_with_the_first_token_where_the_tokenizer_adds_one(tmp_path, toy):
    (tmp_path / "a.txt").write_text("word " * 100)
    task = load(tmp_path / "a.txt", window=20, stride=16)
    with_bos = encode_task(task, toy(adds_bos=True), max_length=100)
    without = encode_task(task, toy(), max_length=100)
    assert [item.choices[0].tokens[0] == 0 for item in with_bos] == [True] * len(with_bos)
    assert [item.choices[0].tokens[0] == 0 for item in without] == [True] + [False] * (len(without) - 1)


def test_the_task_is_judged_in_nats_per_byte(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    task = load(tmp_path / "a.txt")
    assert (task.name, task.metric, task.chance) == ("text:a.txt", "nll_per_byte", 0.0)
    assert task.source["window_tokens"] == 512
    assert task.source["stride_tokens"] == 256


def test_the_limit_keeps_the_first_windows(tmp_path, toy):
    (tmp_path / "a.txt").write_text("word " * 100)
    whole = encode_task(load(tmp_path / "a.txt", window=20, stride=16), toy(), max_length=100)
    some = encode_task(load(tmp_path / "a.txt", window=20, stride=16, limit=2), toy(), max_length=100)
    assert some == whole[:2]
    assert len(whole) > 2


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"", "no text"), (b" \n", "no text"), (b"a\n\xff", "line 2: not UTF-8"), (b"a\n\nb\0", "line 3: a zero byte")],
)
def test_a_file_that_is_no_text_is_refused(raw, said, tmp_path):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(TaskError, match=said):
        load(tmp_path / "a.txt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TaskError, match="no text file"):
        load(tmp_path / "a.txt")


@given(n_items=st.integers(1, 2000), window=st.integers(16, 600), stride=st.integers(16, 600))
def test_clusters_of_windows_that_overlap(n_items, window, stride):
    """A cluster is five to ten times as long as the overlaps, ten where 30 clusters remain."""
    stride = min(stride, window)
    length = cluster_length(n_items, window, stride)
    overlaps = sum(k * stride < window for k in range(1, window))
    assert length == 1 if overlaps == 0 else 5 * overlaps <= length <= 10 * overlaps
    assert length == 10 * overlaps or n_items < 300 * overlaps or overlaps == 0
    assert length <= max(5 * overlaps, n_items / 30) or overlaps == 0


def test_neighbouring_windows_are_one_cluster(tmp_path, toy):
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question. " * 40)
    items = encode_task(load(tmp_path / "a.txt", window=64, stride=32), toy(), max_length=100)
    assert len(items) > 11
    names = [item.cluster for item in items]
    assert names[:11] == ["windows-0"] * 5 + ["windows-1"] * 5 + ["windows-2"]
    apart = encode_task(load(tmp_path / "a.txt", window=32, stride=32), toy(), max_length=100)
    assert len({item.cluster for item in apart}) == len(apart)
    short = encode_task(load(tmp_path / "a.txt", window=64, stride=64), toy(), max_length=32)
    assert len({item.cluster for item in short}) == len(short), "the model's length cuts windows down to their stride"


@pytest.mark.parametrize(("window", "stride"), [(64, 65), (64, 8), (64, 0)])
def test_a_stride_that_does_not_fit_is_refused(window, stride, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match="do not fit"):
        load(tmp_path / "a.txt", window=window, stride=stride)


def test_a_text_has_no_examples(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TaskError, match="no few-shot"):
        load(tmp_path / "a.txt", fewshot=1)


def test_a_tokenizer_without_places_is_refused(tmp_path, toy):
    (tmp_path / "a.txt").write_text("text")
    tokenizer = toy()
    tokenizer.is_fast = False
    with pytest.raises(TaskError, match="where tokens begin"):
        encode_task(load(tmp_path / "a.txt"), tokenizer, max_length=100)


def test_a_tokenizer_without_a_first_token_is_refused(tmp_path, toy):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TaskError, match="neither a BOS nor an EOS"):
        encode_task(load(tmp_path / "a.txt"), toy(bos=None, eos=None), max_length=100)
