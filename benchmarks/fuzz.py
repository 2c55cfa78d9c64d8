"""Give the commands thousands of bad inputs: does each end with a result, or one clear line and the right exit status?

    python -m benchmarks.fuzz [--inputs 5000] [--kinds manifest,parquet,command] [--seed 0]

    manifest   run.json with one or two nodes replaced or deleted, under six commands that read runs, and resumed
    parquet    tiles and lists of items with flipped bits, cut, or with a piece of another file
    command    command lines: every option with values that are no numbers, too long, infinite, no text, paths, markup
    data       lines of a benchmark's data file, mutated as JSON and as bytes, and a parquet file of them
    task       task files (TOML): fields replaced, templates that loop, reach out or do not end
    config     option files (TOML, or a run.json) under `run --config` and `plan --config`
    model      config.json, tokenizer.json, safetensors' header and quantisation configs of a tiny Llama, under `plan`,
               and every fourth under `run`; half of them GPTQ with its packed tensors
    gguf       the header of a tiny GGUF file with flipped bits, cut, or with pieces doubled or replaced, under both
    acting     the record of a real run, or options, under `prune`, `proxies` and `bits`, which load its model again

All in one process (torch is imported for the last three only). An input fails that ends in a traceback, with another
status than 0, 1 (shortage of memory) or 2, with several lines of error or none, after more than 10 seconds, with 1 GiB
more of memory, or that wrote outside its folder; so does a kind of which no input ends with a result, since what lies
behind the door was not tried then. Failures are printed, and of each kind the slowest inputs, with their seconds by
the clock and of the CPU; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz_judge import Judge
from benchmarks.stand_in import StandIn
from lowmem_layers import StudySpec, run_study

WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 7, 10**30, 2**63, 1.5, math.nan, math.inf, -math.inf, 1e308, 10**400, "", "x", "0", "\ud800",
    "\0", "\x1b[2J<script>", "../../x", "a" * 5000, "{{ 9**9**9 }}", [], [1], [[]], {}, {"a": 1}, "delete",
)  # fmt: skip
WORDS = (
    "", "a" * 300, "/".join(["d" * 200] * 30), "\0", "\udcff", "\ud800", "-1", "0", "1e400", "1e-300", "nan", "inf",
    "9" * 400, "9" * 5000, "0.9999999999999999", "1e308", "²", "/dev/null", "/dev/zero", "..", "~", "a,b,,", "a=attn.0",
    "top=0", "top=99999999999999999999", "ci=1e-300", "\x1b[31m", "{{ x }}", "%s%n", "hf://x", "text:", "run/run.json",
    "<script>",
)  # fmt: skip
RUN_OPTIONS = (
    "revision", "quant", "dtype", "tasks", "preset", "data-dir", "limit", "fewshot", "fewshot-file", "window", "stride",
    "bos", "max-removed", "players", "coalitions", "permutations", "value", "until", "seed", "device", "offload",
    "max-gpu-memory", "max-cpu-memory", "threads", "out", "display", "config", "change", "workers", "ray",
    "include-path",
)  # fmt: skip
OPTIONS = {
    ("importance", "run"): ("value", "estimator", "level", "top", "format", "output"),
    ("scores", "run"): ("format", "output"),
    ("interactions", "run"): ("value", "level", "format"),
    ("compare", "run", "run"): ("value", "estimator", "max-removed", "level", "correction", "figure", "format"),
    ("tables", "run"): ("table", "format"),
    ("run", "--tasks", "made_up"): RUN_OPTIONS,
    ("tasks", "show"): ("items", "data-dir", "fewshot"),
    ("power", "run"): ("value", "estimator", "size", "level", "power", "format", "output"),
    ("items", "run"): ("value", "estimator", "sublayers", "top", "format", "output"),
    ("prune", "run", "--remove", "1"): ("form", "dtype", "value", "seed", "format", "output"),
    ("prune", "run"): ("sublayers", "remove", "decoder-layers", "lose-at-most"),
    ("bits", "run"): ("budget",),
    ("bits", "run", "--budget", "6"): ("value", "seed", "format", "output"),
    ("report", "run"): ("output",),
    ("doctor",): ("device",),
}
CHANGES = ("quantise:", "quantise:nf5", "quantise:q4_k", "mean", "repeat:2", "remove+mean", "quantise:nf4,nf4")
READING = (
    ("importance", "run"),
    ("scores", "run", "--format", "csv"),
    ("interactions", "run"),
    ("compare", "run", "other"),
    ("tables", "run"),
    ("power", "run"),
    ("items", "run"),
    ("run", "--model", "none", "--tasks", "made_up", "--max-removed", "2", "--out", "run", "--display", "plain"),
)
TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}", "{{ 9**9**9 }}", "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch /tmp/x') }}", "{% include '/etc/passwd' %}", "{{ q.format() }}",
    "{% for a in range(999) %}{% for b in range(999) %}{{ a }}{% endfor %}{% endfor %}", "{{", "{{ nothing }}", "",
)  # fmt: skip
Input = tuple[str, list[str]]  # what was changed, and the command


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths to every node of a JSON value but the root."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in inside for place in ((*path, key), *places(value, (*path, key)))]


def mutate(stored: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    """Give a copy with one node replaced, or deleted where `wrong` is the word for that."""
    changed = copy.deepcopy(stored)
    node = changed
    for key in path[:-1]:
        node = node[key]
    if wrong == "delete":
        del node[path[-1]]
    else:
        node[path[-1]] = wrong
    return changed


def mutated(stored: Any, rng: random.Random) -> tuple[str, Any]:
    """Replace or delete a node or two; say which."""
    changed, said = stored, []
    for _ in range(rng.choice((1, 1, 1, 2))):
        path, wrong = rng.choice(places(changed) or [()]), copy.deepcopy(rng.choice(WRONG))
        if not path:
            return "root", wrong
        changed = mutate(changed, path, wrong)
        said.append(f"{path} = {wrong!a:.40}")
    return "; ".join(said), changed


def broken(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, double or replace a piece."""
    data = bytearray(content)
    start, end = sorted(rng.sample(range(len(data) + 1), 2))
    match rng.randrange(5):
        case 0:
            data[start] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:]
        case 2:
            data[start:start] = data[start:end]
        case 3:
            data[start : start + 8] = rng.randbytes(8)
        case _:
            del data[start : start + rng.randrange(1, 9)]
    return bytes(data)


class Inputs:
    """Bad inputs of each kind, written into a folder; each is undone when the next is asked for."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        # (The usual model is there: `prune` would write it, which takes ten seconds.)
        self.spec = StudySpec(model="none", tasks=("made_up",), max_removed=2)
        for name in ("run", "other"):
            run_study(self.spec, folder / name, prepare=StandIn(12, tile_items=4).prepare)
        self.sound = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}

    def manifest(self) -> Iterator[Input]:
        """Change run.json; half of the time its checksum is taken away, so that the fields are looked at."""
        path = self.folder / "run" / "run.json"
        stored = json.loads(self.sound[path])
        while True:
            said, changed = mutated(stored, self.rng)
            if isinstance(changed, dict) and self.rng.random() < 0.5:
                changed.pop("checksum", None)
            path.write_text(json.dumps(changed))
            yield said, list(self.rng.choice(READING))
            self.restore()

    def parquet(self) -> Iterator[Input]:
        """Break a tile or the list of items."""
        paths = [path for path in self.sound if path.suffix == ".parquet"]
        while True:
            path = self.rng.choice(paths)
            path.write_bytes(broken(self.sound[path], self.rng))
            yield path.name, list(self.rng.choice(READING))
            self.restore()

    def command(self) -> Iterator[Input]:
        """Give an option, or an argument, a bad value."""
        while True:
            words, options = self.rng.choice(list(OPTIONS.items()))
            bad = self.rng.choice(WORDS if self.rng.random() < 0.9 else CHANGES)
            argument = [words[0], bad] if self.rng.random() < 0.2 else [*words, f"--{self.rng.choice(options)}", bad]
            if "--figure" not in argument or bad not in ("..", "~"):
                yield "words", argument
            self.restore()

    def data(self) -> Iterator[Input]:
        """Mutate a benchmark's line as JSON, or the file as bytes."""
        line = {"idx": 0, "passage": "Water is wet.", "question": "is water wet", "label": 1, "answer": True}
        (self.folder / "data").mkdir()
        path, columns = self.folder / "data" / "boolq.jsonl", self.folder / "data" / "boolq.parquet"
        pq.write_table(pa.Table.from_pylist([line | {"idx": n, "more": [{"a": "b"}] * n} for n in range(9)]), columns)
        sound = columns.read_bytes()
        columns.unlink()
        while True:
            if self.rng.random() < 0.3:
                path.unlink(missing_ok=True)
                columns.write_bytes(broken(sound, self.rng))
                yield columns.name, ["tasks", "show", "boolq", "--data-dir", "data", "--items", "5"]
                columns.unlink()
            said, changed = mutated(line, self.rng)
            text = (json.dumps(line) + "\n" + json.dumps(changed) + "\n").encode()
            path.write_bytes(text if self.rng.random() < 0.7 else broken(text, self.rng))
            yield said, ["tasks", "show", "boolq", "--data-dir", "data", "--items", "5"]

    def task(self) -> Iterator[Input]:
        """Mutate a task file, or give it a hostile template."""
        fields = {"data": "items.jsonl", "context": "{{ q }}", "choices": "options", "gold": "answer", "metric": "acc"}
        (self.folder / "items.jsonl").write_text(json.dumps({"q": "one", "options": [" a", " b"], "answer": 0}) + "\n")
        while True:
            changed = dict(fields)
            name = self.rng.choice(list(fields))
            changed[name] = self.rng.choice(TEMPLATES + tuple(w for w in WORDS if w.isprintable() and len(w) < 400))
            text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in changed.items()).encode()
            (self.folder / "own.toml").write_bytes(text if self.rng.random() < 0.8 else broken(text, self.rng))
            yield f"{name} = {changed[name]!a:.60}", ["tasks", "show", "own.toml", "--items", "1"]

    def config(self) -> Iterator[Input]:
        """Mutate a file of options, or hand over a run's own with something changed."""
        fields: dict[str, Any] = {
            "tasks": ["made_up"], "max-removed": 2, "limit": 4, "seed": 1, "quant": "4bit", "no-cache": True,
            "max-cpu-memory": "8GiB", "until": "top=2", "value": "margin", "change": "mean",
        }  # fmt: skip
        while True:
            changed = {name: fields[name] for name in self.rng.sample(list(fields), 3)}
            name = self.rng.choice([*fields, *self.rng.choice(list(OPTIONS.values()))])
            changed[name] = self.rng.choice(WRONG + WORDS)
            text = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in changed.items()).encode()
            file = "options.toml"
            if self.rng.random() < 0.3:
                file, stored = "options.json", json.loads(self.sound[self.folder / "run" / "run.json"])
                text = json.dumps(mutated(stored["spec"] if self.rng.random() < 0.5 else stored, self.rng)[1]).encode()
            (self.folder / file).write_bytes(text if self.rng.random() < 0.8 else broken(text, self.rng))
            yield f"{name} = {changed[name]!a:.60}", ["run", "--config", file, "--out", "out", "--display", "none"]
            shutil.rmtree(self.folder / "out", ignore_errors=True)

    def acting(self) -> Iterator[Input]:
        """Mutate the record of a real run, or an option, under the commands that load its model again."""
        from benchmarks.fuzz_models import acting_inputs

        return acting_inputs(self.folder, self.rng, mutated, WORDS)

    def model(self) -> Iterator[Input]:
        """Mutate config, tokenizer and safetensors' header of a tiny Llama's folder."""
        from benchmarks.fuzz_models import llama_inputs

        return llama_inputs(self.folder, self.rng, mutated)

    def gguf(self) -> Iterator[Input]:
        """Break a tiny GGUF file."""
        from benchmarks.fuzz_models import gguf_inputs

        return gguf_inputs(self.folder, self.rng, broken)

    def restore(self) -> None:
        """Put the files of the run back."""
        for path in (self.folder / "run").rglob("*"):
            if path.is_file() and path not in self.sound and "report" not in path.parts:
                path.unlink()
        for path, content in self.sound.items():
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def stand_in_for_models(*, real: bool) -> None:
    """Write no page, and let `run` take the stand-in engine unless models are tried."""
    import lowmem_layers.cli.summary as summary
    import lowmem_layers.report as report
    import lowmem_layers.study.prepare as prepare
    from lowmem_layers.errors import UsageError
    from lowmem_layers.workers import hiring

    def no_ray() -> None:
        raise UsageError("--workers and --ray need Ray, which is not installed", "")

    hiring.library = no_ray  # options are refused before it is asked for; a cluster is not started
    report.write_report = lambda *_, **__: Path("page")
    summary.summarise = lambda *_, **__: None
    if not real:
        study = StandIn(12, tile_items=4)
        prepare.prepare_study = study.prepare
        prepare.read_tasks = study.tasks


def main() -> None:
    """Try inputs of each kind in turn, and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--kinds", default="manifest,parquet,command,data,task,config,model,gguf,acting")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, start = random.Random(options.seed), time.monotonic()
    tried, faults = Counter[str](), Counter[str]()

    with tempfile.TemporaryDirectory() as outside:
        folder = Path(outside) / "inside"
        folder.mkdir()
        places = {name: str(folder / "home") for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
        os.environ |= {"LOWMEM_LAYERS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", **places}
        (folder / "home").mkdir()
        os.chdir(folder)
        inputs, judge = Inputs(folder, rng), Judge(folder)
        kinds = options.kinds.split(",")
        stand_in_for_models(real=bool({"model", "gguf", "acting"} & set(kinds)))
        if {"command", "config"} & set(kinds):  # imported before the clock runs
            import lowmem_layers.acting.prune
            import lowmem_layers.study.prepare  # noqa: F401
        streams = {kind: getattr(inputs, kind)() for kind in kinds}
        for index in range(options.inputs):
            kind = kinds[index % len(kinds)]
            what, words = next(streams[kind])
            tried[kind] += 1
            if fault := judge.fault_of(kind, what, words):
                if faults[f"{kind}: {fault}"] == 0:
                    print(f"{kind}: {fault}\n    {what} | {[word[:60] for word in words]!a}", flush=True)
                faults[f"{kind}: {fault}"] += 1
        os.chdir("/")
        strays = sorted(path.name for path in Path(outside).iterdir() if path.name != "inside")
    for line in judge.slowest_inputs():
        print(line)
    for kind in kinds:  # where every input is refused at the door, what lies behind it was not tried
        if not judge.ended[kind][0]:
            faults[f"{kind}: no input ended with a result"] += 1
            print(f"{kind}: no input ended with a result")
    found = {"tried": tried, "failed": sum(faults.values()), "outside": strays, "exit status": judge.ended}
    print(json.dumps({**found, "slowest_s": judge.longest_s(), "seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
    main()
