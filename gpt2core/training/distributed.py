"""Training in several processes that torchrun started, one per GPU: each computes its part of every batch.

`sharding: none` is data-parallel (PyTorch's DDP): every process has all weights. `full` is sharded (PyTorch's FSDP2,
Zhao et al. 2023): each process has its part of weights, gradients, and optimizer states, and gathers a block when it is
needed. The loss is a sum divided by the targets of all processes, so that their number changes only the last bits. With
one process, nothing of this has an effect.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gpt2core import runtime
from gpt2core.errors import UserError
from gpt2core.model import GPT

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
R = TypeVar("R")
Model = TypeVar("Model", bound=nn.Module)


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started until the block ends: with NCCL on GPUs, one each; with gloo on CPUs.

    Raises:
        UserError: this process has no GPU of its own, or another one ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    device = runtime.device()
    if device.type == "cuda":
        local_rank, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= n_gpus:
            raise UserError(
                f"the launcher starts more processes on this machine than its {n_gpus} GPUs; "
                f"allowed: --nproc-per-node={n_gpus} or fewer"
            )
        torch.cuda.set_device(local_rank)
        if runtime.device().index != local_rank:
            raise UserError(
                f"GPT2CORE_DEVICE={os.environ['GPT2CORE_DEVICE']}: each process has a GPU of its own; use cuda"
            )
    # Numbers such as those of `all_reduce_sum` are on the CPU even if the model is not.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, number, n_processes = next(rendezvous("env://"))
    dist.init_process_group(backend, store=_store_of_this_start(store), rank=number, world_size=n_processes)
    try:
        yield
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistBackendError):
            reason = str(error).splitlines()[0]
            raise UserError(f"process {rank()} of the training lost another one ({reason})") from error
        raise
    dist.destroy_process_group()  # not after an error: it might wait for processes that have ended


def _store_of_this_start(store: Store) -> Store:
    """Return a part of the store of the processes' addresses that only this start uses.

    torchrun keeps the store when it starts the processes again, with the addresses of those that have ended. Each node
    counts the starts by itself, so for several nodes docs/scaling.md has an environment variable instead.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class LossSum(nn.Module):
    """A model with a forward pass that returns the summed loss, since DDP and FSDP work in the forward pass.

    `loss` computes it, by this model, from the tensors of a batch.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.model, self.loss = model, loss
        self.empty_model: tuple[nn.Module, ...] = ()  # of a sharded model: one without memory, for `full_model`

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the loss in nats, summed over the targets: []."""
        return self.loss(*tensors)


def parallel_loss(model: nn.Module, loss: Callable[..., Tensor], sharding: str, device: torch.device) -> nn.Module:
    """Return a model's loss as a module whose gradients are the sum over all processes; see `LossSum`.

    The model, with the same weights in every process, is changed in place: create its optimizers after this.
    """
    module = LossSum(model, loss)
    if world_size() == 1:
        return module.to(device)
    if sharding == "none":
        ids = [device.index] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # Its replacement would send the buffers once, at the start: those of a 1558M in int8 are 1.2 GB.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                module.to(device), device_ids=ids, gradient_as_bucket_view=True,
                broadcast_buffers=False,  # quantized weights, which do not change
            )  # fmt: skip
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # takes two seconds

    module.empty_model = (_without_memory(model),)
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in model.transformer.h:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
        register_fsdp_forward_method(block, "forward_at")
    fully_shard(module, mesh=mesh)  # embeddings and head together
    return module


def _without_memory(model: Model) -> Model:
    """Return a copy of the model whose tensors are on the meta device; tied weights stay tied."""
    tensors: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.to("meta"), parameter.requires_grad) for parameter in model.parameters()
    }
    tensors |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, tensors)


def sync_gradients(loss: nn.Module, is_last: bool) -> None:
    """Sum gradients over all processes in the next backward pass if it is the last one of a step."""
    if isinstance(loss, DistributedDataParallel):
        loss.require_backward_grad_sync = is_last  # as its `no_sync` does
    elif set_sync := getattr(loss, "set_requires_gradient_sync", None):  # of an FSDPModule
        set_sync(is_last)


def local_slices(n: int, batch_size: int) -> list[range]:
    """Return the part of `n` rows that this process computes, in micro-batches of at most `batch_size`.

    Each process has the same number of micro-batches. Their sizes differ by at most one; with a small `n`, some are
    empty.
    """
    n_micro = math.ceil(n / (world_size() * batch_size))
    cuts = [n * i // (world_size() * n_micro) for i in range(rank() * n_micro, (rank() + 1) * n_micro + 1)]
    return [range(first, last) for first, last in zip(cuts, cuts[1:], strict=False)]


def all_reduce_sum(value: float) -> float:
    """Return the sum of a number over all processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.item()


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes in place, without waiting for the device."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value: Any, source: int = 0) -> Any:
    """Return the value that process `source` has, values of JSON, in all processes.

    torch's own function for objects unpickles what it receives.
    """
    if world_size() == 1:
        return value
    text = json.dumps(value).encode() if rank() == source else b""
    length = int(all_reduce_sum(len(text)))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(length, dtype=torch.uint8)
    dist.broadcast(data, source)
    return json.loads(data.numpy().tobytes())


def each_part(rows: Sequence[T], function: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Return `function(rows)`, values of JSON, of which each process computes a part; all have the same model."""
    n, size = len(rows), world_size()
    part = function(rows[n * rank() // size : n * (rank() + 1) // size])
    return [value for source in range(size) for value in broadcast_object(part, source)]


def _is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether each process has a part; without the class, which takes two seconds to import."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of which each process may have a part; all processes must call this."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the part of a full tensor that is sharded like `like`; every process has the full tensor."""
    if not _is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(tensor, like.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=like.placements)


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has: all of it, unless it is sharded."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def from_local_part(part: Tensor, like: Tensor) -> Tensor:
    """Return the tensor, sharded like `like`, of which this process has `part`, on the device of `like`."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def layout(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return the full shape and the placements of each sharded tensor, as values of JSON."""
    return {
        name: {"shape": list(tensor.shape), "placements": [str(placement) for placement in tensor.placements]}
        for name, tensor in tensors.items()
        if _is_sharded(tensor)
    }


@torch.no_grad()
def full_model(loss_module: nn.Module, *, on_all: bool = False) -> Any:
    """Return the model of a `parallel_loss`, or if it is sharded, a copy with all its weights.

    All processes must call this. Without `on_all`, the copies of all but the first process are empty.
    """
    module = loss_module.module if isinstance(loss_module, DistributedDataParallel) else loss_module
    assert isinstance(module, LossSum)
    if not module.empty_model:
        return module.model
    state = {}
    for name, part in module.model.state_dict().items():
        tensor = full_tensor(part)
        if on_all or rank() == 0:
            state[name] = tensor
    model = copy.deepcopy(module.empty_model[0])
    model.load_state_dict(state, assign=True, strict=bool(state))
    if isinstance(model, GPT) and model.config.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    return model


def dropout_seed(seed: int, step: int) -> int:
    """Return the seed of dropout in this process and step: a checkpoint then needs no generators of other processes."""
    return int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0])
