"""Templates: sandboxed, strict about what is missing, bounded in size."""

from __future__ import annotations

import tracemalloc

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


def test_a_field_may_have_any_name():
    record = Record({"self": "a", "context": "b", "q": "c"}, "x")
    assert text_template("{{ q }}{{ context }}", "w")(record) == "cb"
    assert expression("q", "w")(record) == "c"


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


def test_a_number_without_end_is_refused():
    with pytest.raises(TaskError, match="cannot be rendered"):
        expression("1e400", "w")(RECORD)


def test_an_expression_of_something_missing_is_refused():
    with pytest.raises(TaskError, match="cannot be rendered"):
        expression("missing", "w")(RECORD)


def test_records_are_not_changed_by_templates():
    with pytest.raises(TaskError):
        text_template("{% set _ = choices.update({'x': 1}) %}", "w")(RECORD)
    assert RECORD.fields["choices"] == {"text": ["a", "b"]}


DOUBLED = "{% set s = namespace(x='x' * 1000) %}{% for i in range(40) %}STEP{% endfor %}{{ s.x | length }}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{% for i in cycler('a').next | batch(2) %}{% endfor %}",
        DOUBLED.replace("STEP", "{% set s.x = s.x ~ s.x %}"),
        DOUBLED.replace("STEP", "{% set s.x = s.x + s.x %}"),
        DOUBLED.replace("STEP", "{% set s.x = [s.x, s.x] | join %}"),
        DOUBLED.replace("STEP", "{% set s.x = ''.join([s.x, s.x]) %}"),
        DOUBLED.replace("STEP", "{% set s.x = s.x | replace('x', 'xx') %}"),
        DOUBLED.replace("STEP", "{% set both %}{{ s.x }}{{ s.x }}{% endset %}{% set s.x = both %}"),
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ q | center(10000000000) }}",
        "{{ q.ljust(10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=10000000000) }}",
        "{{ lipsum(n=100000) }}",
        "{{ q.translate({87: 'x' * 99999}) }}",
    ],
)
def test_what_would_run_for_ever_or_fill_the_memory_is_refused(source):
    with pytest.raises(TaskError, match="cannot be rendered"):
        text_template(source, "w")(RECORD)


@pytest.mark.parametrize(
    "source",
    [
        "{{ q | center(10000000000) }}",
        "{{ q.ljust(10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=10000000000) }}",
        "{{ '{a:>10000000000}'.format_map({'a': 1}) }}",
    ],
)
def test_it_is_refused_before_the_memory_is_taken(source):
    tracemalloc.start()
    try:
        with pytest.raises(TaskError, match="cannot be rendered"):
            text_template(source, "w")(RECORD)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_an_expression_is_metered_too():
    for source in ("('x' * 9999999) ~ ('x' * 9999999)", "q.ljust(10000000000)"):
        with pytest.raises(TaskError, match="cannot be rendered"):
            expression(source, "w")(RECORD)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for t in choices.text %}{{ loop.index }}{{ t }}{{ ', ' if not loop.last }}{% endfor %}", "1a, 2b"),
        ("{% for k, v in choices.items() %}{{ k }}={{ v | join('/') }}{% endfor %}", "text=a/b"),
        (
            "{{ q ~ '-' ~ n }} {{ 'a' + 'b' }} {{ '%05.2f' % n }} {{ '{:,}'.format(7000000) }}",
            "Why-2 ab 02.00 7,000,000",
        ),
        ("{{ q | replace('W', 'w') | upper }}{{ ['a', 'b'] | map('upper') | join('+') }}", "WHYA+B"),
        (
            "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(q) }}{{ q | truncate(2, True, '', 0) }}{{ q | center(5) }}",
            "<Why>Wh Why ",
        ),
    ],
)
def test_ordinary_templates_are_not_in_the_meters_way(source, text):
    render = text_template(source, "w")
    for _ in range(3):
        assert render(RECORD) == text


def test_every_record_has_a_meter_of_its_own():
    render = text_template("{% for i in range(90000) %}{% endfor %}{{ q }}", "w")
    assert [render(RECORD) for _ in range(5)] == ["Why"] * 5


def test_small_repetitions_are_fine():
    assert text_template("{{ '-' * n }}{{ n * n }}{{ n ** 3 }}", "w")(RECORD) == "--48"
