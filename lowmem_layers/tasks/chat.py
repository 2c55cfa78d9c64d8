"""Chat templates: a context becomes the user's turn, and its choices are scored as the assistant's answer.

Few-shot examples are turns of their own before it. Source: lm-evaluation-harness, `apply_chat_template` with its
default `fewshot_as_multiturn`; transformers, `render_jinja_template`, whose variables and Jinja
settings are used here. Templates come with models, from strangers, so they run in the sandbox. They get no clock: a
template that writes today's date would give other numbers tomorrow; most have a fixed date for that case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.items import ChatTemplate, Item, Task
from lowmem_layers.tasks.sandbox import FAILURES, Sandbox

TOKENIZERS_OWN = "tokenizer"


def read_chat_template(option: str) -> ChatTemplate:
    """Read the template that --chat-template names: a file, or the tokenizer's own, which is read with the model.

    Raises:
        TaskError: there is no such file, or it is not UTF-8.
    """
    if option == TOKENIZERS_OWN:
        return ChatTemplate(option, None)
    path = Path(option)
    try:
        source = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = (error.strerror or "") if isinstance(error, OSError) else "it is not UTF-8"
        raise TaskError(
            f"cannot read the chat template {path}: {problem}",
            f"give a Jinja file; --chat-template {TOKENIZERS_OWN} takes the tokenizer's own",
        ) from error
    return ChatTemplate(path.name, source)


def described_template(chat: ChatTemplate) -> dict[str, str]:
    """Give what a run's record keeps of the template; items' fingerprints hold what the tokenizer's own writes."""
    if chat.source is None:
        return {"chat_template": chat.name}
    return {"chat_template": chat.name, "chat_template_sha256": hashlib.sha256(chat.source.encode()).hexdigest()}


def in_chat(task: Task, chat: ChatTemplate, tokenizer: Any) -> Task:
    """Write every context of a task as a chat: a system turn where the task has one, examples, and the user's turn.

    The choices follow where the assistant's answer begins, without the space that separates them from plain text.

    Raises:
        TaskError: the tokenizer has no template, or the template is not valid or refuses a turn.
    """
    name, template = _compiled(chat, tokenizer)
    special = dict(getattr(tokenizer, "special_tokens_map", {}))
    written: dict[tuple[str, str], str] = {}  # choices mostly share their context

    def render(turns: list[dict[str, str]]) -> str:
        variables = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        _ENVIRONMENT.reset()  # the meter counts each chat anew
        return template.render(**variables, **special)

    def write(item: Item, context: str) -> str:
        if (item.system, context) in written:
            return written[item.system, context]
        turns = _turns(item, context)
        try:
            text = render(turns)
        except FAILURES as error:
            message = str(error).encode("ascii", "backslashreplace").decode()
            fails = f"fails ({message})"
            with suppress(*FAILURES):
                if item.system and render(turns[1:]):
                    fails = f"takes no system turn ({message}), which the task's description is"
            raise TaskError(
                f"{task.name}, item {item.id!r}: {name} {fails}",
                "use --chat-template FILE with another template, or leave it out",
            ) from error
        written.clear()  # only the choices of one item share a context
        return written.setdefault((item.system, context), text)

    return replace(
        task,
        items=tuple(
            replace(
                item,
                contexts=tuple(write(item, context) for context in item.contexts),
                continuations=tuple(one.removeprefix(task.delimiter) for one in item.continuations),
            )
            for item in task.items
        ),
        chat=None,
    )


def _turns(item: Item, context: str) -> list[dict[str, str]]:
    """List the turns of a chat that ends with an item's question.

    Raises:
        TaskError: the item's context does not begin with its examples, which would stand there twice.
    """
    said = [("system", item.system)] if item.system else []
    for question, answer in item.examples.turns:
        said += [("user", question), ("assistant", answer)]
    asked = context.removeprefix(item.system)
    if not asked.startswith(item.examples.text):
        raise TaskError(
            f"{item.task}, item {item.id!r}: its context does not begin with its few-shot examples",
            "leave out --chat-template or --fewshot",
        )
    said.append(("user", asked.removeprefix(item.examples.text)))
    return [{"role": role, "content": content} for role, content in said]


def _compiled(chat: ChatTemplate, tokenizer: Any) -> tuple[str, jinja2.Template]:
    """Compile a template; give it with its name for messages.

    Raises:
        TaskError: the tokenizer has no template, or several without a default, or the template is not valid.
    """
    name, source = f"the chat template {chat.name}", chat.source
    if source is None:
        name, own = "the tokenizer's chat template", getattr(tokenizer, "chat_template", None)
        source = own.get("default") if isinstance(own, Mapping) else own
        if not isinstance(source, str):
            has = f"several chat templates and no default: {', '.join(own)}" if own else "no chat template"
            raise TaskError(
                f"this model's tokenizer has {has}",
                "base models have none: leave --chat-template out, or give one with --chat-template FILE",
            )
    try:
        return name, _ENVIRONMENT.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TaskError(f"{name} is not valid ({error})", "see Jinja's template syntax") from error


_GENERATION = {"generation"}


class _Generation(Extension):
    """Read `{% generation %}`, which marks the assistant's text for training: what stands in it is written as it is."""

    tags = _GENERATION

    def parse(self, parser: Parser) -> nodes.Node:
        """Take the statements up to `endgeneration`."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _environment() -> Sandbox:
    made = Sandbox(
        undefined=jinja2.Undefined,
        keep_trailing_newline=False,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    return made


_ENVIRONMENT = _environment()
