"""What training holds in the memory of one device: an estimate by formula, to choose devices and rows with.

The state is cut in equal parts over the devices (ZeRO stage 3, arXiv 1910.02054; PyTorch's FSDP2); activations are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from fox.plan.gpus import Gpu
from fox.plan.size import Parameters, head_dim
from fox.recipe.schema import Model, Optimizer, Train
from fox.recipe.stage import Stage

STATE_BYTES_PER_PARAMETER = 16
"""Four float32 numbers: the weight, its gradient, AdamW's two moments. ZeRO's paper arrives at 16 as well (section 3.1)
with weight and gradient in 16 bits and a float32 copy of the weight."""

MUON_STATE_BYTES = 12
"""Of a matrix that Muon steps: it has one moment."""

ADAFACTOR_STATE_BYTES = 8
"""A row and a column of moments for each matrix are next to nothing."""

BF16_SAVES_BYTES = 4
"""Of 8, where weight and gradient are kept in bf16 alone."""

STEPPING_BYTES = 12
"""Of the largest matrix, while a step of bf16 weights has it in float32, its gradient, and what is taken away."""

VOCABULARY_BLOCK_WEIGHTS = 1 << 24
"""With bf16 weights, or a large head, the loss goes through blocks of so many weights of the head (fox/model/loss_by_vocabulary.py;
tested)."""

LARGE_HEAD_WEIGHTS = 1 << 26
"""A head of more float32 weights than these is multiplied in such blocks (fox/model/loss.py, fox/model/loss_of_large_head.py; tested)."""

LARGE_HEAD_SCORE_BYTES = 1 << 28
"""Of the logits that are then held at once, in the products' type; of one block there are float32 ones as well."""

LOSS_CHUNK_ROWS = 1024
LOSS_CHUNK_LOGITS = 1 << 24
"""The loss scores so many rows at a time, or as many as make so many logits (fox/model/loss.py; a test holds them equal,
for a plan does without torch)."""

LOGIT_BYTES = 12
"""Of a chunk's logit, at most. bfloat16: product, its float32 copy, and the last chunk's float32 and bfloat16 ones.
float32: this chunk's, the last one's, and the table that their sum is made from."""

HEAD_GRADIENT_BYTES = 8
"""A parameter of the head, inside the loss: its float32 gradient, and that once more as it is scaled on its way out."""

MOST_TOKENS_BY_PRODUCTS = 1024
"""On a CPU for which Fox has no kernel of its own, attention over rows up to here keeps its weights (fox/kernels/attention.py; a
test holds them equal)."""

USABLE_FRACTION = 0.9
"""Assumed: the rest goes to the CUDA context, communication buffers and fragmentation."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one device, at the fullest moment of a stage's step."""

    state: int
    gathered: int
    activations: int
    activations_recomputed: int
    logits: int
    head_gradient: int
    stepping: int
    """Of the optimiser alone, once the activations are gone."""
    recomputes: bool
    """Whether the recipe asks for the recomputation of activations."""

    @property
    def loss(self) -> int:
        """What the loss alone holds."""
        return self.logits + self.head_gradient

    @property
    def total(self) -> int:
        if self.recomputes:
            return self.total_recomputed
        return self.state + max(self.gathered + self.activations + self.loss, self.stepping)

    @property
    def total_recomputed(self) -> int:
        """With each block's activations thrown away and made again backward: up to a third more work, 8 N for 6 N."""
        return self.state + max(self.gathered + self.activations_recomputed + self.loss, self.stepping)


def stage_memory(
    model: Model,
    parameters: Parameters,
    vocab_size: int,
    stage: Stage,
    devices: int,
    rows: int,
    element_bytes: int,
    keeps_weights: bool,
    optimizer: Optimizer,
    train: Train,
) -> StageMemory:
    """Memory of one of `devices` with `rows` rows a pass; `element_bytes` is 2 for bfloat16 products, 4 for float32.

    `keeps_weights`: whether attention keeps each row's weights, as on a CPU for which Fox has no kernel of its own.
    """
    narrow = train.precision == "bf16-weights"
    head = parameters.head or parameters.embedding
    tokens = rows * stage.row_length
    block = tokens * block_activation_bytes_per_token(model, element_bytes)
    if keeps_weights:
        block += rows * attention_weight_bytes_per_row(model, stage.row_length, element_bytes)
    block_input = tokens * model.hidden_size * element_bytes
    logits, head_gradient = _loss_bytes(tokens, model.hidden_size, vocab_size, head, element_bytes, narrow)
    return StageMemory(
        state=-(-state_bytes(model, parameters, optimizer, narrow) // devices),
        gathered=0 if narrow else gathered_bytes(parameters, devices, element_bytes),
        activations=model.num_hidden_layers * block,
        activations_recomputed=model.num_hidden_layers * block_input + block,
        logits=logits,
        head_gradient=head_gradient,
        stepping=head * STEPPING_BYTES if narrow else 0,
        recomputes=train.activation_checkpointing,
    )


def state_bytes(model: Model, parameters: Parameters, optimizer: Optimizer, narrow: bool) -> int:
    """Weights, gradients and moments, of all devices together."""
    inner = model.num_hidden_layers * (parameters.one_block - 2 * model.hidden_size)  # the blocks' matrices
    rest = parameters.total - inner
    of_matrix = {"adamw": STATE_BYTES_PER_PARAMETER, "muon": MUON_STATE_BYTES, "adafactor": ADAFACTOR_STATE_BYTES}
    of_rest = ADAFACTOR_STATE_BYTES if optimizer.name == "adafactor" else STATE_BYTES_PER_PARAMETER
    state = inner * of_matrix[optimizer.name] + rest * of_rest
    return state - parameters.total * BF16_SAVES_BYTES if narrow else state


def _loss_bytes(
    tokens: int, hidden_size: int, vocab_size: int, head: int, element_bytes: int, narrow: bool
) -> tuple[int, int]:
    """Of the logits that are held at once, and of the head's gradient."""
    rows = min(tokens, LOSS_CHUNK_ROWS)
    block = min(head, VOCABULARY_BLOCK_WEIGHTS)
    block_logits = min(vocab_size, max(1, VOCABULARY_BLOCK_WEIGHTS // hidden_size)) * LOGIT_BYTES  # of a row
    if narrow:
        return rows * block_logits, block * HEAD_GRADIENT_BYTES
    if head > LARGE_HEAD_WEIGHTS:
        rows = min(rows, large_head_chunk_rows(vocab_size, element_bytes))
        # A block's weights and the product that is added to its gradient, in the products' type.
        return rows * (vocab_size * element_bytes + block_logits), head * 4 + block * 2 * element_bytes
    return min(rows, loss_chunk_rows(vocab_size)) * vocab_size * LOGIT_BYTES, head * HEAD_GRADIENT_BYTES


def block_activation_bytes_per_token(model: Model, element_bytes: int) -> int:
    """What one block keeps of a token for the way back.

    Korthikanti et al. (arXiv 2205.05198, section 4.1), counted anew for grouped queries, a gated MLP and no dropout.
    Fused attention (arXiv 2205.14135) keeps no table of scores, only a float32 number a head. With hidden size h, query
    width a, key width k, MLP width f, the elements kept are: two norms' inputs and outputs, 4 h; q and the attention's
    output, 2 a; k and v, 2 k; gate, silu(gate), up and their product, 4 f.
    """
    queries = model.num_attention_heads * head_dim(model)
    keys = model.num_key_value_heads * head_dim(model)
    elements = 4 * model.hidden_size + 2 * queries + 2 * keys + 4 * model.intermediate_size
    return elements * element_bytes + 4 * model.num_attention_heads


def attention_weight_bytes_per_row(model: Model, row_length: int, element_bytes: int) -> int:
    """What attention by products keeps of a row for the way back, in each block: each head's weights, T x T. Longer rows
    take fused attention, which keeps none."""
    if row_length > MOST_TOKENS_BY_PRODUCTS:
        return 0
    return model.num_attention_heads * row_length**2 * element_bytes


def gathered_bytes(parameters: Parameters, devices: int, element_bytes: int) -> int:
    """Whole weights in the products' precision, beside the sharded state.

    Sharded: the embedding, the head, the block at work and the next one, each with its gradient. On one device: a
    bfloat16 copy of all weights, which makes 18 bytes a parameter, but not of a large head; none in float32.
    """
    if devices == 1:
        head = parameters.head or parameters.embedding
        copied = parameters.total - (head if head > LARGE_HEAD_WEIGHTS else 0)
        return 0 if element_bytes == 4 else element_bytes * copied
    whole = parameters.embedding + parameters.head + parameters.final_norm + 2 * parameters.one_block
    return 2 * element_bytes * whole


def loss_chunk_rows(vocab_size: int) -> int:
    """How many rows the loss scores at a time. All at once, 256,000 entries would need more than all else."""
    return max(1, min(LOSS_CHUNK_ROWS, LOSS_CHUNK_LOGITS // vocab_size))


def large_head_chunk_rows(vocab_size: int, element_bytes: int) -> int:
    """The same of a head of more than LARGE_HEAD_WEIGHTS: a power of two."""
    fitting = LARGE_HEAD_SCORE_BYTES // (vocab_size * element_bytes)
    return 1 << max(1, min(LOSS_CHUNK_ROWS, fitting)).bit_length() - 1


def usable_bytes(gpu: Gpu) -> int:
    """Of one GPU's memory."""
    return int(gpu.memory_gb * 1e9 * USABLE_FRACTION)
