"""What people name when they name a model: a folder, a GGUF file, a run of Fox's, or a model on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fox.errors import Failure, UserError
from fox.model.stored import StoredModel, open_model
from fox.runs.folder import STEPS

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w./-]+\.gguf)?")
_HUB_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "README.md",
]  # never a pickle, and no code; the last states the licence
_HUB_OTHERS = ["*/*", "consolidated*"]  # checkpoints in folders, other engines' copies: as large again, and never read
_RECORD = "recipe.json"  # what every run has


@dataclass(frozen=True)
class NamedModel:
    """Where a model lies; the run that made it, where one of Fox's did; and its name on the hub, where it is from there."""

    path: Path
    run: Path | None = None
    part: str = ""
    """The folder in the run: model or tuned."""
    hub_name: str = ""

    @property
    def title(self) -> str:
        """What to call it: its run's name, or its own."""
        if self.hub_name:
            return self.hub_name
        name = (self.run or self.path).absolute().name
        return f"{name}-{self.part}" if self.part else name.removesuffix(".gguf")


def open_named(named: NamedModel) -> StoredModel:
    """The model; its warnings go to standard error."""
    stored = open_model(named.path)
    for warning in stored.warnings:
        sys.stderr.write(f"warning: {stored.path}: {warning}.\n")
    return stored


def find_model(name: str) -> NamedModel:
    """Where the model that `name` means lies. One of the hub is fetched, unless it was before or HF_HUB_OFFLINE is set.

    Raises UserError where it means nothing, Failure where the hub can't be reached.
    """
    if not name.strip():
        raise UserError(
            "MODEL", name, problem="is empty", mend="Name a model's folder, a .gguf file, or a run of Fox's."
        )
    try:
        path = Path(name).expanduser()
        if (path / _RECORD).is_file() and not (path / "config.json").exists():
            return _of_run(path)
        if path.exists():
            return _within_run(path)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # ValueError: a NUL in the name; RuntimeError: a home of nobody
        reason = getattr(error, "strerror", None) or error  # without the name again, which may be very long
        raise UserError("MODEL", name, problem=f"can't be read: {reason}") from None
    if not _HUB_NAME.fullmatch(name) or path.parts[0] in (".", "..") or Path(path.parts[0]).exists():
        raise UserError(
            "MODEL", name, problem="there is no such file or folder",
            mend="Name a model's folder, a .gguf file, a run of Fox's, or a model on the Hugging Face hub (owner/name).",
        )  # fmt: skip
    return NamedModel(_from_hub(name), hub_name=name)


def _of_run(run: Path) -> NamedModel:
    """The best model that a run has by now: tuned where it is, else the base model."""
    for step in ("tune", "pretrain"):
        folder = run / STEPS[step][0]
        if (run / "manifests" / f"{step}.json").is_file() and folder.is_dir():
            return NamedModel(folder, run, folder.name)
    raise UserError(
        "MODEL", str(run), problem="is a run that has no model yet", mend="Train it first: `fox run` with its recipe."
    )


def _within_run(path: Path) -> NamedModel:
    """A model by its own name; the folder around it is its run where that says it made it."""
    run = path.absolute().parent
    made = {STEPS[step][0]: step for step in ("tune", "pretrain")}
    if path.name in made and (run / _RECORD).is_file() and (run / "manifests" / f"{made[path.name]}.json").is_file():
        return NamedModel(path, path.parent, path.name)
    return NamedModel(path)


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    owner, model, *file = name.split("/", 2)
    try:
        if file:
            return Path(hf_hub_download(f"{owner}/{model}", file[0]))
        return Path(snapshot_download(f"{owner}/{model}", allow_patterns=_HUB_FILES, ignore_patterns=_HUB_OTHERS))
    except HFValidationError as error:
        raise UserError("MODEL", name, problem=f"is neither a file here nor a name on the hub: {error}") from None
    except GatedRepoError:
        raise UserError(
            "MODEL", name, problem="is on the hub, for those who have accepted its terms",
            mend=f"Accept them at https://huggingface.co/{owner}/{model}, then `hf auth login`.",
        ) from None  # fmt: skip
    except RepositoryNotFoundError:
        raise UserError(
            "MODEL", name, problem="is neither a file here nor a model on the hub",
            mend="Look at its spelling; a private one needs `hf auth login`.",
        ) from None  # fmt: skip
    except LocalEntryNotFoundError as error:
        raise Failure(
            f"{name}: is not on this machine, and the hub can't be asked ({error.__cause__ or 'offline'}). "
            "Fetch it where there is a network, or name a folder."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise Failure(f"{name}: could not be fetched: {str(error).splitlines()[0]}") from error
