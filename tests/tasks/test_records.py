"""Reading data files: every complaint names file, line and field, and nothing else ever comes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks import BENCHMARKS, load_tasks
from lowmem_layers.tasks.records import Record, read_jsonl, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def attempt(read):
    """Give what was read, or the refusal; anything else is a failure of the test."""
    try:
        return read(), None
    except TaskError as refusal:
        return None, refusal


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: malformed JSON"),
        (b"[" * 100_000, "line 1: malformed JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1: malformed JSON"),
        (b'{"a": "\xff"}', "line 1: not UTF-8 (byte 8)"),
        (b'{"a": 1}\n\n[1, 2]', "line 3: expected a JSON object"),
        (b"null", "line 1: expected a JSON object"),
        (b'{"a": "tab\there"}', "line 1: malformed JSON (Invalid control character at column"),
    ],
)
def test_a_line_that_is_no_object_is_refused_by_its_number(raw, said, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    with pytest.raises(TaskError, match="line") as caught:
        list(read_jsonl(path))
    assert said in caught.value.message
    assert caught.value.hint


def test_blank_lines_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xe2\x80\xa8"}')
    assert [(r.fields["a"], r.where) for r in read_jsonl(path)] == [
        (1, "data.jsonl, line 1"),
        ("\u2028", "data.jsonl, line 3"),
    ]


def test_a_missing_field_lists_those_that_are_there():
    with pytest.raises(TaskError) as caught:
        Record({"b": 1, "a": 2}, "x.jsonl, line 1").text("question")
    assert caught.value.message == "x.jsonl, line 1, field 'question': missing"
    assert "'a', 'b'" in caught.value.hint


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
@example({f"\U00018d09{n}": {"\x1f" * 6: {"\U00010b92" * 6: None, "\x1f": 1e12}} for n in range(4)})
def test_any_value_is_shown_on_one_short_ascii_line(value):
    text = shown(value)
    assert text.isascii()
    assert "\n" not in text
    assert len(text) <= 200


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_value_in_any_field_is_read_or_refused(data, tmp_path, records):
    name = data.draw(st.sampled_from(sorted(BENCHMARKS)))
    record = data.draw(st.sampled_from(records[name]))
    changes = data.draw(st.dictionaries(st.sampled_from([*record, "id", "label"]), JSON, max_size=2))
    if "choices" in record and data.draw(st.booleans()):
        changes["choices"] = {"text": data.draw(JSON), "label": data.draw(JSON)}
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({**record, **changes}) + "\n", encoding="utf-8")
    task, refusal = attempt(lambda: load_tasks([name], data_dir=tmp_path)[0])
    if refusal is not None:
        assert refusal.message.startswith(f"{name}.jsonl, line 1")
        assert (refusal.message + refusal.hint).encode()
        return
    (item,) = task.items
    assert 0 <= item.gold < len(item.continuations) == len(item.contexts)
    assert all(item.choice_chars)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(raw, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    found, refusal = attempt(lambda: list(read_jsonl(path)))
    assert found is not None or refusal.message.startswith("data.jsonl, line ")
