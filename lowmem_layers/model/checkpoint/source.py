"""From what the user named to files on this machine: the embedded model, a folder, a GGUF file or a hub id."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.embedded import embedded_model_path
from lowmem_layers.model.checkpoint.gguf_file import gguf_parts
from lowmem_layers.model.spec import EMBEDDED_MODEL, ModelSpec

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")


@dataclass(frozen=True)
class Source:
    """Name the files a model is read from: a folder with config, tokenizer and safetensors, or a GGUF file in it.

    Of a GGUF file in several parts, `gguf` is the first.
    """

    name: str
    folder: Path
    gguf: str | None = None

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """List the files that hold weights, in name order."""
        if self.gguf is not None:
            return gguf_parts(self.folder / self.gguf)
        return tuple(sorted(self.folder.glob("*.safetensors")))


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
        if name.startswith((".", "~", "/")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name):
            raise ModelError(f"{spec.model} does not exist", "name a folder with config.json and *.safetensors")
        path = _download(spec.model, spec.revision)
    return _from_folder(spec.model, path)


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
    ggufs = sorted(folder.glob("*.gguf"))
    has_config = (folder / "config.json").is_file()
    if any(folder.glob("*.safetensors")) and has_config:
        return Source(name, folder)
    models = list(dict.fromkeys(gguf_parts(path)[0].name for path in ggufs))  # the parts of a split file are one model
    if len(models) == 1:
        return Source(name, folder, models[0])
    if models:
        names = ", ".join(models[:8]) + (", …" if len(models) > 8 else "")
        raise ModelError(
            f"{folder} holds {len(models)} GGUF models: {names}", f"name one of them, for example {folder / models[0]}"
        )
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


def _download(name: str, revision: str | None) -> Path:
    """Fetch config, tokenizer and safetensors from the hub into its cache.

    Raises:
        ModelError: no such model, no access to it, no network, or no room for it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    local_hint = f"name a local folder, or leave --model out for the embedded {EMBEDDED_MODEL}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_HUB_PATTERNS)))
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
