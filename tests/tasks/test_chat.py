"""Chats: the prompts of transformers' own rendering, the choices as answers, and templates that cannot be trusted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks import Task, encode_task, load_tasks
from lowmem_layers.tasks.chat import in_chat, read_chat_template
from lowmem_layers.tasks.items import ChatTemplate, make_item
from tests.model.conftest import tiny_tokenizer

# Written for this test in the manner of published ones: ChatML, a loop with control words, a fixed date, white space.
CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
Be short.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
TURNS = """{{- bos_token }}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{%- if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}
{%- set ns = namespace(first=true) %}
{% for message in messages %}
    {%- if message.tool_calls is defined %}{% continue %}{% endif %}
    {%- if message.role == "assistant" %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}[INST] {% if ns.first and system %}{{ system | tojson }} {% endif %}{{ message.content }} [/INST]
    {%- set ns.first = false %}{% endif %}
{%- endfor %}
{%- if not add_generation_prompt %}{{ eos_token }}{% endif %}
"""


def task_of(*systems: str) -> Task:
    items = [
        make_item("t", str(n), [f"{system}Is it {n}?\nAnswer:"] * 2, ["yes", " no"], 0)
        for n, system in enumerate(systems)
    ]
    return Task(
        "t",
        tuple(replace(item, system=system) for item, system in zip(items, systems, strict=True)),
        "acc",
        0.5,
    )


@pytest.fixture(scope="module")
def tokenizer():
    made = tiny_tokenizer()
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return made


@pytest.mark.parametrize("template", [CHATML, TURNS])
@pytest.mark.parametrize("own", [True, False])
def test_contexts_are_transformers_own_rendering(template, own, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", template if own else None)
    chat = ChatTemplate("tokenizer", None) if own else ChatTemplate("x.jinja", template)
    # the one difference: templates get no clock here, and one that asks for it takes its fixed date
    theirs = template.replace("strftime_now is defined", "false")
    chatted = in_chat(task_of("", "Think <b>well</b> & é. "), chat, tokenizer)
    for item, system in zip(chatted.items, ("", "Think <b>well</b> & é. "), strict=True):
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": f"Is it {item.id}?\nAnswer:"})
        expected = tokenizer.apply_chat_template(
            turns, chat_template=theirs, tokenize=False, add_generation_prompt=True
        )
        assert item.contexts == (expected,) * 2
        assert item.continuations == ("yes", " no")  # one space went: that which separated choice and context


def test_encoded_items_are_those_of_the_chat(tokenizer, tmp_path):
    (tmp_path / "a.jinja").write_text(CHATML)
    (task,) = load_tasks(["quick"], limit=2, chat_template=str(tmp_path / "a.jinja"))
    items = encode_task(task, tokenizer, max_length=2048)
    for item, plain in zip(items, load_tasks(["quick"], limit=2)[0].items, strict=True):
        for choice, text in zip(item.choices, plain.continuations, strict=True):
            whole = tokenizer.decode(choice.tokens)
            assert whole == (
                f"<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n{plain.contexts[0]}<|im_end|>\n"
                f"<|im_start|>assistant\n{text[1:]}"
            )
            assert tokenizer.decode(choice.tokens[-choice.n_scored :]) == "\n" + text[1:]
    assert task.source["chat_template"] == "a.jinja"
    assert len(task.source["chat_template_sha256"]) == 64


def test_a_text_that_the_template_begins_gets_no_second_bos(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TURNS)
    (task,) = load_tasks(["quick"], limit=1, chat_template="tokenizer")
    assert task.source["chat_template"] == "tokenizer"
    (item,) = encode_task(task, tokenizer, bos="always", max_length=2048)
    assert all(choice.tokens.count(tokenizer.bos_token_id) == 1 for choice in item.choices)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "tokenizer has no chat template"),
        ({"a": "x", "b": "y"}, "several chat templates and no default: a, b"),
        ("{% if %}", "is not valid"),
        (
            "{{ raise_exception('no system turn') }}",
            r"t, item '0': the tokenizer's chat template fails \(no system turn",
        ),
        ("{{ strftime_now('%Y') }}", "'strftime_now' is undefined"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "turns of loops"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% set n = namespace(__class__=1) %}", "may not have the name '__class__'"),
        ("{% set n = namespace() %}{% set n.__init__ = 1 %}", "may not have the name '__init__'"),
        ("{{ dict.mro() }}", "fails"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, said, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(TaskError, match=said):
        in_chat(task_of(""), ChatTemplate("tokenizer", None), tokenizer)


def test_the_default_of_several_templates_is_taken(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", {"rag": "x", "default": "{{ messages[0].content }}"})
    assert in_chat(task_of(""), ChatTemplate("tokenizer", None), tokenizer).items[0].contexts[0].startswith("Is it")


@pytest.mark.parametrize("name", ["arc_easy", "winogrande"])
def test_examples_are_turns_of_their_own(name, data_dir, records, jsonl, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    shots = {"fewshot": 1, "fewshot_file": jsonl(data_dir / "shots.jsonl", records[name])}
    (task,) = load_tasks([name], data_dir=data_dir, limit=1, **shots)
    (plain,) = load_tasks([name], data_dir=data_dir)
    first, *others = plain.items  # the first is never an example of itself
    for choice, context in enumerate(in_chat(task, ChatTemplate("tokenizer", None), tokenizer).items[0].contexts):
        turns = []
        for other in others[:1]:
            turns.append({"role": "user", "content": other.contexts[other.gold]})
            turns.append({"role": "assistant", "content": other.continuations[other.gold].removeprefix(" ")})
        turns.append({"role": "user", "content": first.contexts[choice]})
        assert context == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def test_a_template_without_a_system_turn_is_told_from_one_that_fails(tokenizer, monkeypatch):
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", refuses)
    with pytest.raises(TaskError, match=r"takes no system turn \(no system\), which the task's description is"):
        in_chat(task_of("Be brief. "), ChatTemplate("tokenizer", None), tokenizer)
    assert in_chat(task_of(""), ChatTemplate("tokenizer", None), tokenizer).items[0].contexts[0].startswith("Is it")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"cannot read the chat template .*nowhere\.jinja: No such file"):
        read_chat_template(str(tmp_path / "nowhere.jinja"))
    (tmp_path / "x.jinja").write_bytes(b"\xff")
    with pytest.raises(TaskError, match="not UTF-8"):
        read_chat_template(str(tmp_path / "x.jinja"))


def test_a_text_is_no_question(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TaskError, match="no questions that could be asked in a chat"):
        load_tasks([f"text:{tmp_path / 'a.txt'}"], chat_template="tokenizer")
