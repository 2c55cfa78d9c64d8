"""Records of a data file: each knows its place in the file, so that every error names file, line and field."""

from __future__ import annotations

import json
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lowmem_layers.errors import TaskError


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a data set, and the place from which it was read (`boolq.jsonl, line 3`)."""

    fields: Mapping[str, Any]
    where: str

    def fail(self, field: str, problem: str, hint: str = "") -> NoReturn:
        """Refuse this record, naming the field.

        Raises:
            TaskError: always.
        """
        raise TaskError(f"{self.where}, field {field!r}: {problem}", hint or "correct the line, or leave it out")

    def has(self, field: str) -> bool:
        """Tell whether the record has the field and it is not null."""
        return self.fields.get(field) is not None

    def get(self, field: str) -> Any:
        """Read a field of any type; `choices.text` reads the field `text` of the object `choices`.

        Raises:
            TaskError: the field is missing.
        """
        value: Any = self.fields
        for part in field.split("."):
            if not isinstance(value, Mapping) or part not in value:
                known = ", ".join(sorted(map(shown, self.fields))[:12]) or "none"
                self.fail(field, "missing", f"the fields of this record are: {known}")
            value = value[part]
        return value

    def text(self, field: str, *, blank: bool = False) -> str:
        """Read text as it is: nothing is stripped, and control characters are kept.

        Raises:
            TaskError: the field is missing, of another type, blank (unless allowed), or has half a surrogate pair.
        """
        return self.check_text(field, self.get(field), blank=blank)

    def check_text(self, field: str, value: Any, *, blank: bool = False) -> str:
        """Give the value back if it is usable text.

        Raises:
            TaskError: it is of another type, blank (unless allowed), or has half a surrogate pair.
        """
        if not isinstance(value, str):
            self.fail(field, f"expected text, got {shown(value)}")
        if not blank and not value.strip():
            self.fail(field, f"empty: {shown(value)}")
        if not is_unicode(value):
            self.fail(field, "has half of a surrogate pair, which no tokenizer can read")
        return value

    def texts(self, field: str, at_least: int) -> tuple[str, ...]:
        """Read a list of non-empty texts.

        Raises:
            TaskError: the field is missing, not a list, or too short, or an entry is not text or is empty.
        """
        values = self.get(field)
        if not isinstance(values, list | tuple):
            self.fail(field, f"expected a list of texts, got {shown(values)}")
        if len(values) < at_least:
            self.fail(field, f"expected at least {at_least} entries, got {len(values)}")
        return tuple(self.check_text(f"{field}[{index}]", value) for index, value in enumerate(values))

    def choice_index(self, field: str, n_choices: int) -> int:
        """Read the index of the gold choice, a number or its digits as text.

        Raises:
            TaskError: the field is missing, not a whole number, or outside the choices.
        """
        value = self.get(field)
        # int() also reads digits of other scripts and takes seconds for a very long text: neither is meant here
        if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 5:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(field, f"expected a whole number from 0 to {n_choices - 1}, got {shown(value)}")
        if not 0 <= value < n_choices:
            hint = "-1 marks items without a published answer: use a split that has answers" if value == -1 else ""
            self.fail(field, f"{value} is outside the {n_choices} choices (0 to {n_choices - 1})", hint)
        return value

    def identifier(self, index: int, task: str, names: tuple[str, ...]) -> str:
        """Take the first of the fields `names` that the record has, otherwise its place in the data: `boolq-0`.

        Raises:
            TaskError: the id is neither text nor a whole number, or has control characters.
        """
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, bool) or (value is not None and not isinstance(value, int | str)):
                self.fail(name, f"expected text or a whole number, got {shown(value)}")
            if value is None:
                continue
            own_id = self.check_text(name, str(value))
            if any(unicodedata.category(sign) == "Cc" for sign in own_id):
                self.fail(name, f"control characters in {shown(own_id)}", "ids are printed in tables: use plain text")
            return own_id
        return f"{task}-{index}"


def shown(value: Any) -> str:
    """Write any value for a message: on one line of at most 200 characters, in ASCII."""
    return (
        ascii(value)[:60] if isinstance(value, str) else _cut(reprlib.repr(value)).encode("ascii", "replace").decode()
    )


def reason(error: Exception) -> str:
    """Write another library's error for a message: on one line of at most 200 characters."""
    return _cut(" ".join(str(error).split()))


def _cut(text: str) -> str:
    """Leave at most 200 characters."""
    return text if len(text) <= 200 else text[:197] + "..."


def is_unicode(text: str) -> bool:
    """Tell whether the text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_jsonl(path: Path) -> Iterator[Record]:
    """Read a file with one JSON object a line; blank lines and a byte order mark are skipped.

    Raises:
        TaskError: the file does not exist, or a line is not UTF-8, not JSON, or not an object.
    """
    if not path.is_file():
        raise TaskError(f"no data file {path}", "check the folder and the name; the file has one JSON object a line")
    # read as bytes and decode line by line, so that a line that is not UTF-8 is named by its number
    with open_data(path) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path.name}, line {number}"
            try:
                text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode()
            except UnicodeDecodeError as error:
                raise TaskError(f"{where}: not UTF-8 (byte {error.start + 1})", "save the file as UTF-8") from error
            if text.strip():
                yield Record(parse_object(text, where), where)


def open_data(path: Path) -> BinaryIO:
    """Open a data file for reading bytes.

    Raises:
        TaskError: the file cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}", "check the file's permissions") from error


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        TaskError: the text is malformed, or another kind of JSON value.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            problem = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        else:  # Python's own limits, on the depth of objects and on the digits of a number
            problem = "nested too deeply, or a number of thousands of digits"
        raise TaskError(f"{where}: malformed JSON ({problem})", "write one JSON object on each line") from error
    if not isinstance(value, dict):
        raise TaskError(f"{where}: expected a JSON object, got {shown(value)}", "write one JSON object on each line")
    return value
