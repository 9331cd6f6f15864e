"""Several processes, started by torchrun: which of them this is, and a way to share out the work."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


def begin() -> tuple[int, torch.device]:
    """Join the processes that torchrun started, if it did: the number of this one, from 0, and its device."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if "LOCAL_RANK" not in os.environ:
        return 0, device
    if cuda:  # whoever says no more than "cuda" means this one from now on
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        store, rank, world = next(dist.rendezvous("env://"))
        # A restarted job must not read what the lost one has left in the store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), device


def place() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 without torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def agreed(number: int) -> int:
    """The number that the first process gives, in all of them."""
    box = torch.tensor(number)
    if place()[1] > 1:
        dist.broadcast(box, src=0)
    return int(box)


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others enter it: what it downloads is there for them."""
    rank, _ = place()
    if rank > 0:
        agreed(rank)
    yield
    if rank == 0:
        agreed(rank)


def in_shares(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """``function(*inputs)``, a function of each row alone: each process computes its share, and all get the whole.

    Args:
        function: of tensors with the same number of rows, N; its result has N rows too.
        inputs: the tensors, the same in every process; an input that is None is passed on.
    """
    rank, world = place()
    if world == 1:
        return function(*inputs)
    rows = len(inputs[0])
    share = -(-rows // world)  # the last row stands in where there is none left
    mine = torch.arange(rank * share, (rank + 1) * share).clamp(max=rows - 1)
    part = function(*(None if x is None else x[mine.to(x.device)] for x in inputs))
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)[:rows]


def share_out(network: nn.Module) -> None:
    """From now on, every call of ``network(x_t, t, y=None)`` is done in shares; all processes must make it.

    So all noise is drawn everywhere, for the whole batch, and no result depends on the number of processes.
    """
    forward = network.forward
    network.forward = lambda x_t, t, y=None: in_shares(forward, x_t, t, y)
