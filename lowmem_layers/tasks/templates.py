"""Sandboxed Jinja templates and expressions over the fields of a record."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jinja2

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.records import Record
from lowmem_layers.tasks.sandbox import Sandbox

_BRACES = re.compile(r"\s*\{\{(?P<inside>(?:(?!\}\}).)*)\}\}\s*", re.DOTALL)
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    MemoryError,
)


_ENVIRONMENT = Sandbox()


def text_template(source: str, where: str) -> Callable[[Record], str]:
    """Compile a template that gives text; `where` names file and field in complaints.

    Raises:
        TaskError: it is not a valid template; the function raises it where a record cannot be rendered.
    """
    template = _compiled(lambda: _ENVIRONMENT.from_string(source), where)
    return lambda record: _evaluated(lambda: template.render(**_names(record)), where, record)


def expression(source: str, where: str) -> Callable[[Record], Any]:
    """Compile an expression that gives a value of any type: `choices.text`, or the same in braces.

    Raises:
        TaskError: it is not one valid expression; the function raises it where it cannot be evaluated.
    """
    braced = _BRACES.fullmatch(source)
    inside = braced["inside"] if braced else source
    compute = _compiled(lambda: _ENVIRONMENT.compile_expression(inside, undefined_to_none=False), where)
    return lambda record: _evaluated(lambda: _defined(compute(**_names(record))), where, record)


def _names(record: Record) -> dict[str, Any]:
    return {str(name): value for name, value in record.fields.items()}


def _defined(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined):
        str(value)  # StrictUndefined raises, naming what is missing
    return value


def _compiled(build: Callable[[], Any], where: str) -> Any:
    try:
        return build()
    except (jinja2.TemplateError, RecursionError) as error:
        raise TaskError(f"{where}: not a valid template ({error})", "see Jinja's template syntax") from error


def _evaluated(compute: Callable[[], Any], where: str, record: Record) -> Any:
    _ENVIRONMENT.reset()
    try:
        return compute()
    except _FAILURES as error:
        known = ", ".join(sorted(map(str, record.fields))[:12]) or "none"
        raise TaskError(
            f"{where}: {record.where} cannot be rendered ({error})".encode("ascii", "backslashreplace").decode(),
            f"the fields of this record are: {known}".encode("ascii", "backslashreplace").decode(),
        ) from error
