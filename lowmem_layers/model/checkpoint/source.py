"""From what the user named to files on this machine: the embedded model, a folder, a GGUF file or a hub id."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lowmem_layers.errors import ModelError, did_you_mean
from lowmem_layers.model.checkpoint.embedded import embedded_model_path
from lowmem_layers.model.checkpoint.gguf_file import gguf_parts
from lowmem_layers.model.checkpoint.safetensors_files import weight_files
from lowmem_layers.model.spec import EMBEDDED_MODEL, ModelSpec

ADAPTER_CONFIG = "adapter_config.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

# Files that are read lie at the top: folders such as `original/` hold the weights again, as do `consolidated` files. (A
# pattern's star stands for slashes too.)
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
_HUB_LEFT_OUT = ("*/*", "consolidated*")
_NETWORK_LIBRARIES = (
    "requests",
    "urllib3",
    "httpx",
    "httpcore",
    "httpx2",
    "httpcore2",
)  # of huggingface_hub, by version


@dataclass(frozen=True)
class Source:
    """Name the files a model is read from: a folder with config, tokenizer and safetensors, or a GGUF file in it.

    Of a GGUF file in several parts, `gguf` is the first.
    """

    name: str
    folder: Path
    gguf: str | None = None

    @property
    def gguf_path(self) -> Path | None:
        """Give the GGUF file, of several the first; None for other checkpoints."""
        return None if self.gguf is None else self.folder / self.gguf

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """List the files that hold weights, in name order."""
        if self.gguf is not None:
            return gguf_parts(self.folder / self.gguf)
        return weight_files(self.folder)

    @property
    def unread_files(self) -> tuple[Path, ...]:
        """List the files beside the weights that hold tensors and are not read."""
        if self.gguf is not None:
            return ()
        return tuple(sorted(set(self.folder.glob("*.safetensors")) - set(self.weight_files)))


def find_source(spec: ModelSpec) -> Source:
    """Find the files of the model that `spec` names, downloading them where the name is a hub id.

    Raises:
        ModelError: nothing is there, or what is there has no weights we read.
    """
    if spec.model.lower() == EMBEDDED_MODEL.lower():
        path = embedded_model_path()
        return Source(EMBEDDED_MODEL, path.parent, path.name)
    path = Path(spec.model).expanduser()
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return Source(path.name, path.parent, gguf_parts(path)[0].name)
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise _pickle_error(path)
        raise ModelError(f"{path} is not a model", "name a folder, a .gguf file or a hub id")
    if not path.is_dir():
        name = spec.model  # an id is NAME or OWNER/NAME; anything else that is not here is a path
        is_file_name = path.suffix.lower() in (".gguf", ".safetensors", *PICKLE_SUFFIXES)
        is_path = is_file_name and ("/" not in name or path.parent.is_dir())  # a file of the hub: OWNER/NAME/FILE.gguf
        if is_path or name.startswith((".", "~", "/")) or (os.sep != "/" and os.sep in name):
            raise ModelError(f"{spec.model} does not exist", "name a folder with config.json and *.safetensors")
        if name.count("/") > 1:  # a file of a hub's repository: OWNER/NAME/FILE.gguf
            owner, repository, file = name.split("/", 2)
            if not file.lower().endswith(".gguf"):
                raise ModelError(f"{spec.model} does not exist", "name a folder with config.json and *.safetensors")
            parts = gguf_parts(Path(file))
            folder = _download(f"{owner}/{repository}", spec.revision, [part.as_posix() for part in parts])
            if not (folder / parts[0]).exists():
                raise ModelError(f"{owner}/{repository} holds no {parts[0].as_posix()}", "look at its list of files")
            return Source(name, (folder / parts[0]).parent, parts[0].name)
        path = _download(name, spec.revision, _HUB_PATTERNS, _HUB_LEFT_OUT)
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.gguf")):
            path = _download_only_gguf(name, spec.revision, path)
    return _from_folder(spec.model, path)


def _download_only_gguf(name: str, revision: str | None, folder: Path) -> Path:
    """Fetch the one GGUF model of a repository that holds no safetensors; give `folder` back where it has none.

    Raises:
        ModelError: it holds several, as most such repositories do: one for each kind of block.
    """
    from huggingface_hub import list_repo_files

    with _hub_errors(name, revision):
        files = list_repo_files(name, revision=revision)
    models = _gguf_models(Path(file) for file in files if file.lower().endswith(".gguf"))
    if len(models) > 1:
        raise _several(name, models, f"{name}/")
    if not models:
        return folder
    return _download(name, revision, [part.as_posix() for part in gguf_parts(models[0])]) / models[0].parent


def _gguf_models(files: Iterable[Path]) -> list[Path]:
    """List the models among GGUF files: the parts of a split file are one, a projector of images (mmproj) is none."""
    models = {gguf_parts(file)[0] for file in files if not file.name.lower().startswith("mmproj")}
    return sorted(models)


def _several(place: str, models: list[Path], prefix: str) -> ModelError:
    names = ", ".join(model.as_posix() for model in models[:8]) + (", …" if len(models) > 8 else "")
    hint = f"name one of them, for example {prefix}{models[0].as_posix()}"
    return ModelError(f"{place} holds {len(models)} GGUF models: {names}", hint)


def list_hub_models() -> list[tuple[str, Path]]:
    """List the models in the hub's cache whose weights we read, by id, with their folder; asks no network."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    found: list[tuple[str, Path]] = []
    for repository in sorted(cache.glob("models--*")) if cache.is_dir() else []:
        for folder in sorted(repository.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, reverse=True)[:1]:
            has_weights = any(folder.glob("*.safetensors")) and (folder / "config.json").exists()
            if has_weights or any(folder.glob("*.gguf")):
                found.append((repository.name.removeprefix("models--").replace("--", "/"), folder))
    return found


def _from_folder(name: str, folder: Path) -> Source:
    has_config = (folder / "config.json").is_file()
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{folder} holds a LoRA adapter ({ADAPTER_CONFIG}), which is not applied to weights here",
            "merge it into them (merge_and_unload of peft) and save the result, or move the adapter elsewhere",
        )
    if any(folder.glob("*.safetensors")) and has_config:
        return Source(name, folder)
    models = _gguf_models(path.relative_to(folder) for path in folder.glob("*.gguf"))
    if len(models) == 1:
        return Source(name, folder, models[0].name)
    if models:
        raise _several(str(folder), models, f"{folder}{os.sep}")
    pickles = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    if pickles and has_config:
        raise _pickle_error(pickles[0])
    missing = "config.json" if not has_config else "weights"
    raise ModelError(f"{folder} holds no {missing}", "a model folder has config.json and *.safetensors, or one *.gguf")


def _pickle_error(path: Path) -> ModelError:
    return ModelError(
        f"{path} is a pickle: opening it could run any code, so it is not read",
        "convert it to safetensors (save_pretrained of a current transformers writes that)",
    )


def _download(name: str, revision: str | None, patterns: Sequence[str], left_out: Sequence[str] = ()) -> Path:
    """Fetch the files of these patterns, but none that is `left_out`, from the hub into its cache; name their folder.

    Raises:
        ModelError: no such model, no access to it, no network, or no room for it.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(name, revision):
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(left_out) or None
            )
        )


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into a refusal that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = dict.fromkeys([EMBEDDED_MODEL, *(model for model, _ in list_hub_models())])
    meant = did_you_mean(name, known)
    local_hint = f"{meant}name a local folder, or leave --model out for the embedded {EMBEDDED_MODEL}"
    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a hub id", local_hint) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: its owner gives access on request",
            f"accept the terms on the page of {name} on the hub, then run `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision!r}", "leave --revision out for its main one") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is no model {name} on the hub, or it is private", local_hint) from error
    except OSError as error:  # of the network, which huggingface_hub has many kinds of, or of this machine's disk
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise ModelError(
                f"{name} cannot be downloaded: {error.strerror}",
                "free some space, or point HF_HOME to a folder of yours on another disk",
            ) from error
        raise ModelError(f"{name} is not on this machine and the model hub cannot be reached", local_hint) from error
    except Exception as error:  # while a file comes, the network library's own, which are no OSErrors
        if type(error).__module__.partition(".")[0] not in _NETWORK_LIBRARIES:
            raise
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise ModelError(
            f"the download of {name} broke off: {reason}", "run the same command again: what was fetched is kept"
        ) from error
