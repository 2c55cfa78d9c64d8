"""Commands that look around: models, tasks, doctor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lowmem_layers.cli.output import chosen_format, data_options, write_data

if TYPE_CHECKING:
    from lowmem_layers.tasks.show import ShownChoice


@click.command()
@click.option("--cache", is_flag=True, help="List what was kept on disk: packed weights, converted tokenizers.")
@click.option("--clear", is_flag=True, help="With --cache: delete it.")
@click.option("--clear-cache", is_flag=True, help="The same as --cache --clear.")
@data_options
def models(cache: bool, clear: bool, clear_cache: bool, form: str | None, output: str | None) -> None:
    """List the models that are here without a download, or what was kept of models on disk."""
    if clear and not cache:
        raise click.UsageError("--clear goes with --cache")
    if clear or clear_cache:
        _clear_cache()
        return
    import pyarrow as pa

    chosen_format(form, output)
    rows = _cached() if cache else _models()
    names = ("model", "format", "size", "bytes", "state", "path") if cache else ("model", "where", "use", "path")
    write_data(pa.Table.from_pylist(rows) if rows else pa.table({name: [] for name in names}), form, output)
    if cache:
        from lowmem_layers.model.homes.cache import cache_folder

        click.echo(f"in {cache_folder()}; models --cache --clear deletes it", err=True)
    else:
        click.echo("any Hugging Face id, folder or GGUF file of a decoder-only model works with --model", err=True)


def _models() -> list[dict[str, object]]:
    """List the embedded model, the hub's cache, and the models whose packed weights were kept."""
    from lowmem_layers.model.checkpoint.embedded import INSTALL, find_embedded_model
    from lowmem_layers.model.checkpoint.source import list_hub_models
    from lowmem_layers.model.homes.cache import list_cache
    from lowmem_layers.model.spec import EMBEDDED_MODEL

    path = find_embedded_model()
    use = "the default" if path else INSTALL
    rows: list[dict[str, object]] = [_row(EMBEDDED_MODEL, "embedded" if path else "not installed", use, path or "")]
    for name, folder in list_hub_models():
        rows.append(_row(name, "hub cache", f"--model {name}", folder))
    for entry in list_cache():
        if entry.state == "ready" and entry.model and entry.path.is_file():
            rows.append(_row(entry.model, f"packed as {entry.packing}", f"--model {entry.model}", entry.path))
    return rows


def _row(model: str, where: str, use: str, path: object) -> dict[str, object]:
    return {"model": model, "where": where, "use": use, "path": str(path)}


def _cached() -> list[dict[str, object]]:
    from lowmem_layers.model.homes.cache import list_cache
    from lowmem_layers.model.spec import format_bytes

    return [
        {
            "model": entry.model,
            "format": entry.packing,
            "size": format_bytes(entry.n_bytes),
            "bytes": entry.n_bytes,
            "state": entry.state,
            "path": str(entry.path),
        }
        for entry in list_cache()
    ]


def _clear_cache() -> None:
    from lowmem_layers.model.homes.cache import cache_folder, clear_cache
    from lowmem_layers.model.spec import format_bytes

    click.echo(f"freed {format_bytes(clear_cache())} in {cache_folder()}", err=True)


@click.group(invoke_without_command=True)
@data_options
@click.pass_context
def tasks(context: click.Context, form: str | None, output: str | None) -> None:
    """List the built-in tasks; `tasks show NAME` prints three items of any task as the model sees them."""
    if context.invoked_subcommand is not None:
        return
    import pyarrow as pa

    from lowmem_layers.tasks.benchmarks import BENCHMARKS

    chosen_format(form, output)
    rows = [{"task": "quick", "metric": "acc", "split": "", "source": "built in"}]
    for benchmark in BENCHMARKS.values():
        source = " ".join(filter(None, (benchmark.hub_id, benchmark.hub_config)))
        rows.append({"task": benchmark.name, "metric": benchmark.metric, "split": benchmark.split, "source": source})
    write_data(pa.Table.from_pylist(rows), form, output)


@tasks.command()
@click.argument("name")
@click.option("--data-dir", metavar="FOLDER", help="Folder with TASK.jsonl files, used instead of the hub.")
@click.option("--items", type=click.IntRange(min=1), default=3, show_default=True, help="How many items.")
@click.option("--fewshot", type=int, metavar="K", help="Examples before each item. [default: the task's own number]")
@click.option("--fewshot-file", metavar="FILE", help="Take those examples from here. [default: the training data]")
def show(name: str, data_dir: str | None, items: int, fewshot: int | None, fewshot_file: str | None) -> None:
    """Print items of task NAME as the model sees them: the scored part underlined, in a file or pipe in ⟦brackets⟧."""
    from pathlib import Path

    from lowmem_layers.tasks import load_tasks
    from lowmem_layers.tasks.show import show_items

    styled = sys.stdout.isatty()
    for task in load_tasks(
        [name],
        data_dir=Path(data_dir) if data_dir else None,
        limit=items,
        fewshot=fewshot,
        fewshot_file=Path(fewshot_file) if fewshot_file else None,
    ):
        how = "underlined" if styled else "in ⟦brackets⟧"
        click.echo(f"{task.name}: metric {task.metric}, chance {task.chance:.2f}; scored text is {how}", err=True)
        for item in show_items(task, items):
            click.secho(f"\n{item.id}", bold=True)
            for index, choice in enumerate(item.choices):
                _show_choice(index, choice, styled)


def _show_choice(index: int, choice: ShownChoice, styled: bool) -> None:
    click.secho(f"{index}{' (gold)' if choice.gold else ''} ", nl=False, fg="green" if choice.gold else None)
    for segment in choice.segments:
        text = segment.text if styled or not segment.scored else f"⟦{segment.text}⟧"
        click.secho(text, nl=False, underline=segment.scored, bold=segment.scored)
    click.echo()


@click.command()
def doctor() -> None:
    """Say what this machine has, and what is missing; exit status 1 if something is."""
    from lowmem_layers.cli.health import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        click.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.what:<{width}}  {finding.found}")
    for finding in findings:
        if not finding.good:
            click.echo(f"hint: {finding.hint}", err=True)
    if not all(finding.good for finding in findings):
        raise click.exceptions.Exit(1)
