"""Jinja's sandbox with a meter: a template cannot reach outside its record, run for ever or fill the memory.

Jinja's own sandbox keeps templates away from Python's internals and from ranges above 100,000. This module counts, for
each evaluation anew, the turns of loops and calls, and the characters that repetitions, joins and widths make.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from typing import Any

import jinja2
from jinja2 import StrictUndefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 200_000  # turns of loops and calls
MAX_CHARS = 10_000_000  # characters or list entries made
_MAX_NUMBER = 100_000  # as a width, a count or a number of repetitions
_POWER = 64
_WIDE = re.compile(r"\d{6,}|\*|\{[^{}]*\{")  # in a format: a width of six digits, or one taken from the values
FAILURES = (  # what a template can raise when it meets a record or a chat
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    NameError,  # of a number such as 1e400, which Jinja writes into its Python code as `inf`
    RecursionError,
    MemoryError,
)
_FORMATS = ("format", "format_map")
_NO_METHODS = frozenset({"translate", "maketrans"})  # they can put a long text in the place of every character


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment that meters the work of its templates; call `reset` before each evaluation."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **settings: Any) -> None:
        usual = {"undefined": StrictUndefined, "keep_trailing_newline": True, "autoescape": False}
        super().__init__(**usual | settings, finalize=self._output)
        self.filters = {name: self._metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"_turns": self._turns, "_concatenated": self._concatenated}  # `_generate` inserts them
        self.globals = {name: value for name, value in self.globals.items() if name != "lipsum"}
        self.globals |= {"namespace": _Namespace, "dict": lambda *args, **kwargs: dict(*args, **kwargs)}
        self.reset()

    def reset(self) -> None:
        """Begin a new evaluation: the counters go back to 0."""
        self.steps = self.chars = 0

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile a template or an expression with the meter in each loop and each concatenation.

        Jinja calls this method with the syntax tree of either; none of its public hooks sees `for` and `~`.
        """
        # 1) `for x in values` becomes `for x in values | _turns`
        for loop in source.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_turns", [], [], None, None, lineno=loop.lineno)

        # 2) `a ~ b`, in a field of a node or in a list of nodes, becomes `[a, b] | _concatenated`
        def joined(node: Any) -> Any:
            if not isinstance(node, nodes.Concat):
                return node
            pieces = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(pieces, "_concatenated", [], [], None, None, lineno=node.lineno)

        for node in list(source.find_all(nodes.Node)):
            for field, value in node.iter_fields():
                if isinstance(value, list):
                    value[:] = map(joined, value)
                else:
                    setattr(node, field, joined(value))
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, or refuse it if the result would be too large."""
        sizes = [len(value) for value in (left, right) if hasattr(value, "__len__")]
        if operator == "+":
            self._make(sum(sizes))
        elif operator == "*" and sizes:
            self._make(sizes[0] * max((value for value in (left, right) if isinstance(value, int)), default=1))
        elif operator == "**" and isinstance(right, int | float) and right > _POWER:
            raise OverflowError(f"a power above {_POWER}")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count a call, and refuse a method of a text if its result would be too large."""
        self._step()
        method = getattr(function, "__wrapped__", function)  # Jinja wraps a text's `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            self._check_call(getattr(method, "__name__", ""), owner, args, kwargs)
        return super().call(context, function, *args, **kwargs)

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter; `wraps` keeps Jinja's marks, which say what the filter takes as its first argument."""
        places = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            self._step()
            value = args[places] if len(args) > places else None
            self._check_call(name, value, args[places + 1 :], kwargs)
            return function(*args, **kwargs)

        return filtered

    def _check_call(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a filter, or a method of a text, if its result would be too large; it is applied to `value`."""
        given = (*args, *kwargs.values())
        if name in _NO_METHODS:
            raise ValueError(f"templates may not use {name}")
        if name in _FORMATS:
            _check_format(str(value))
        elif any(isinstance(one, int) and one > _MAX_NUMBER for one in given):
            raise OverflowError(f"{name} with a number above {_MAX_NUMBER}")
        if name == "join":  # the method joins its argument, the filter what it is applied to
            parts = given[0] if isinstance(value, str) and given and not isinstance(given[0], str) else value
            self._make(sum(map(_size, parts)) if isinstance(parts, list | tuple) else 0)
        elif name == "replace" and len(given) > 1:
            self._make(_size(value) + str(value).count(str(given[0])) * _size(given[1]))

    def _turns(self, values: Iterable[Any]) -> Iterable[Any]:
        """Count the turns of a loop: at once if their number is known, otherwise one by one."""
        if isinstance(values, Sized):
            self._step(len(values))
            return values  # not an iterator over them: Jinja's `loop.last` asks for the length

        def counted() -> Iterator[Any]:
            for value in values:
                self._step()
                yield value

        return counted()

    def _concatenated(self, pieces: list[Any]) -> str:
        self._make(sum(map(_size, pieces)))
        return "".join(map(str, pieces))

    def _output(self, value: Any) -> Any:
        """Count a value that a template writes; Jinja passes each through this method (`finalize`)."""
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


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named `self`: a template may write namespace(self=1)
        names = dict(*args[1:], **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the name {name!r}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise OverflowError("a format whose width has six digits or comes from the values")
