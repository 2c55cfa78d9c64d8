"""Commands about what is here: models, tasks, doctor."""

from __future__ import annotations

import sys

import click

from lowmem_layers.cli.output import chosen_format, data_options, say, write_data


@click.command()
@click.option("--cache", is_flag=True, help="List the packed weights and tokenizers that runs kept on disk.")
@click.option("--clear", is_flag=True, help="With --cache: delete these files.")
@data_options
def models(cache: bool, clear: bool, form: str | None, output: str | None) -> None:
    """List the models on this machine.

    With --cache: the files that earlier runs kept, so that later ones start sooner.
    """
    if clear and not cache:
        raise click.UsageError("--clear goes with --cache")
    from lowmem_layers.model.homes.cache import cache_folder, clear_cache, list_cache
    from lowmem_layers.model.spec import format_bytes

    if clear:
        say(f"freed {format_bytes(clear_cache())} in {cache_folder()}")
        return
    import pyarrow as pa

    chosen_format(form, output)
    if not cache:
        write_data(pa.Table.from_pylist(_models()), form, output)
        say("--model also takes any Hub id, folder or GGUF file of a decoder-only language model")
        return
    rows = [
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
    # Without a row, from_pylist would know no columns.
    names = ("model", "format", "size", "bytes", "state", "path")
    write_data(pa.Table.from_pylist(rows) if rows else pa.table({name: [] for name in names}), form, output)
    say(f"these files are in {cache_folder()}; lowmem-layers models --cache --clear deletes them")


def _models() -> list[dict[str, str]]:
    """List the embedded model, the models in the Hub's cache, and those whose packed weights were kept."""
    from lowmem_layers.model.checkpoint.embedded import INSTALL, find_embedded_model
    from lowmem_layers.model.checkpoint.source import list_hub_models
    from lowmem_layers.model.homes.cache import list_cache
    from lowmem_layers.model.spec import EMBEDDED_MODEL

    embedded = find_embedded_model()
    found = [(EMBEDDED_MODEL, "embedded", "the default", embedded)]
    if embedded is None:
        found = [(EMBEDDED_MODEL, "not installed", INSTALL, "")]
    found += [(name, "hub cache", f"--model {name}", folder) for name, folder in list_hub_models()]
    found += [
        (entry.model, f"packed as {entry.packing}", f"--model {entry.model}", entry.path)
        for entry in list_cache()
        if entry.state == "ready" and entry.model and entry.path.is_file()
    ]
    return [{"model": model, "where": where, "use": use, "path": str(path)} for model, where, use, path in found]


@click.group(invoke_without_command=True)
@data_options
@click.pass_context
def tasks(context: click.Context, form: str | None, output: str | None) -> None:
    """List the built-in tasks, or show items of a task."""
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
@click.option("--data-dir", metavar="FOLDER", help="Read TASK.jsonl files in this folder instead of the Hub.")
@click.option("--items", type=click.IntRange(min=1), default=3, metavar="N", help="Number of items. [default: 3]")
@click.option("--fewshot", type=int, metavar="K", help="Solved examples before each item. [default: the task's number]")
@click.option("--fewshot-file", metavar="FILE", help="File with these examples. [default: the task's training data]")
@click.option("--include-path", metavar="FOLDER", help="Folder with more task files of lm-evaluation-harness (YAML).")
@click.option("--trust-task-code", is_flag=True, help="Run the Python code that task files of --include-path name.")
def show(
    name: str,
    data_dir: str | None,
    items: int,
    fewshot: int | None,
    fewshot_file: str | None,
    include_path: str | None,
    trust_task_code: bool,
) -> None:
    """Print items of a task as the model sees them.

    The scored part is underlined on a terminal, and stands in ⟦brackets⟧ in a file or a pipe.
    """
    from pathlib import Path

    from lowmem_layers.record.spec import StudySpec
    from lowmem_layers.record.unused import check_used

    given = StudySpec(
        tasks=(name,), data_dir=data_dir, fewshot=fewshot, fewshot_file=fewshot_file, include_path=include_path,
        trust_task_code=trust_task_code,
    )  # fmt: skip
    check_used(given)
    from lowmem_layers.tasks import load_tasks
    from lowmem_layers.tasks.show import printable, show_items

    styled = sys.stdout.isatty()
    how = "underlined" if styled else "in ⟦brackets⟧"
    for task in load_tasks(
        [name],
        data_dir=Path(data_dir) if data_dir else None,
        limit=items,
        fewshot=fewshot,
        fewshot_file=Path(fewshot_file) if fewshot_file else None,
        include_path=Path(include_path) if include_path else None,
        trust_task_code=trust_task_code,
    ):
        say(f"{task.name}: metric {task.metric}, chance {task.chance:.2f}; scored text is {how}")
        for item in show_items(task, items):
            click.secho(f"\n{printable(item.id)}", bold=True)
            for index, choice in enumerate(item.choices):
                gold = choice.gold
                click.secho(f"{index}{' (gold)' if gold else ''} ", nl=False, fg="green" if gold else None)
                for segment in choice.segments:
                    text = segment.text if styled or not segment.scored else f"⟦{segment.text}⟧"
                    click.secho(text, nl=False, underline=segment.scored, bold=segment.scored)
                click.echo()


@click.command()
@click.option("--device", metavar="DEVICE", help="Run a few kernels on auto, cpu, cuda, mps or xpu. [default: auto]")
@click.option("--measure", is_flag=True, help="Also time each kernel that a run is made of, at a run's own shapes.")
def doctor(device: str | None, measure: bool) -> None:
    """Check that this machine can run a study, and computes right.

    The exit status is 1 where something is missing or wrong.
    """
    from lowmem_layers.record.spec import DEVICES, one_of

    one_of("--device", device, DEVICES)
    from lowmem_layers.cli.health import examine

    findings = examine(device or "auto", measure=measure)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        click.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.what:<{width}}  {finding.found}")
    for finding in findings:
        if not finding.good:
            say(f"hint: {finding.hint}")
    if not all(finding.good for finding in findings):
        raise click.exceptions.Exit(1)
