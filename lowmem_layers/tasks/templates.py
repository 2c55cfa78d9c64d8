"""Jinja templates and expressions over the fields of a record, in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jinja2

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.records import Record
from lowmem_layers.tasks.sandbox import FAILURES, Sandbox

_BRACES = re.compile(r"\s*\{\{(?P<inside>(?:(?!\}\}).)*)\}\}\s*", re.DOTALL)  # exactly one pair, around everything
_ENVIRONMENT = Sandbox()


def text_template(source: str, where: str) -> Callable[[Record], str]:
    """Compile a template that gives text; `where` names its file and field in errors.

    Raises:
        TaskError: the template is not valid. The compiled function raises it for a record that cannot be rendered.
    """
    template = _compiled(lambda: _ENVIRONMENT.from_string(source), where)
    return lambda record: _evaluated(template.render, where, record)


def expression(source: str, where: str) -> Callable[[Record], Any]:
    """Compile an expression that gives a value of any type: `choices.text`, or the same in braces.

    Raises:
        TaskError: the expression is not valid. The compiled function raises it for a record that lacks a value.
    """
    braced = _BRACES.fullmatch(source)
    inside = braced["inside"] if braced else source
    compute = _compiled(lambda: _ENVIRONMENT.compile_expression(inside, undefined_to_none=False), where)

    def value_of(fields: dict[str, Any]) -> Any:
        value = compute(fields)
        if isinstance(value, jinja2.Undefined):
            str(value)  # Jinja's StrictUndefined raises here, and its message names what is missing
        return value

    return lambda record: _evaluated(value_of, where, record)


def _compiled(build: Callable[[], Any], where: str) -> Any:
    try:
        return build()
    except (jinja2.TemplateError, RecursionError) as error:
        raise TaskError(f"{where}: not a valid template ({error})", "see Jinja's template syntax") from error


def _evaluated(compute: Callable[[dict[str, Any]], Any], where: str, record: Record) -> Any:
    _ENVIRONMENT.reset()  # the meter counts each record anew
    try:
        return compute({str(name): value for name, value in record.fields.items()})
    except FAILURES as error:
        known = ", ".join(sorted(map(str, record.fields))[:12]) or "none"
        message = f"{where}: {record.where} cannot be rendered ({error})"
        hint = f"the fields of this record are: {known}"
        # a template's error may quote the record, and half a surrogate pair in it could not be printed
        raise TaskError(*(text.encode("ascii", "backslashreplace").decode() for text in (message, hint))) from error
