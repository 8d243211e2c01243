"""How GGUF stores a tensor's rows: as blocks of so many weights in so many bytes, of a type that has a name and a number.

Numbers, names and sizes are ggml's (`enum ggml_type` and the block structures of ggml-common.h); files carry the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """A way to store weights: `block_weights` of them at a time, in `block_bytes`."""

    name: str
    number: int
    block_weights: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights. ValueError where they are not whole blocks."""
        if columns % self.block_weights:
            raise ValueError(
                f"{columns} columns are not a multiple of {self.name}'s block of {self.block_weights} weights"
            )
        return columns // self.block_weights * self.block_bytes

    def row_columns(self, row_bytes: int) -> int:
        """Weights in a row of `row_bytes`. ValueError where they are not whole blocks."""
        if row_bytes % self.block_bytes:
            raise ValueError(f"{row_bytes} bytes are not a multiple of {self.name}'s block of {self.block_bytes} bytes")
        return row_bytes // self.block_bytes * self.block_weights


BLOCK_TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("F32", 0, 1, 4),
        BlockType("F16", 1, 1, 2),
        BlockType("BF16", 30, 1, 2),
        BlockType("Q4_0", 2, 32, 2 + 16),
        BlockType("Q4_1", 3, 32, 4 + 16),
        BlockType("Q5_0", 6, 32, 2 + 4 + 16),
        BlockType("Q5_1", 7, 32, 4 + 4 + 16),
        BlockType("Q8_0", 8, 32, 2 + 32),
        BlockType("Q4_K", 12, 256, 4 + 12 + 128),
        BlockType("Q5_K", 13, 256, 4 + 12 + 32 + 128),
        BlockType("Q6_K", 14, 256, 128 + 64 + 16 + 2),
        BlockType("IQ4_NL", 20, 32, 2 + 16),
    )
}
"""The types that Fox reads, by name."""

UNSUPPORTED: dict[int, str] = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""The names of ggml's other types, by number, so that one can be refused by its name."""

_BY_NUMBER = {kind.number: kind for kind in BLOCK_TYPES.values()}


def type_of_number(number: int) -> BlockType | None:
    """The type that a file calls `number`, or None where Fox does not read it (see UNSUPPORTED)."""
    return _BY_NUMBER.get(number)
