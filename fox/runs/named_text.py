"""The documents of a file or folder that a command names, where there is no recipe to say how they are read."""

from __future__ import annotations

from pathlib import Path

from fox.data.document import Document
from fox.data.files import READABLE
from fox.data.quarantine import MAX_RECORD_BYTES, BadRecord, Tally, usable_text
from fox.data.sources import read_source
from fox.errors import UserError
from fox.formats.untrusted import read_untrusted
from fox.recipe.schema import Source


def documents_of(path: Path, kind: str, option: str) -> list[Document]:
    """What a file or folder holds; a file that is named by itself may have any suffix, and is one text.

    `kind` is text or chat, `option` what to call it in a UserError, which is raised where it can't be read or holds nothing.
    """
    if kind == "text" and path.is_file() and not path.name.lower().endswith(READABLE):
        return [_whole(path, option)]
    source = Source(path=str(path), kind=kind)  # type: ignore[arg-type]
    try:
        return list(read_source(path.stem, source, Tally(path.stem, source)))
    except UserError as error:  # told of a recipe's keys, and here is no recipe
        problem = error.problems[0].problem.removesuffix(" that matches files = '**/*'")
        kinds = (
            "JSON Lines (.jsonl) with `messages`" if kind == "chat" else f"a file, or a folder of {', '.join(READABLE)}"
        )
        raise UserError(option, str(path), problem=problem, mend=f"Name {kinds}.") from None


def _whole(path: Path, option: str) -> Document:
    try:
        text = usable_text(read_untrusted(path, MAX_RECORD_BYTES).decode("utf-8"), "its text")
    except UnicodeDecodeError:
        raise UserError(option, str(path), problem="is not UTF-8 text") from None
    except BadRecord as bad:
        raise UserError(option, str(path), problem=f"can't be used: {bad.reason}") from None
    except (OSError, ValueError) as error:
        raise UserError(
            option, str(path), problem=f"can't be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    return Document(path.stem, path.name, text=text)
