"""One model on many ranks, by PyTorch's own means: FSDP2 (`fully_shard`), tensor parallel, and state that is whole again.

Parameters keep the names of the plain model, so that a checkpoint does not know on how many ranks it was written. The first
weights are drawn by the leader as one process draws them, and handed out: they are the same for any number of ranks, and no
other rank ever holds the whole model (theirs is made on the meta device).

B rows, L tokens a row
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fox.model import ModelConfig, Transformer
from fox.model.config import RopeScaling
from fox.model.loss import summed_loss
from fox.train.batches import Batch
from fox.train.machine import device, multiplies_in_bf16
from fox.train.team import Team


class TrainingModel(nn.Module):
    """The model and its loss as one module: the loss reads the embedding, which FSDP holds whole only inside of the root's forward."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, token_BL: Tensor, segment_BL: Tensor, target_BL: Tensor, each_BL: Tensor | None = None) -> Tensor:
        """The summed loss of one pass, in nats, float32. `each_BL`, of zeros, is filled with each token's own."""
        hidden_BLD = self.transformer(token_BL, segment_BL)
        each_N = None if each_BL is None else each_BL.view(-1)
        return summed_loss(hidden_BLD.flatten(0, 1), self.transformer.output_weight_VD, target_BL.flatten(), each_N)


def spread(model: Transformer | None, team: Team, precision: str) -> TrainingModel:
    """`model` ready to train: itself where one process trains, else cut among the ranks, with the leader's weights.

    The leader alone has a `model`, which is left as it is.
    """
    if team.mesh is None:
        assert model is not None
        return TrainingModel(model.to(device()))
    config = team.from_leader(lambda: dataclasses.asdict(model.config) if model else None)
    scaling = config.pop("rope_scaling")
    with torch.device("meta"):
        shape = ModelConfig(**config, rope_scaling=RopeScaling(**scaling) if scaling else None)
        training = TrainingModel(Transformer(shape))
    if team.mesh.size(1) > 1:
        for block in training.transformer.layers:
            parallelize_module(block, team.mesh["tensor"], _TENSOR_PARALLEL)
    policy = MixedPrecisionPolicy()
    if precision == "bf16" and device().type == "cuda":  # on a processor, autocast does it, as in one process
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in training.transformer.layers:
        fully_shard(block, mesh=team.mesh["data"], mp_policy=policy)
    fully_shard(training, mesh=team.mesh["data"], mp_policy=policy)
    for module in training.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is divided by all ranks' targets already
            module.set_force_sum_reduction_for_comms(True)  # gloo can only sum
    training.to_empty(device=device())
    whole = model.state_dict() if model else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(training.transformer, whole, options=options)
    return training


def gather(training: TrainingModel, model: Transformer | None) -> None:
    """Put the weights as they are now into the leader's plain `model`. A call for all ranks."""
    if training.transformer is model:
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = get_model_state_dict(training.transformer, options=options)
    if model is not None:
        model.load_state_dict(whole)


def summed_pass(training: TrainingModel, batch: Batch, precision: str, each_BL: Tensor | None = None) -> Tensor:
    """The summed loss of one pass. `each_BL`, of zeros, on the device, is filled with each token's own."""
    where = device()
    with torch.autocast(where.type, torch.bfloat16, enabled=multiplies_in_bf16(precision)):
        return training(batch.token_BL.to(where), batch.segment_BL.to(where), batch.target_BL.to(where), each_BL)


def sum_gradients_now(training: TrainingModel, now: bool) -> None:
    """Say whether the next backward pass is the step's last, in which the ranks add up their gradients."""
    if isinstance(training, FSDPModule):
        training.set_requires_gradient_sync(now)


def clip_gradients(training: TrainingModel, max_norm: float, team: Team) -> float:
    """The norm of the whole gradient, over all ranks, after which it is scaled down to `max_norm` where it was larger."""
    parameters = [parameter for parameter in training.parameters() if parameter.grad is not None]
    if team.mesh is None:
        norms = [torch.linalg.vector_norm(parameter.grad, dtype=torch.float32) for parameter in parameters]
        total = torch.linalg.vector_norm(torch.stack(norms))  # of bf16 gradients, too, in float32
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        return total.item()
    gradients = [parameter.grad for parameter in parameters if isinstance(parameter.grad, DTensor)]
    assert len(gradients) == len(parameters)
    _sum_over_heads(training, team.mesh)
    square = torch.zeros(
        2, dtype=torch.float64, device=device()
    )  # of gradients that tensor ranks hold whole, and in parts
    for gradient in gradients:
        square[int(_is_cut_by_heads(gradient))] += gradient.to_local().double().square().sum()
    dist.all_reduce(square[1:], group=team.mesh.get_group("tensor"))
    norm = float(team.sum(square).sum().sqrt())
    for gradient in gradients:
        gradient.to_local().mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


def groups_of_one_mesh(optimizer: torch.optim.Optimizer) -> None:
    """Divide AdamW's groups so that each has tensors of one mesh: fused updates of mixed ones are refused by torch."""
    for group in list(optimizer.param_groups):
        by_heads = [parameter for parameter in group["params"] if _is_cut_by_heads(parameter)]
        if not by_heads:
            continue
        assert isinstance(optimizer, torch.optim.AdamW)  # the groups of others are not their own alone
        group["params"] = [parameter for parameter in group["params"] if not _is_cut_by_heads(parameter)]
        optimizer.param_groups.append({**group, "params": by_heads})


# Megatron's cut (Shoeybi et al., arXiv 1909.08053): whole heads, and columns of the feed-forward layer; one sum a half-block.
_TENSOR_PARALLEL = {
    "self_attn.q_proj": ColwiseParallel(),
    "self_attn.k_proj": ColwiseParallel(),
    "self_attn.v_proj": ColwiseParallel(),
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(),
    "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}


def _is_cut_by_heads(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and tensor.device_mesh.ndim == 2


def _sum_over_heads(training: TrainingModel, mesh: DeviceMesh) -> None:
    """The norms of queries and keys are one for all heads, and each tensor rank has the gradient of its own heads only."""
    if mesh.size(1) == 1:
        return
    for name, parameter in training.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")) and isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad.to_local(), group=mesh.get_group("tensor"))
