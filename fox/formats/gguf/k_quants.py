"""The integers of Q4_K and Q6_K: a search, since their scales are integers too.

The types have no one right answer: llama.cpp tries a range of scales for each sub-block, fits each by least squares, keeps
the best, and rounds the scales to integers. So do we, with its weights (a large weight's error counts for more), and then
go on: we try each sub-block's neighbouring integer scales with the weights rounded anew, which it doesn't. With fewer
tries, the error of normal weights comes out 1 % smaller than by its search, as we rewrote that to compare (0.0707 of their
size for 0.0714 with Q4_K, 0.0175 for 0.0177 with Q6_K).

N blocks, B = 256 weights of a block, S sub-blocks of a block, W weights of a sub-block, M = N x S sub-blocks
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Q4_K: the integer that a sub-block's span reaches. Past 15 the ends are cut off, below it the steps are wider.
_Q4_K_REACHES = tuple(14 + step / 5 for step in range(11))
# Neighbours of a sub-block's (scale, minimum), each tried from the best so far.
_Q4_K_NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))

# Q6_K: the integer, but for its sign, that a sub-block's largest weight reaches.
_Q6_K_REACHES = tuple(28 + step / 2 for step in range(11))
_Q6_K_NEIGHBOURS = (1, -1)

# Below this share of the mean square, the variance of a sub-block's integers is noise of float32, and nothing to divide by.
_LEAST_VARIANCE = 1e-5


class Q4K(NamedTuple):
    """weight = scale x sub_scale x q - minimum x sub_minimum"""

    scale_N1: Tensor  # float16
    minimum_N1: Tensor  # float16
    sub_scale_NS: Tensor  # uint8, up to 63
    sub_minimum_NS: Tensor  # uint8, up to 63
    q_NB: Tensor  # uint8, up to 15


class Q6K(NamedTuple):
    """weight = scale x sub_scale x (q - 32)"""

    scale_N1: Tensor  # float16
    sub_scale_NS: Tensor  # int8
    q_NB: Tensor  # uint8, up to 63


def search_q4_k(weight_NB: Tensor) -> Q4K:
    """Q4_K's parts for (N, 256) float32. The scales of a block that cannot be stored are infinite or NaN; check them."""
    x_WM = weight_NB.view(-1, 32).t().contiguous()  # so that sums over a sub-block run along many of them at once
    sub_blocks = _Q4KSubBlocks(x_WM)
    scale_M, minimum_M = sub_blocks.best_scale_and_minimum()
    scale_N1, super_scale_M = _super_scale(scale_M.view(-1, 8).amax(1, keepdim=True) / 63, 8)
    minimum_N1, super_minimum_M = _super_scale(minimum_M.view(-1, 8).amax(1, keepdim=True) / 63, 8)
    sub_scale_M = (scale_M * inverse(super_scale_M)).round_().clamp_(0, 63)
    sub_minimum_M = (minimum_M * inverse(super_minimum_M)).round_().clamp_(0, 63)

    def error_M(sub_scale_M: Tensor, sub_minimum_M: Tensor) -> Tensor:
        return sub_blocks.error_M(super_scale_M * sub_scale_M, super_minimum_M * sub_minimum_M)

    least_M = error_M(sub_scale_M, sub_minimum_M)
    for scale_step, minimum_step in _Q4_K_NEIGHBOURS:
        tried_scale_M = (sub_scale_M + scale_step).clamp_(0, 63)
        tried_minimum_M = (sub_minimum_M + minimum_step).clamp_(0, 63)
        tried_M = error_M(tried_scale_M, tried_minimum_M)
        better_M = tried_M < least_M
        least_M = torch.where(better_M, tried_M, least_M)
        sub_scale_M = torch.where(better_M, tried_scale_M, sub_scale_M)
        sub_minimum_M = torch.where(better_M, tried_minimum_M, sub_minimum_M)
    q_WM = sub_blocks.rounded_WM(super_scale_M * sub_scale_M, super_minimum_M * sub_minimum_M)
    return Q4K(scale_N1, minimum_N1, sub_scale_M.byte().view(-1, 8), sub_minimum_M.byte().view(-1, 8), _in_blocks(q_WM))


def search_q6_k(weight_NB: Tensor) -> Q6K:
    """Q6_K's parts for (N, 256) float32. The scale of a block that cannot be stored is infinite or NaN; check it."""
    x_WM = weight_NB.view(-1, 16).t().contiguous()
    square_WM = x_WM * x_WM  # the weight of an error
    q_WM, product_WM = torch.empty_like(x_WM), torch.empty_like(x_WM)

    def moments(scale_M: Tensor) -> tuple[Tensor, Tensor]:
        """Of the integers that this scale gives: the weighted sums of q x and q q."""
        torch.mul(x_WM, inverse(scale_M), out=q_WM).round_().clamp_(-32, 31)
        torch.mul(q_WM, square_WM, out=product_WM)
        qq_M = (product_WM * q_WM).sum(0)
        return product_WM.mul_(x_WM).sum(0), qq_M

    low_M, high_M = x_WM.amin(0), x_WM.amax(0)
    largest_M = torch.where(-low_M > high_M, low_M, high_M)
    scale_M, most_M = largest_M / -32, torch.full_like(largest_M, -torch.inf)
    for reach in _Q6_K_REACHES:
        qx_M, qq_M = moments(largest_M / -reach)
        tried_M = qx_M / qq_M
        gain_M = tried_M * qx_M  # how much a least-squares fit takes off the error
        better_M = gain_M > most_M
        most_M = torch.where(better_M, gain_M, most_M)
        scale_M = torch.where(better_M, tried_M, scale_M)

    scale_NS = scale_M.view(-1, 16)
    low_N1, high_N1 = scale_NS.amin(1, keepdim=True), scale_NS.amax(1, keepdim=True)
    scale_N1, super_scale_M = _super_scale(torch.where(-low_N1 > high_N1, low_N1, high_N1) / -128, 16)
    sub_scale_M = (scale_M * inverse(super_scale_M)).round_().clamp_(-128, 127)

    def error_M(sub_scale_M: Tensor) -> Tensor:
        scale_M = super_scale_M * sub_scale_M
        qx_M, qq_M = moments(scale_M)
        return scale_M * (scale_M * qq_M - 2 * qx_M)

    least_M = error_M(sub_scale_M)
    for step in _Q6_K_NEIGHBOURS:
        tried_scale_M = (sub_scale_M + step).clamp_(-128, 127)
        tried_M = error_M(tried_scale_M)
        better_M = tried_M < least_M
        least_M = torch.where(better_M, tried_M, least_M)
        sub_scale_M = torch.where(better_M, tried_scale_M, sub_scale_M)
    torch.mul(x_WM, inverse(super_scale_M * sub_scale_M), out=q_WM).round_().clamp_(-32, 31).add_(32)
    return Q6K(scale_N1, sub_scale_M.to(torch.int8).view(-1, 16), _in_blocks(q_WM))


def inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where a scale is 0, or so near it that its inverse is infinite: as float16 it is 0 anyway."""
    inverted = 1 / scale
    return inverted.masked_fill_(inverted.isinf(), 0)


class _Q4KSubBlocks:
    """Sub-blocks of 32, and how well scale x q - minimum describes them, for minimums of 0 and more."""

    def __init__(self, x_WM: Tensor) -> None:
        self.x_WM = x_WM
        # llama.cpp's weight of an error: the weight's size and the sub-block's root mean square.
        self.weight_WM = x_WM.abs().add_((x_WM * x_WM).mean(0).sqrt_())
        self.low_M = x_WM.amin(0).clamp_max_(0)
        self.span_M = x_WM.amax(0).sub_(self.low_M)
        self.w_M = self.weight_WM.sum(0)
        weighted_WM = self.weight_WM * x_WM
        self.x_M = weighted_WM.sum(0)
        self.xx_M = weighted_WM.mul_(x_WM).sum(0)
        self.q_WM, self.product_WM = torch.empty_like(x_WM), torch.empty_like(x_WM)

    def rounded_WM(self, scale_M: Tensor, minimum_M: Tensor) -> Tensor:
        """The integers 0 to 15 that fit best, as float32 in a buffer that the next call overwrites."""
        inverse_M = inverse(scale_M)
        torch.addcmul(minimum_M * inverse_M, self.x_WM, inverse_M, out=self.q_WM)
        return self.q_WM.round_().clamp_(0, 15)

    def error_M(self, scale_M: Tensor, minimum_M: Tensor) -> Tensor:
        """The weighted sum of squared errors once the weights are rounded."""
        q_M, qx_M, qq_M = self._moments(scale_M, minimum_M)
        square_M = scale_M * (scale_M * qq_M - 2 * (minimum_M * q_M + qx_M))
        return square_M + minimum_M * (minimum_M * self.w_M + 2 * self.x_M) + self.xx_M

    def best_scale_and_minimum(self) -> tuple[Tensor, Tensor]:
        """(M,) each. Each reach's rounding is fitted by weighted least squares, and starts from the best minimum so far."""
        scale_M, minimum_M = self.span_M / 15, -self.low_M
        least_M = torch.full_like(scale_M, torch.inf)
        for reach in _Q4_K_REACHES:
            q_M, qx_M, qq_M = self._moments(self.span_M / reach, minimum_M)
            spread_M = self.w_M * qq_M - q_M * q_M
            fitted_M = (self.w_M * qx_M - self.x_M * q_M) / spread_M
            offset_M = (q_M * qx_M - qq_M * self.x_M) / spread_M
            # A minimum below 0 cannot be stored: without one, the fit is another.
            without_M = ~(offset_M >= 0) | (spread_M <= _LEAST_VARIANCE * self.w_M * qq_M)
            fitted_M = torch.where(without_M, qx_M / qq_M, fitted_M)
            offset_M = offset_M.masked_fill_(without_M, 0)
            tried_M = self.xx_M - fitted_M * qx_M + offset_M * self.x_M  # of either fit, by its normal equations
            better_M = tried_M < least_M
            least_M = torch.where(better_M, tried_M, least_M)
            scale_M = torch.where(better_M, fitted_M, scale_M)
            minimum_M = torch.where(better_M, offset_M, minimum_M)
        return scale_M, minimum_M

    def _moments(self, scale_M: Tensor, minimum_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the integers that these give: the weighted sums of q, q x and q q."""
        q_WM, product_WM = self.rounded_WM(scale_M, minimum_M), self.product_WM
        q_M = torch.mul(q_WM, self.weight_WM, out=product_WM).sum(0)
        qq_M = q_WM.mul_(product_WM).sum(0)
        return q_M, product_WM.mul_(self.x_WM).sum(0), qq_M


def _super_scale(scale_N1: Tensor, sub_blocks: int) -> tuple[Tensor, Tensor]:
    """A block's scale as float16, and as a reader will have it: float32, once for each of its sub-blocks (M,)."""
    half_N1 = scale_N1.half()
    return half_N1, half_N1.float().expand(-1, sub_blocks).flatten()


def _in_blocks(q_WM: Tensor) -> Tensor:
    """(W, M) as (N, 256) uint8."""
    return q_WM.byte().t().reshape(-1, 256)
