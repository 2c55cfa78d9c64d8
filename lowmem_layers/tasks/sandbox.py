"""Jinja's sandbox with a meter: a template can neither reach outside its record, nor run for ever, nor fill the memory.

Jinja's own sandbox keeps templates from Python's internals and from ranges above 100,000; what loops, calls,
repetitions, joins and widths may take together is counted here, for each evaluation anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

MAX_STEPS = 200_000  # turns of loops and calls
MAX_CHARS = 10_000_000  # characters or list entries made
_MAX_NUMBER = 100_000  # as a width, a count or a number of repetitions
_POWER = 64
_WIDE = re.compile(r"\d{6,}|\*|\{[^{}]*\{")  # of a format: a width of six digits, or one that comes from the values
_FORMATS = ("format", "format_map")
_NO_METHODS = frozenset({"translate", "maketrans"})


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates' work is metered; `reset` before each evaluation."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=self._output)
        self.filters = {name: self._metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"_turns": self._turns, "_concatenated": self._concatenated}
        self.globals = {name: value for name, value in self.globals.items() if name != "lipsum"}
        self.reset()

    def reset(self) -> None:
        """Begin a new evaluation."""
        self.steps = self.chars = 0

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Put the meter into every loop and every concatenation, of templates and expressions alike."""
        return super()._generate(self._with_meter(source), *args, **kwargs)

    def _with_meter(self, tree: Any) -> Any:
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_turns", [], [], None, None, lineno=loop.lineno)
        for node in list(tree.find_all(nodes.Node)):
            for field, value in node.iter_fields():
                if isinstance(value, nodes.Concat):
                    setattr(node, field, self._joined(value))
                elif isinstance(value, list):
                    value[:] = [self._joined(one) if isinstance(one, nodes.Concat) else one for one in value]
        return tree

    def _joined(self, node: nodes.Concat) -> nodes.Filter:
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(pieces, "_concatenated", [], [], None, None, lineno=node.lineno)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what would grow beyond all bounds."""
        sizes = [len(value) for value in (left, right) if hasattr(value, "__len__")]
        if operator == "+":
            self._make(sum(sizes))
        elif operator == "*" and sizes:
            self._make(sizes[0] * max((value for value in (left, right) if isinstance(value, int)), default=1))
        elif operator == "**" and isinstance(right, int | float) and right > _POWER:
            raise OverflowError(f"a power above {_POWER}")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return SandboxedEnvironment.call_binop(self, context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count calls, and refuse methods of texts that would make too much."""
        self._step()
        method = getattr(function, "__wrapped__", function)  # Jinja wraps a text's `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            self._check_call(getattr(method, "__name__", ""), owner, args, kwargs)
        return super().call(context, function, *args, **kwargs)

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter; Jinja's marks on it (what it wants as its first argument) are kept by `wraps`."""
        places = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            self._step()
            value = args[places] if len(args) > places else None
            self._check_call(name, value, args[places + 1 :], kwargs)
            return function(*args, **kwargs)

        return filtered

    def _check_call(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        if name in _NO_METHODS:
            raise ValueError(f"{name} is not for templates")
        if name in _FORMATS:
            _check_format(str(value))
        elif any(isinstance(one, int) and one > _MAX_NUMBER for one in given):
            raise OverflowError(f"{name} with a number above {_MAX_NUMBER}")
        if name == "join":
            parts = given[0] if isinstance(value, str) and given and not isinstance(given[0], str) else value
            self._make(sum(map(_size, parts)) if isinstance(parts, list | tuple) else 0)
        elif name == "replace" and len(given) > 1:
            self._make(_size(value) + str(value).count(str(given[0])) * _size(given[1]))

    def _turns(self, values: Iterable[Any]) -> Iterable[Any]:
        """Count a loop's turns; what has a length keeps it, for Jinja's `loop.last`."""
        if hasattr(values, "__len__"):
            self._step(len(values))  # type: ignore[arg-type]
            return values
        return self._counted(values)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def _concatenated(self, pieces: list[Any]) -> str:
        self._make(sum(map(_size, pieces)))
        return "".join(map(str, pieces))

    def _output(self, value: Any) -> Any:
        self._make(_size(value))
        return value

    def _step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > MAX_STEPS:
            raise OverflowError(f"more than {MAX_STEPS} turns of loops and calls")

    def _make(self, count: int) -> None:
        self.chars += count
        if self.chars > MAX_CHARS:
            raise OverflowError(f"more than {MAX_CHARS} characters or entries")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise OverflowError("a format with a width of its own values, or of six digits")
