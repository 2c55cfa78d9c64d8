"""Tasks of lm-evaluation-harness: its prompts and answers, taken over whole."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.parity_harness import harness_model
from lowmem_layers.errors import TaskError
from lowmem_layers.tasks import BENCHMARKS, encode_task, load, load_tasks
from lowmem_layers.tasks.chat import in_chat
from lowmem_layers.tasks.harness import _manager, harness_tasks, refuse_code
from lowmem_layers.tasks.harness_items import _item_id, harness_items
from lowmem_layers.tasks.items import ChatTemplate
from tests.model.conftest import tiny_tokenizer
from tests.tasks.test_chat import TURNS


def test_a_missing_package_names_the_extra(monkeypatch):
    _manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(TaskError, match="needs lm-evaluation-harness") as caught:
        load_tasks(["lm_eval:hellaswag"])
    assert "lm-eval" in caught.value.hint


ROWS = [
    {"q": "Is snow cold?", "options": ["yes", "no"], "answer": 0},
    {"q": "Is fire cold?", "options": ["yes", "no"], "answer": 1},
    {"q": "Is ice cold?", "options": ["yes", "no"], "answer": 0},
]


def write_task(place, name, **changes):
    data = place / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        **changes,
    }
    (place / f"{name}.yaml").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold all task files of this module: the harness' index takes seconds, so it is built once."""
    place = tmp_path_factory.mktemp("harness")
    write_task(place, "own_mc")
    write_task(place, "own_shots", num_fewshot=1)
    write_task(place, "own_ids", doc_to_choice=["yes", "no"], doc_to_text="Q: {{q}}", target_delimiter="\n")
    write_task(place, "own_inputs", doc_to_text="answer", doc_to_choice="{{options}}", doc_to_target="{{q}}")
    write_task(place, "own_many", doc_to_target="{{[0, 1]}}")
    write_task(place, "own_broken", doc_to_text="{{ [q][answer] }}")
    write_task(place, "own_rule", process_results="!function rules.first_two")
    last = {"doc_to_choice": None, "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]}
    write_task(place, "own_last", output_type="loglikelihood", doc_to_target=" {{q}}", num_fewshot=1, **last)
    rolling = {"doc_to_choice": None, "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}]}
    text = "{{q}} {{options|join(' ')}}"
    write_task(place, "own_rolling", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target=text, **rolling)
    write_task(place, "own_escape", doc_to_text="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (place / "own_including.yaml").write_text(json.dumps({"include": "own_rule.yaml", "task": "own_including"}))
    (place / "own_deep.yaml").write_text(json.dumps({"group": "own_deep", "task": ["own_mc", {"group": "own_nest"}]}))
    nest = {"group": "own_nest", "task": [{"task": "own_including", "num_fewshot": 0}, "arc_easy"]}
    (place / "own_nest.yaml").write_text(json.dumps(nest))
    write_task(place, "own_chat", num_fewshot=1, description="Answer {{q}} well. ")
    group = {"group": "own_group", "task": ["own_mc", "own_ids"]}
    (place / "own_group.yaml").write_text(json.dumps(group))
    (place / "rules.py").write_text("def any_is_right(doc, results):\n    return {'acc': 1.0}\n")
    rule = (place / "own_rule.yaml").read_text()
    (place / "own_rule.yaml").write_text(rule.replace('"!function rules.first_two"', "!function rules.any_is_right"))
    write_task(place, "own_gen", output_type="generate_until", doc_to_choice=None, metric_list=[{"metric": "bleu"}])
    return place


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Copy three folders of the harness' own tasks: indexing all of its 13,000 files takes longer than these tests."""
    installed = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks"
    place = tmp_path_factory.mktemp("shipped")
    for name in ("arc", "gsm8k", "hellaswag"):
        shutil.copytree(installed / name, place / name)
    return place


@pytest.fixture
def harness(monkeypatch, tmp_path, folder, shipped):
    """Keep the harness' own caches out of the way; it warns about itself, which is not ours to judge."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(shipped / "manager.py"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


def items_of(name, include, fewshot=None, limit=None):
    """Load one task and take its items."""
    ((member, task),) = harness_tasks(name, include).items()
    found = harness_items(member, task, fewshot=fewshot, limit=limit)
    return found.items, found.metric, found.source


@pytest.mark.filterwarnings("ignore")
def test_items_are_the_harness_own_requests(harness):
    items, metric, source = items_of("own_mc", harness, limit=2)
    assert [item.contexts for item in items] == [("Q: Is snow cold?\nA:",) * 2, ("Q: Is fire cold?\nA:",) * 2]
    assert items[0].continuations == (" yes", " no")
    assert [item.gold for item in items] == [0, 1]
    assert (items[0].id, items[0].choice_chars) == ("own_mc-0", (3, 2))
    assert metric == "acc_norm"
    assert source["fewshot"] == 0


@pytest.mark.filterwarnings("ignore")
def test_examples_are_the_harness_own_too(harness):
    items, _, source = items_of("own_shots", harness)
    assert source["fewshot"] == 1
    for item, row in zip(items, ROWS, strict=True):
        assert item.contexts[0].endswith(f"\n\nQ: {row['q']}\nA:")
        assert item.contexts[0].count(row["q"]) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_group_gives_all_its_tasks(harness):
    assert list(harness_tasks("own_group", harness)) == ["own_mc", "own_ids"]


@pytest.mark.filterwarnings("ignore")
def test_a_group_becomes_several_tasks_of_a_run(harness, monkeypatch):
    members = harness_tasks("own_group", harness)
    monkeypatch.setattr(load, "harness_tasks", lambda *_, **__: members)
    tasks = load_tasks(["lm_eval:own_group", "quick"], limit=2)
    assert [task.name for task in tasks] == ["lm_eval:own_mc", "lm_eval:own_ids", "quick"]


@pytest.mark.filterwarnings("ignore")
def test_delimiter_and_listed_choices_are_the_tasks_own(harness):
    items, _, _ = items_of("own_ids", harness)
    assert items[1].continuations == ("\nyes", "\nno")
    assert items[1].choice_chars == (3, 2)


@pytest.mark.filterwarnings("ignore")
def test_several_inputs_share_one_continuation(harness):
    items, _, _ = items_of("own_inputs", harness, limit=2)
    assert items[1].contexts == ("yes", "no")
    assert items[1].continuations == (" Is fire cold?",) * 2
    assert items[1].gold == 1


@pytest.mark.filterwarnings("ignore")
def test_several_right_answers_are_refused(harness):
    with pytest.raises(TaskError, match=r"own_many, item 'own_many-0': gold .* is not one of the 2 choices"):
        items_of("own_many", harness)


@pytest.mark.filterwarnings("ignore")
def test_a_rule_of_the_tasks_own_is_refused_where_it_is_not_one_right_answer(harness):
    with pytest.raises(TaskError, match="judged by a rule of the task's own"):
        items_of("own_rule", harness)


@pytest.mark.filterwarnings("ignore")
def test_a_failing_task_names_the_item(harness):
    with pytest.raises(TaskError, match=r"own_broken, item 'own_broken-1': the harness' task fails \(UndefinedError"):
        items_of("own_broken", harness)


@pytest.mark.parametrize(
    ("docs", "ids"),
    [
        ([{"id": "a"}, {"id": 7}, {}], ["a", "7", "t-2"]),
        ([{"id": "a"}, {"id": "a"}, {"id": ["x"]}, {"id": "\a"}], ["a", "t-1", "t-2", "t-3"]),
    ],
)
def test_items_keep_their_own_ids_where_those_are_usable(docs, ids):
    seen = set()
    assert [_item_id(doc, "t", index, seen) for index, doc in enumerate(docs)] == ids


@pytest.mark.filterwarnings("ignore")
def test_another_kind_of_task_is_refused(harness):
    with pytest.raises(TaskError, match="of kind generate_until"):
        harness_tasks("own_gen", harness)
    with pytest.raises(TaskError, match="gsm8k is of kind generate_until"):  # said before its data are fetched
        harness_tasks("gsm8k", harness)


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_gets_the_nearest_ones(harness):
    with pytest.raises(TaskError, match="no task 'hellaswagg'") as caught:
        harness_tasks("hellaswagg", harness)
    assert "hellaswag" in caught.value.hint


@pytest.mark.slow
def test_all_tasks_that_the_harness_ships_are_known(folder):
    pytest.importorskip("lm_eval")
    _manager.cache_clear()
    assert {*BENCHMARKS, "hellaswag", "own_mc"} < set(_manager(folder).all_tasks)
    _manager.cache_clear()


@pytest.mark.filterwarnings("ignore")
def test_data_out_of_reach_are_named(harness):
    with pytest.raises(TaskError, match="cannot load the data of hellaswag"):
        harness_tasks("hellaswag", harness)


@pytest.mark.filterwarnings("ignore")
def test_chats_are_the_harness_own_requests(harness, monkeypatch):
    """Few-shot examples are turns, the description is the system's; tokens are the harness' own."""
    _, tokenizer = bare_model()
    tokenizer.chat_template = TURNS
    members = harness_tasks("own_chat", harness)
    monkeypatch.setattr(load, "harness_tasks", lambda *_, **__: members)
    (task,) = load_tasks(["lm_eval:own_chat"], chat_template="tokenizer")
    ours = encode_task(task, tokenizer, max_length=2048)
    tokenizer.chat_template = TURNS.replace("strftime_now is defined", "false")
    lm, theirs = harness_model(None, tokenizer, Namespace(bos="auto")), members["own_chat"]
    chat = {"apply_chat_template": True, "chat_template": lm.apply_chat_template}
    theirs.set_fewshot_seed(1234)
    requests = [
        one
        for doc in theirs.eval_docs
        for context in [theirs.fewshot_context(doc, 1, fewshot_as_multiturn=True, **chat)]  # its default
        for one in theirs.construct_requests(doc=doc, ctx=context, **chat)
    ]
    lm.loglikelihood(requests, disable_tqdm=True)
    found = [(list(choice.tokens), choice.n_scored) for item in ours for choice in item.choices]
    assert found == [(context + scored, len(scored)) for context, scored in lm.recorded]
    assert '"Answer Is snow cold? well."' in tokenizer.decode(found[0][0])


@pytest.mark.filterwarnings("ignore")
def test_code_of_included_files_is_refused_unless_asked_for(harness):
    """Also that of a file which is included, or a member of a group; what the package itself brings is trusted."""
    for name in ("own_rule", "own_including", "own_deep"):
        with pytest.raises(
            TaskError, match=r"runs Python code of its own \('!function rules\.any_is_right'\)"
        ) as caught:
            load_tasks([f"lm_eval:{name}"], include_path=harness)
        assert "--trust-task-code" in caught.value.hint
    index = _manager(harness).task_index
    refuse_code("own_mc", index)
    refuse_code("winogrande", index)
    with pytest.raises(TaskError, match="judged by a rule of the task's own"):
        load_tasks(["lm_eval:own_rule"], include_path=harness, trust_task_code=True)


@pytest.mark.filterwarnings("ignore")
def test_templates_of_included_files_cannot_leave_the_sandbox(harness):
    with pytest.raises(TaskError, match="unsafe"):
        load_tasks(["lm_eval:own_escape"], include_path=harness)
    (task,) = load_tasks(["lm_eval:own_mc"], include_path=harness, limit=1)
    assert task.items[0].contexts == ("Q: Is snow cold?\nA:",) * 2


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"--include-path .* is not a folder"):
        load_tasks(["lm_eval:x"], include_path=tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore")
def test_a_continuation_is_scored_as_the_harness_does(harness):
    (task,) = load_tasks(["lm_eval:own_last"], include_path=harness)
    assert (task.metric, task.source["output_type"]) == ("loglikelihood", "loglikelihood")
    theirs = harness_tasks("own_last", harness)["own_last"]
    lm, tokenizer = bare_model()
    theirs.set_fewshot_seed(1234)
    requests = [theirs.construct_requests(doc=doc, ctx=theirs.fewshot_context(doc, 1)) for doc in theirs.eval_docs]
    lm.loglikelihood(requests, disable_tqdm=True)
    encoded = encode_task(task, tokenizer, max_length=2048)
    ours = [item.choices[0] for item in encoded]
    assert [(list(c.tokens), c.n_scored) for c in ours] == [(c + s, len(s)) for c, s in lm.recorded]
    # whether it is what the model would have written is the harness' acc
    assert [item.choices[1] for item in encoded] == [replace(each, is_likeliest=True) for each in ours]
    assert all(item.choice_chars[1] == item.choice_bytes[1] == 0 for item in encoded)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["own_mc", "own_last"])
def test_a_chat_has_the_turns_that_the_harness_makes(harness, name):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    (task,) = load_tasks([f"lm_eval:{name}"], include_path=harness, fewshot=2)
    theirs = harness_tasks(name, harness)[name]
    _, tokenizer = bare_model()
    tokenizer.chat_template = template
    theirs.set_fewshot_seed(1234)
    chatted = in_chat(task, ChatTemplate("tokenizer", None), tokenizer)
    for item, doc in zip(chatted.items, theirs.eval_docs, strict=True):
        expected = theirs.fewshot_context(
            doc, 2, apply_chat_template=True, fewshot_as_multiturn=True, gen_prefix=theirs.doc_to_prefix(doc),
            chat_template=lambda turns, **_: tokenizer.apply_chat_template(turns, tokenize=False),
        )  # fmt: skip
        assert item.contexts == (expected,) * len(item.contexts)
        assert expected.count("<assistant>") == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("max_length", "bos"), [(8, "auto"), (7, "none"), (100, "auto"), (1, "none")])
def test_documents_are_cut_as_the_harness_does(harness, max_length, bos):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    (task,) = load_tasks(["lm_eval:own_rolling"], include_path=harness)
    assert (task.metric, task.rolls) == ("nll_per_byte", True)
    lm, tokenizer = bare_model(bos)
    texts = [" ".join([row["q"], *row["options"]]) for row in ROWS]
    windows = [
        (document, make_disjoint_window(pair))
        for document, text in enumerate(texts)
        for pair in get_rolling_token_windows(lm.tok_encode(text), tokenizer.bos_token_id, max_length, 1)
    ]
    items = encode_task(task, tokenizer, bos=bos, max_length=max_length)
    found = [(item.cluster, list(item.choices[0].tokens), item.choices[0].n_scored) for item in items]
    assert found == [(f"own_rolling-{doc}", context + scored, len(scored)) for doc, (context, scored) in windows]
    assert len({item.id for item in items}) == len(items)
    if max_length > 1:  # one token may be less than a byte of the text, and counts as one
        assert sum(item.choice_bytes[0] for item in items) == task.source["bytes"] == len("".join(texts).encode())
    assert task.source["words"] == sum(len(text.split()) for text in texts)


def bare_model(bos="auto"):
    """Give the harness' model without weights, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return harness_model(None, tokenizer, Namespace(bos=bos)), tokenizer
