"""Templates: sandboxed, strict about what is missing, bounded in size."""

from __future__ import annotations

import pytest

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.records import Record
from lowmem_layers.tasks.templates import expression, text_template

RECORD = Record({"q": "Why", "choices": {"text": ["a", "b"]}, "n": 2}, "x.jsonl, line 4")


def test_a_template_gives_text_and_keeps_its_last_newline():
    assert text_template("Q: {{ q }}?\n", "w")(RECORD) == "Q: Why?\n"


@pytest.mark.parametrize("source", ["choices.text", "{{ choices.text }}", "  {{choices.text}}\n"])
def test_an_expression_gives_a_value_with_or_without_braces(source):
    assert expression(source, "w")(RECORD) == ["a", "b"]


def test_nothing_is_escaped():
    assert text_template("{{ q }} <&>", "w")(Record({"q": "<b>"}, "x")) == "<b> <&>"


@pytest.mark.parametrize("source", ["{{ q", "{% if %}", "{{ q | nofilter }}", "{% endfor %}"])
def test_a_broken_template_is_refused_at_once(source):
    with pytest.raises(TaskError, match=r"f\.toml, field 'context': not a valid template"):
        text_template(source, "f.toml, field 'context'")


@pytest.mark.parametrize("source", ["a b", "{{ a }}{{ b }}", "{% if q %}", ""])
def test_a_broken_expression_is_refused_at_once(source):
    with pytest.raises(TaskError, match="not a valid template"):
        expression(source, "w")


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing }}",
        "{{ choices.nothing.at_all }}",
        "{{ q + 1 }}",
        "{{ 1 / 0 }}",
        "{{ q.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ choices.text.append('c') }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 10000000000 * [1] }}",
        "{{ n ** 999999999 }}",
        "{{ range(10000000) | list }}",
        "{{ [1][5] }}",
        "{{ q | int(base=99) | length }}",
    ],
)
def test_what_cannot_be_rendered_names_template_and_line(source):
    render = text_template(source, "f.toml, field 'context'")
    with pytest.raises(TaskError) as caught:
        render(RECORD)
    assert caught.value.message.startswith("f.toml, field 'context': x.jsonl, line 4 cannot be rendered")
    assert "choices, n, q" in caught.value.hint


def test_an_expression_of_something_missing_is_refused():
    with pytest.raises(TaskError, match="cannot be rendered"):
        expression("missing", "w")(RECORD)


def test_records_are_not_changed_by_templates():
    with pytest.raises(TaskError):
        text_template("{% set _ = choices.update({'x': 1}) %}", "w")(RECORD)
    assert RECORD.fields["choices"] == {"text": ["a", "b"]}


def test_small_repetitions_are_fine():
    assert text_template("{{ '-' * n }}{{ n * n }}{{ n ** 3 }}", "w")(RECORD) == "--48"
