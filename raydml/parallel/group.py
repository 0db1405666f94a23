"""The workers that train together: rows gathered in slice order, sums and small values agreed on."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import irecv, isend
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional

from raydml.membership import share
from raydml.parallel.mesh import mesh_of
from raydml.spec import MeshSpec

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64)  # of tensors from worker to worker
MOST_AXES = 6


class PeerLost(Exception):
    """A collective did not complete: a worker of the group died, left, or aborted it. The step is undecided."""


@contextmanager
def talking() -> Iterator[None]:
    """Raises PeerLost where a collective within fails; torch.distributed names the reason in many ways."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise PeerLost(str(error)) from error


_calls: list[object] = []  # of torch.distributed that this process is in, with no work of its own in between


@contextmanager
def calling() -> Iterator[None]:
    """Around calls of torch.distributed alone, for `present_call`."""
    call = object()
    _calls.append(call)
    try:
        yield
    finally:
        _calls.remove(call)


def present_call() -> object | None:
    """What tells the present call from every other one; None between calls. Asked from any thread."""
    return next(iter(_calls[:1]), None)


@contextmanager
def talking_in_between() -> Iterator[None]:
    """As `talking`, around code of torch.distributed that runs a model too: what the model itself raises stays.

    A model fails alike wherever it runs, and in the next group too; torch wraps its errors in others, here undone.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        if _raised_by_torch_distributed(first):
            raise PeerLost(str(first)) from error
        raise first from None


def _raised_by_torch_distributed(error: BaseException) -> bool:
    """Whether the innermost line of Python that raised it belongs to torch.distributed."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(dist.__file__).parent)


class Peers:
    """One process's place among some workers that talk to each other; alone it communicates nothing.

    `processes` is their process group of torch.distributed, None for the default one. Every method that communicates
    raises PeerLost where another worker is gone.
    """

    def __init__(self, rank: int, size: int, processes: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self.processes = rank, size, processes
        self.sent = 0  # bytes to other workers so far, in gathers, exchanges and sums over the tree
        self.waited = 0.0  # seconds in collectives so far: what a slow worker costs the others

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Around every collective: counts the time in it, and raises PeerLost where it fails."""
        started = time.perf_counter()
        with calling(), talking():
            yield
        self.waited += time.perf_counter() - started

    def vote(self, wishes: Sequence[bool] = ()) -> list[bool]:
        """Returns once every worker has called it: which of the wishes any of them has."""
        if self.size == 1:
            return list(wishes)
        told = torch.tensor([0, *map(int, wishes)], device=self.device)
        with self.collective():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.processes)
        return [bool(wish) for wish in told[1:].tolist()]

    def gather_rows(self, local: Tensor, counts: list[int]) -> Tensor:
        """(counts[rank], ...) of each worker -> (sum(counts), ...) on every worker, in rank order.

        Gloo aborts the process on unequal shapes, so rows are padded to the largest count.
        """
        if self.size == 1:
            return local
        longest = max(counts)
        padding = [0, 0] * (local.dim() - 1) + [0, longest - local.shape[0]]
        padded = (functional.pad(local, padding) if padding[-1] else local).contiguous()
        everything = padded.new_empty((self.size * longest, *padded.shape[1:]))
        self.sent += padded.nbytes * (self.size - 1)
        with self.collective():
            dist.all_gather_into_tensor(everything, padded, group=self.processes)
        if longest == min(counts):
            return everything
        parts = torch.split(everything, longest)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def exchange(self, rows: Tensor, given: list[int], taken: list[int]) -> Tensor:
        """Rows (sum(given), ...), given[rank] of them for each worker -> (sum(taken), ...), from each in rank order."""
        if self.size == 1:
            return rows
        received = rows.new_empty((sum(taken), *rows.shape[1:]))
        self.sent += rows[0].nbytes * (sum(given) - given[self.rank]) if len(rows) else 0
        with self.collective():
            dist.all_to_all_single(received, rows.contiguous(), taken, given, group=self.processes)
        return received

    def shift(self, rows: Tensor, distance: int, count: int) -> Tensor:
        """Rows for the worker `distance` places on, cyclically -> those (count, ...) of the worker as far back."""
        given, taken = [0] * self.size, [0] * self.size
        given[(self.rank + distance) % self.size] = len(rows)
        taken[(self.rank - distance) % self.size] = count
        return self.exchange(rows, given, taken)

    def swap(self, given: Sequence[Sequence[Tensor]], taken: Sequence[Sequence[Tensor]]) -> None:
        """Some tensors for each worker, in rank order; those of each for this one are written over `taken`, uncopied.

        Nothing is done about the own ones.
        """
        if self.size == 1:
            return
        others = [rank for rank in range(self.size) if rank != self.rank]
        message = partial(dist.P2POp, group=self.processes)
        messages = [message(irecv, tensor, group_peer=rank) for rank in others for tensor in taken[rank]]
        arriving = len(messages)
        messages += [message(isend, tensor, group_peer=rank) for rank in others for tensor in given[rank]]
        self.sent += sum(tensor.nbytes for rank in others for tensor in given[rank])
        with self.collective():
            works = dist.batch_isend_irecv(messages) if messages else []
            for work in works[:arriving]:
                work.wait()
            self.acknowledge(others, others)
            for work in works[arriving:]:
                work.wait()

    def acknowledge(self, received_from: Sequence[int], sent_to: Sequence[int]) -> None:
        """Tell workers that what they sent is here, and hear from others that what was sent to them is there.

        To be called in a collective, before any send is waited for: gloo never ends the wait for a send that had begun
        when its receiver died, but it does end the wait for a receipt. A receipt is one byte, and is not counted.
        """
        if self.device.type != "cpu":
            return
        receipt = torch.zeros(1, dtype=torch.uint8)
        heard = [irecv(torch.empty_like(receipt), group=self.processes, group_src=rank) for rank in sent_to]
        told = [isend(receipt, group=self.processes, group_dst=rank) for rank in received_from]
        for work in (*heard, *told):
            assert work is not None, "a worker of another group"
            work.wait()

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over workers, in place; the order of the sum is the library's."""
        if self.size > 1:
            with self.collective():
                dist.all_reduce(value, group=self.processes)
        return value

    def share_out(self, value: Tensor, source: int) -> Tensor:
        """The value of the worker `source` on all of them; written over the others' tensors of the same shape."""
        if self.size > 1:
            with self.collective():
                dist.broadcast(value, group=self.processes, group_src=source)
        return value

    def maximum(self, value: Tensor) -> Tensor:
        """The largest of all workers' values, element by element, in place; exact in any order."""
        if self.size > 1:
            with self.collective():
                dist.all_reduce(value, dist.ReduceOp.MAX, group=self.processes)
        return value

    def give(self, value: Tensor, to: int) -> list[dist.Work]:
        """Send a tensor to one worker, which takes it; wait for the works before the tensor changes."""
        header = torch.tensor([TYPES.index(value.dtype), value.dim(), *value.shape] + [0] * (MOST_AXES - value.dim()))
        parts = [header.to(self.device), value.detach().to(self.device).contiguous()]
        with talking():
            works = [dist.isend(part, group=self.processes, group_dst=to) for part in parts]
        return [work for work in works if work is not None]

    def take(self, source: int) -> Tensor:
        """The next tensor that this worker gives."""
        header = torch.empty(MOST_AXES + 2, dtype=torch.int64, device=self.device)
        with self.collective():
            dist.recv(header, group=self.processes, group_src=source)
            kind, axes, *shape = header.tolist()
            value = torch.empty(shape[:axes], dtype=TYPES[kind], device=self.device)
            dist.recv(value, group=self.processes, group_src=source)
        return value

    def objects(self, value: Any) -> list[Any]:
        """One small picklable value of each worker, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.collective():
            dist.all_gather_object(values, value, group=self.processes)
        return values

    @property
    def device(self) -> torch.device:
        """Where tensors lie that travel between workers."""
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


class Group(Peers):
    """One process's place among W workers that share V slices; with W = 1 nothing is communicated.

    `num_slices` is V. The default process group of torch.distributed must span exactly these workers when W > 1.
    Models and strategies hold the group, and the group moves: after `move` and `connect` they run among other workers,
    with other slices.

    Where `axes` share a model out over several workers, those hold the same slices; `data` is this worker's group of
    workers that hold different ones, and rows are gathered there. Without such axes `data` is the group itself.
    """

    def __init__(self, rank: int, size: int, num_slices: int, axes: MeshSpec | None = None) -> None:
        super().__init__(rank, size)
        self.num_slices = num_slices
        self.axes = axes or MeshSpec()
        self.data = self if self.axes.cell == 1 else Group(0, 1, num_slices)
        self._device_mesh: DeviceMesh | None = None
        self.move(rank, [len(share(other, size, self.seats)) for other in range(size)])

    @property
    def seats(self) -> int:
        """The most workers that can be used: V, times the workers that hold the same slices."""
        return self.num_slices * self.axes.cell

    def move(self, rank: int, deal: Sequence[int]) -> None:
        """Take another place: the rank among len(deal) workers, which hold that many slices each, in rank order.

        Of workers that share a model out, those with the same data coordinate hold its equal share of the slices.
        """
        assert sum(deal) == self.seats and min(deal) > 0, (deal, self.seats)
        self.rank = rank
        self.size = len(deal)
        self.mesh = mesh_of(self.axes, self.size)
        self._device_mesh = None
        if self.data is not self:
            workers = self.mesh.length("data")
            self.data.move(
                self.mesh.place(rank)["data"], [len(share(other, workers, self.num_slices)) for other in range(workers)]
            )
            return
        ends = list(accumulate(deal))
        self._shares = [range(end - count, end) for end, count in zip(ends, deal, strict=True)]

    def connect(self) -> None:
        """Form the process groups of the mesh's axes; all workers call it, once the default one is formed."""
        if len(self.mesh.axes) == 1:
            return
        with self.collective():
            self._device_mesh = self._grid()
        if self.data is not self:
            self.data.processes = self._device_mesh.get_group("data")

    def _grid(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, self.mesh.lengths, mesh_dim_names=self.mesh.axes)

    @property
    def device_mesh(self) -> DeviceMesh:
        """The mesh as torch knows it; of W > 1 workers that are connected."""
        if self._device_mesh is None:
            assert len(self.mesh.axes) == 1, "connect() forms the axes"
            self._device_mesh = self._grid()  # a single axis is the default process group
        return self._device_mesh

    def peers(self, axis: str) -> Peers:
        """The workers along one axis of the mesh; this worker alone where there is no such axis."""
        if self.mesh.length(axis) == 1:
            return Peers(0, 1)
        return Peers(self.mesh.place(self.rank)[axis], self.mesh.length(axis), self.device_mesh.get_group(axis))

    @property
    def owned(self) -> range:
        """The slices of this worker."""
        return self.data.share(self.data.rank)

    @property
    def speaks(self) -> bool:
        """Whether this worker is the first of those that hold the same slices."""
        place = self.mesh.place(self.rank)
        return self.data is self or not any(place[axis] for axis in place if axis != "data")

    def share(self, rank: int) -> range:
        """The slices of a worker."""
        return self._shares[rank] if self.data is self else self.data.share(self.mesh.place(rank)["data"])

    def gather_slices(self, local: Tensor) -> Tensor:
        """This worker's rows (own slices x S, ...) -> all rows (V x S, ...) in slice order; no gradient flows."""
        data = self.data
        rows = local.shape[0] // len(data.owned)
        return data.gather_rows(local, [len(data.share(rank)) * rows for rank in range(data.size)])
