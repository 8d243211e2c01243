"""A stored tensor's rows in the bytes of the type that it is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from fox.errors import UserError
from fox.formats.gguf.block_types import BlockType
from fox.formats.gguf.quantize import quantize
from fox.model.stored import StoredModel


def encoded_rows(
    stored: StoredModel, name: str, chunks: Iterable[Tensor], kind: BlockType, written: Callable[[int], None]
) -> Iterator[Tensor]:
    """Each chunk (rows, columns) as bytes (rows, bytes of a row). `written` is called with the number of its weights.

    Raises UserError for a weight that the type can't hold.
    """
    for chunk_RC in chunks:
        least, greatest = chunk_RC.aminmax()  # one pass, where isfinite takes several; NaN shows in it, too
        if not (least.isfinite() and greatest.isfinite()):  # some types keep NaN, but no engine can do anything with it
            raise UserError(
                "model", str(stored.path), problem=f"{name} has weights that are NaN or infinite",
                mend="Copy or make it again.",
            )  # fmt: skip
        try:
            yield quantize(chunk_RC.float(), kind)
        except ValueError as error:
            raise UserError(
                "model", str(stored.path), problem=f"{name} can't be written: {error}", mend="Use --type f32 or bf16."
            ) from None
        written(chunk_RC.numel())
