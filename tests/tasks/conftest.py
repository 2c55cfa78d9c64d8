"""What the tests of this room share: look-alike items written for them, and a toy tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

BOOLQ = [
    {"id": "b0", "passage": "Lamp -- A lamp gives light.", "question": "does a lamp give light", "answer": True},
    {"id": "b1", "passage": "Lamp -- A lamp gives light.", "question": "is a lamp a kind of soup", "answer": False},
    {"idx": 7, "passage": "Tin -- Tin is a metal.", "question": "is tin a metal", "label": 1},
]
ARC = [
    {
        "id": "q-1",
        "question": "Which of these is a metal?",
        "choices": {"text": ["wood", "tin", "wool"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "id": "q-2",
        "question": "Which one is wet?",
        "choices": {"text": ["sand", "rain", "dust", "ash", "chalk"], "label": ["1", "2", "3", "4", "5"]},
        "answerKey": "2",
    },
]
OPENBOOKQA = [
    {
        "id": "o-1",
        "question_stem": "A lamp that is switched on gives",
        "choices": {"text": ["light", "milk", "rain", "sound"], "label": ["A", "B", "C", "D"]},
        "answerKey": " A",
    }
]
PIQA = [{"goal": "To warm soup,", "sol1": "put the pot on the stove. ", "sol2": "put the pot in snow", "label": 0}]
WINOGRANDE = [
    {
        "id": "AB-1",
        "sentence": "The cup fell off the shelf because _ was slippery.",
        "option1": "the cup",
        "option2": "the shelf",
        "answer": "2",
    },
    {
        "id": "AB-2",
        "sentence": "The cup fell off the shelf because _  was pushed. ",
        "option1": "the cup",
        "option2": "the shelf",
        "answer": "1",
    },
]
RECORDS = {
    "boolq": BOOLQ,
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "piqa": PIQA,
    "winogrande": WINOGRANDE,
    "openbookqa": OPENBOOKQA,
}


def write_jsonl(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def jsonl():
    return write_jsonl


@pytest.fixture
def records():
    return {name: [dict(record) for record in several] for name, several in RECORDS.items()}


@pytest.fixture
def data_dir(tmp_path, records):
    for name, several in records.items():
        write_jsonl(tmp_path / f"{name}.jsonl", several)
    return tmp_path


class ToyTokenizer:
    """Tokens are pieces of at most three signs, a leading space belonging to its piece, numbered as they come."""

    is_fast = True

    def __init__(self, bos="<s>", eos="</s>", adds_bos=False):
        self.names = ["<s>", "</s>"]
        self.bos_token_id = None if bos is None else 0
        self.eos_token_id = None if eos is None else 1
        self.adds_bos = adds_bos
        self.calls = 0

    def __call__(self, text, *, add_special_tokens, return_offsets_mapping=False, **options):
        self.calls += 1
        spans = [[match.span() for match in re.finditer(r"<s>|</s>|\s?\S{1,3}|\s", one)] for one in text]
        ids = [[self._id(one[a:b]) for a, b in some] for one, some in zip(text, spans, strict=True)]
        if add_special_tokens and self.adds_bos:
            ids = [[0, *some] for some in ids]
        return {"input_ids": ids, **({"offset_mapping": spans} if return_offsets_mapping else {})}

    def decode(self, token_ids, **options):
        return "".join(self.names[token] for token in token_ids)

    def _id(self, piece):
        if piece not in self.names:
            self.names.append(piece)
        return self.names.index(piece)


@pytest.fixture
def toy():
    return ToyTokenizer
