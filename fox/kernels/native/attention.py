"""The C++ in avx512_bf16 as two operations of torch: attention within documents, and its way back.

B rows, T tokens, N query heads, K key/value heads, H head size
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from fox.kernels.native.library import avx512_bf16

_HEAD_SIZE_MULTIPLE = 32


def can_attend(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_in_documents` takes such queries here. The first call may compile, for some seconds."""
    fits = device.type == "cpu" and dtype == torch.bfloat16 and head_dim % _HEAD_SIZE_MULTIPLE == 0
    return fits and avx512_bf16() is not None


def attend_in_documents(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, begins_BT: Tensor) -> Tensor:
    """Mix the values that each token may see: those from `begins_BT` (int32, never falling along a row) up to itself.

    All bf16, with H a multiple of 32. Returns (B, N, T, H), stored as (B, T, N, H). Scores, sums and gradients are summed in
    float32; a token's weights are rounded to bf16. With another number of threads gradients differ in their last bits.
    """
    return _attend(q_BNTH, k_BKTH, v_BKTH, begins_BT)[0]


@torch.library.custom_op("fox::attend_in_documents", mutates_args=())
def _attend(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, begins_BT: Tensor) -> tuple[Tensor, Tensor]:
    (B, N, T, H), K = q_BNTH.shape, k_BKTH.shape[1]
    assert {x.dtype for x in (q_BNTH, k_BKTH, v_BKTH)} == {torch.bfloat16}, "the kernel reads 16 bits a number"
    assert k_BKTH.shape == v_BKTH.shape == (B, K, T, H) and N % K == 0 and H % _HEAD_SIZE_MULTIPLE == 0
    assert begins_BT.shape == (B, T) and begins_BT.dtype == torch.int32
    q_BNTH, k_BKTH, v_BKTH = map(_readable, (q_BNTH, k_BKTH, v_BKTH))
    out_BNTH, log_sum_BNT = _like_output(q_BNTH)
    begins_BT = begins_BT.contiguous()
    _call(
        "fox_attend", q_BNTH, k_BKTH,
        *_of(q_BNTH), *_of(k_BKTH), *_of(v_BKTH), _address(begins_BT), *_of(out_BNTH), _address(log_sum_BNT),
    )  # fmt: skip
    return out_BNTH, log_sum_BNT


@torch.library.custom_op("fox::attend_in_documents_back", mutates_args=())
def _attend_back(
    grad_BNTH: Tensor,
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    begins_BT: Tensor,
    out_BNTH: Tensor,
    log_sum_BNT: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    assert grad_BNTH.dtype == torch.bfloat16 and grad_BNTH.shape == q_BNTH.shape
    grads = [torch.empty_like(x) for x in (q_BNTH, k_BKTH, v_BKTH)]
    q_BNTH, k_BKTH, v_BKTH, out_BNTH, grad_BNTH = map(_readable, (q_BNTH, k_BKTH, v_BKTH, out_BNTH, grad_BNTH))
    begins_BT, log_sum_BNT = begins_BT.contiguous(), log_sum_BNT.contiguous()
    made = [_readable(grad) for grad in grads]
    _call(
        "fox_attend_back", q_BNTH, k_BKTH,
        *_of(q_BNTH), *_of(k_BKTH), *_of(v_BKTH), _address(begins_BT), *_of(out_BNTH), _address(log_sum_BNT),
        *_of(grad_BNTH), *(word for grad in made for word in _of(grad)),
    )  # fmt: skip
    return tuple(grad if grad is mine else grad.copy_(mine) for grad, mine in zip(grads, made, strict=True))  # type: ignore[return-value]


@_attend.register_fake
def _(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, begins_BT: Tensor) -> tuple[Tensor, Tensor]:
    return _like_output(q_BNTH)


@_attend_back.register_fake
def _(grad_BNTH: Tensor, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_BNTH), torch.empty_like(k_BKTH), torch.empty_like(v_BKTH)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _back(ctx: Any, grad_BNTH: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_attend_back(grad_BNTH, *ctx.saved_tensors), None


_attend.register_autograd(_back, setup_context=_keep)


def _like_output(q_BNTH: Tensor) -> tuple[Tensor, Tensor]:
    B, N, T, H = q_BNTH.shape
    return q_BNTH.new_empty((B, T, N, H)).transpose(1, 2), q_BNTH.new_empty((B, N, T), dtype=torch.float32)


def _readable(x: Tensor) -> Tensor:
    """With the numbers of a head side by side, and every head's at an even place."""
    even = all(stride % 2 == 0 for stride in x.stride()[:3]) and x.storage_offset() % 2 == 0
    return x if x.stride(3) == 1 and even else x.contiguous()


def _of(x: Tensor) -> tuple[ctypes.c_void_p, Any]:
    return _address(x), (ctypes.c_int64 * 3)(*x.stride()[:3])


def _address(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _call(name: str, q_BNTH: Tensor, k_BKTH: Tensor, *words: Any) -> None:
    library = avx512_bf16()
    assert library is not None, "the caller has asked can_attend"
    B, N, T, H = q_BNTH.shape
    shape = (ctypes.c_int64 * 5)(B, T, N, k_BKTH.shape[1], H)
    if getattr(library, name)(shape, *words, ctypes.c_float(H**-0.5), ctypes.c_int(torch.get_num_threads())):
        raise RuntimeError(f"{name}: can't allocate memory")  # as torch says it of its own
