"""`fox export`: write, read back, compare, and only then give the file its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from fox.artifacts import alone, file_made_whole, folder_made_whole, write_atomically
from fox.errors import Failure, UserError
from fox.eval.agreement import Agreement
from fox.export import gate
from fox.export.gguf import export_gguf
from fox.export.huggingface import DTYPES, export_huggingface
from fox.export.ollama import go_template, modelfile
from fox.export.types import GGUF_TYPES
from fox.model.stored import StoredModel, open_model
from fox.progress import meter

Target = Literal["gguf", "hf", "ollama"]
TARGETS: tuple[Target, ...] = ("gguf", "hf", "ollama")
GGUF_IN_FOLDER = "model.gguf"
_UNRENDERED = (
    "its chat template {}. It was written as it is, no chat could be compared, and `fox chat` will refuse it. "
    "Mend the source's chat_template.jinja, or go without chats"
)
_WITHOUT_TEMPLATE = (
    "the Modelfile has no TEMPLATE, for the chat template {}. Ollama guesses one then: look at what `ollama show --template` has, "
    "or write your own into the Modelfile"
)


@dataclass(frozen=True)
class Request:
    """What is to be written: `target` gguf (a file), hf or ollama (folders), in `file_type`, at `out`."""

    target: Target
    file_type: str
    out: Path
    shard_bytes: int

    def check(self) -> None:
        """Raise UserError where there is no such target or type, something is at `out` already, or no folder can be around it."""
        if self.target not in TARGETS:
            raise UserError("--to", self.target, problem="is nothing Fox can write", mend=f"{', '.join(TARGETS)} are.")
        known = DTYPES if self.target == "hf" else GGUF_TYPES
        if self.file_type not in known:
            raise UserError(
                "--type", self.file_type, problem=f"is no type of {self.target}", mend=f"{', '.join(known)} are."
            )
        for path in (self.out, self.card) if self.target == "gguf" else (self.out,):
            if os.path.lexists(path):
                raise UserError("--out", str(path), problem="is there already", mend="Remove it, or name another.")
        above = next(folder for folder in self.out.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():  # a file, or a link that leads nowhere
            shown = os.path.relpath(above) if not self.out.is_absolute() else above
            raise UserError(
                "--out", str(self.out), problem=f"can't be made, for {shown} is no folder", mend="Name another."
            )

    @property
    def card(self) -> Path:
        """Where the model's card goes: into the folder, or beside the file."""
        if self.target == "gguf":
            return self.out.parent / f"{self.out.name.removesuffix('.gguf')}.md"
        return self.out / "README.md"


@dataclass(frozen=True)
class Exported:
    """What the gate found of an export that passed it, and what its user should know of what was written.

    renders_chats   whether its chat template, if it has one, makes anything of a chat
    """

    agreement: Agreement
    texts: int
    num_bytes: int
    renders_chats: bool = True
    warnings: tuple[str, ...] = ()


def stored_type(stored: StoredModel) -> str:
    """The type that keeps a model as it is: that of its matrices, or float32 where they are in blocks or of several types."""
    kinds = {stored.weights.stored_types[name] for name in stored.names if len(stored.weights.shapes[name]) > 1}
    (kind,) = kinds if len(kinds) == 1 else ("F32",)
    return kind.lower() if kind.lower() in DTYPES else "f32"


def export(
    stored: StoredModel, request: Request, about: Mapping[str, str], card: Callable[[Exported], str], console: Console
) -> Exported:
    """Write `stored` as asked for, and its card, which `card` gives once the gate's figures are known.

    Raises UserError where the request or the model can't be done, Failure where the disk is full or the gate finds the
    written model wanting; nothing is left at `request.out` then.
    """
    request.check()
    if request.target == "gguf":
        with file_made_whole(request.out) as partial:
            request.check()  # again, now that no other process can write there
            _write_gguf(stored, partial, request, about, console)
            exported = _through_the_gate(stored, partial, request, console)
            write_atomically(request.card, card(exported))
        return exported
    with alone(request.out), folder_made_whole(request.out) as folder:
        request.check()
        if request.target == "hf":
            with meter("write", stored.num_parameters(), "weights", console=console) as shown:
                export_huggingface(stored, folder, request.file_type, request.shard_bytes, shown.advance)
            exported = _through_the_gate(stored, folder, request, console)
        else:
            _write_gguf(stored, folder / GGUF_IN_FOLDER, request, about, console)
            exported = _through_the_gate(stored, folder / GGUF_IN_FOLDER, request, console)
            template = go_template(stored.tokenizer)
            write_atomically(folder / "Modelfile", modelfile(stored.tokenizer, template, GGUF_IN_FOLDER))
            if template.why_not and exported.renders_chats:
                exported = replace(exported, warnings=(*exported.warnings, _WITHOUT_TEMPLATE.format(template.why_not)))
        write_atomically(folder / "README.md", card(exported))
    return exported


def _write_gguf(stored: StoredModel, path: Path, request: Request, about: Mapping[str, str], console: Console) -> None:
    with meter("write", stored.num_parameters(), "weights", console=console) as shown:
        export_gguf(stored, path, request.file_type, about, shown.advance)


def _through_the_gate(stored: StoredModel, path: Path, request: Request, console: Console) -> Exported:
    try:
        written = open_model(path)
        texts = gate.check_tokenizer(stored.tokenizer, written.tokenizer)
        refusal = gate.check_chats(stored.tokenizer, written.tokenizer)
        gate.check_config(stored.config, written.config)
        with meter("check weights", stored.num_parameters(), "weights", console=console) as shown:
            gate.check_tensors(stored, written, shown.advance)
        with meter("check replies", gate.num_parts(stored), "blocks", console=console) as shown:
            agreement = gate.check_predictions(stored, written, request.file_type, shown.advance)
    except (UserError, Failure) as error:
        raise Failure(f"{request.out}: not kept, for it did not pass the gate: {error}") from error
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    warnings = (_UNRENDERED.format(refusal),) if refusal else ()
    return Exported(agreement, texts, sum(file.stat().st_size for file in files), not refusal, warnings)
