"""Commands that look around: models, tasks, doctor."""

from __future__ import annotations

import click

from lowmem_layers.cli.output import chosen_format, data_options, write_data


@click.command()
@click.option("--cache", is_flag=True, help="List the packed weights kept on disk.")
@click.option("--clear-cache", is_flag=True, help="Remove them.")
@data_options
def models(cache: bool, clear_cache: bool, form: str | None, output: str | None) -> None:
    """List the models that are here without a download, or the packed weights that were kept."""
    if cache or clear_cache:
        _models_cache(clear_cache, form, output)
        return
    import pyarrow as pa

    from lowmem_layers.model.embedded import INSTALL, find_embedded_model
    from lowmem_layers.model.spec import EMBEDDED_MODEL

    chosen_format(form, output)
    path = find_embedded_model()
    row = {
        "model": EMBEDDED_MODEL,
        "installed": "yes" if path else "no",
        "use": "the default" if path else INSTALL,
        "file": str(path) if path else "",
    }
    write_data(pa.Table.from_pylist([row]), form, output)
    click.echo("any Hugging Face id, folder or GGUF file of a decoder-only model works with --model", err=True)


def _models_cache(clear: bool, form: str | None, output: str | None) -> None:
    import dataclasses

    import pyarrow as pa

    from lowmem_layers.model.cache import CacheEntry, cache_folder, list_cache
    from lowmem_layers.model.cache import clear_cache as remove_all
    from lowmem_layers.model.spec import format_bytes

    if clear:
        freed = format_bytes(remove_all())
        click.echo(f"freed {freed} in {cache_folder()}", err=True)
        return
    names = [field.name for field in dataclasses.fields(CacheEntry)]
    rows = [{name: _spelled(getattr(entry, name)) for name in names} for entry in list_cache()]
    write_data(pa.Table.from_pylist(rows) if rows else pa.table({name: [] for name in names}), form, output)
    click.echo(f"in {cache_folder()}", err=True)


def _spelled(value: object) -> object:
    return value if isinstance(value, (int, float, str)) else str(value)


@click.group(invoke_without_command=True)
@data_options
@click.pass_context
def tasks(context: click.Context, form: str | None, output: str | None) -> None:
    """List the tasks; `tasks show NAME` prints three items as the model sees them."""
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
def show(name: str, data_dir: str | None, items: int) -> None:
    """Print items of task NAME as the model sees them, the scored part highlighted."""
    from pathlib import Path

    from lowmem_layers.tasks import load_tasks
    from lowmem_layers.tasks.show import show_items

    task = load_tasks([name], data_dir=Path(data_dir) if data_dir else None, limit=items)[0]
    click.echo(f"{task.name}: metric {task.metric}, chance {task.chance:.2f}; scored text is underlined", err=True)
    for item in show_items(task, items):
        click.secho(f"\n{item.id}", bold=True)
        for index, choice in enumerate(item.choices):
            click.secho(f"{index}{' (gold)' if choice.gold else ''} ", nl=False, fg="green" if choice.gold else None)
            for segment in choice.segments:
                click.secho(segment.text, nl=False, underline=segment.scored, bold=segment.scored)
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
