"""What the ranks of one training tell one another, through torch.distributed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from textvae.batches import Batch
from textvae.model import TextVAE, frame_length
from textvae.vocabulary import OOV


class Ranks:
    """One rank's place among all of one training, and the exchanges; with one rank, nothing is sent."""

    def __init__(
        self, rank: int, world_size: int, device: torch.device, group: dist.ProcessGroup | None = None
    ):
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.group = group

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, summed over ranks in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        if self.world_size == 1:
            return flag
        tensor = torch.tensor(int(flag), dtype=torch.int32, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return bool(tensor.item())

    def text(self, make: Callable[[], str]) -> str:
        """What `make` says on rank 0; the others do not call it."""
        text = make() if self.rank == 0 else ""
        if self.world_size == 1:
            return text
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor(len(content), dtype=torch.int64, device=self.device)
        self.from_first(size)
        if self.rank == 0:
            content = content.to(self.device)
        else:
            content = torch.empty(int(size.item()), dtype=torch.uint8, device=self.device)
        self.from_first(content)
        return bytes(content.cpu().tolist()).decode()

    def from_first(self, tensor: Tensor) -> None:
        """Make the tensor what it is on rank 0, in place."""
        if self.world_size == 1:
            return
        source = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        dist.broadcast(tensor, source, group=self.group)


def distributed(model: TextVAE, ranks: Ranks) -> nn.Module:
    """The model whose backward pass averages the gradients of all ranks; with one rank, the model itself."""
    if ranks.world_size == 1:
        return model
    # All ranks compute the same buffers by themselves; PyTorch 2.13 renamed the argument that says to leave
    # them alone.
    known = inspect.signature(DistributedDataParallel).parameters
    keep = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {keep: False}
    wrapped = DistributedDataParallel(
        model, process_group=ranks.group, gradient_as_bucket_view=True, **options
    )
    # After its first step DDP arranges the gradients anew, in the order in which they came, and from three
    # ranks on the arrangement decides the last bits of their sums. With a first step that counts for nothing,
    # all that count see the same arrangement, whether training was resumed in between or not.
    length = frame_length(model.config)
    tokens = torch.full((1, length), OOV)
    batch = Batch(tokens, torch.tensor([length]), torch.tensor([1]), ranks.world_size)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wrapped(batch.to(ranks.device)).loss.backward()
    wrapped.zero_grad(set_to_none=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return wrapped
