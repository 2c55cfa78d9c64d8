"""The house keeps its rooms: who imports whom, how long files and functions are, and what `--help` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lowmem_layers"
ROOMS = [
    "errors",
    "game",
    "tasks",
    "model",
    "engine",
    "record",
    "findings",
    "study",
    "workers",
    "acting",
    "forecast",
    "report",
    "cli",
]
OUTSIDE = {
    "errors": set(),
    "game": {"numpy", "scipy", "shapiq"},
    "tasks": {"numpy", "datasets", "jinja2", "yaml", "lm_eval", "pyarrow", "huggingface_hub"},
    "model": {
        "numpy", "torch", "transformers", "bitsandbytes", "safetensors", "gguf", "huggingface_hub",
        "psutil", "tokenizers", "filelock",
    },
    "engine": {"numpy", "torch"},
    "record": {"numpy", "pyarrow", "msgspec"},
    "findings": {"numpy", "pyarrow"},
    "study": {"numpy", "pyarrow"},
    "workers": {"numpy", "torch", "ray"},
    # acts on findings, so behind them; writes checkpoints and measures again, so behind the model, engine and study
    "acting": {"numpy", "pyarrow", "torch", "transformers", "safetensors"},
    "forecast": {"numpy", "torch", "transformers"},
    "report": {"numpy", "pyarrow", "matplotlib", "jinja2", "plotly"},
    "cli": {"click", "rich", "pyarrow", "numpy", "torch", "psutil"},
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 50


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """List the modules that a file imports anywhere in it, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def strangers(room: str, modules: set[str]) -> set[str]:
    """Pick out the imports that a room may not make."""
    bad = set()
    for module in modules:
        top, *rest = module.split(".")
        if top == "lowmem_layers":
            other = rest[0] if rest else "_version"
            if other != "_version" and ROOMS.index(other) > ROOMS.index(room):
                bad.add(module)
        elif top not in sys.stdlib_module_names and top not in OUTSIDE[room]:
            bad.add(module)
    return bad


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) in ROOMS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards_and_only_to_what_a_room_may_use(path):
    assert strangers(room_of(path), imported(path)) == set()


def test_a_forbidden_import_would_be_seen():
    assert strangers("game", {"torch", "numpy", "lowmem_layers.tasks.items"}) == {"torch", "lowmem_layers.tasks.items"}
    assert strangers("model", {"lowmem_layers.engine"}) == {"lowmem_layers.engine"}


def test_tasks_are_unknown_to_models_and_torch_to_reports():
    assert not [f for f in FILES if room_of(f) == "model" and any("lowmem_layers.tasks" in m for m in imported(f))]
    assert not [f for f in FILES if room_of(f) == "report" and "torch" in {m.split(".")[0] for m in imported(f)}]


def test_there_are_no_import_cycles():
    names = {"lowmem_layers." + ".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in FILES}
    edges = {name: _top_level(f) & names.keys() for name, f in names.items()}
    while edges:
        leaves = {name for name, needs in edges.items() if not needs & edges.keys() - {name}}
        assert leaves, f"cycle among {sorted(edges)}"
        edges = {name: needs for name, needs in edges.items() if name not in leaves}


def _top_level(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION] == []


def test_every_module_says_in_its_first_line_what_it_is():
    assert [f.name for f in FILES if not ast.get_docstring(ast.parse(f.read_text()))] == []


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_help_imports_neither_torch_nor_transformers():
    loaded = run_python(
        "import sys\n"
        "from lowmem_layers.cli import main\n"
        "for words in (['--help'], ['run', '--help'], ['importance', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: assert not stop.code\n"
        "print('LOADED', sorted({m.split('.')[0] for m in sys.modules}))\n"
    )
    modules = loaded.rsplit("LOADED", 1)[1]
    assert "Usage" in loaded
    for heavy in ("torch", "transformers", "datasets", "matplotlib", "pyarrow", "bitsandbytes"):
        assert f"'{heavy}'" not in modules


def test_importing_the_package_is_light():
    loaded = run_python("import sys, lowmem_layers; print(*{m.split('.')[0] for m in sys.modules})").split()
    assert "lowmem_layers" in loaded
    assert "torch" not in loaded
