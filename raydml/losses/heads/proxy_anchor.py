"""Proxy-Anchor (Kim et al., arXiv 2003.13911, equation 4) with proxies on their owners.

A proxy's terms are sums over the batch, and the batch is everywhere: its owner finishes them at once. Only the loss and
gradients of the batch (B, D) travel, summed over the fixed tree of shards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydml import catalogue
from raydml.losses.heads.scores import Chunk, ShardScores
from raydml.losses.heads.softmax import HeadFound, HeadStep
from raydml.losses.heads.table import ClassTable
from raydml.losses.tiled.reduction import log_one_plus
from raydml.losses.tiled.scores import DotProduct, pull_prepare
from raydml.parallel import TreeAccumulator, tree_sum


class ProxyAnchorHead(nn.Module):
    """log(1 + sum_p exp(alpha (margin - s))), mean of classes with rows, and log(1 + sum_n exp(alpha (s + margin)))."""

    def __init__(self, table: ClassTable, spec: catalogue.ProxyAnchor) -> None:
        super().__init__()
        self.table, self.spec = table, spec

    def evaluate(self, embeddings: Tensor, labels: Tensor, step: int) -> HeadFound:
        """As SoftmaxHead."""
        group, score = self.table.group, DotProduct(normalize=True)
        batch = score.prepare(embeddings)
        present = len(torch.unique(labels))
        accumulator = TreeAccumulator(group.num_slices)
        gradients = []
        for index in group.owned:
            rows, places = self.table.shards.within(labels, index)
            shard = ShardScores(self.table.rows(index, labels, step), batch, rows, places, normalize=True)
            accumulator.add(index, list(self._shard(shard, present)))
            gradients.append((shard.held, shard.gradient.view_as(shard.held.vectors)))
        loss, of_batch = tree_sum(accumulator, group)
        size = len(batch) // group.num_slices
        own = slice(group.owned.start * size, group.owned.stop * size)
        return loss, pull_prepare(score, embeddings[own], of_batch[own], size), HeadStep(tuple(gradients))

    def commit(self, done: HeadStep, step: int) -> None:
        """See SoftmaxHead."""
        for rows, gradient in done.gradients:
            self.table.update(rows, gradient, step)

    def _shard(self, shard: ShardScores, present: int) -> tuple[Tensor, Tensor]:
        """A shard's part of the loss, shape (), and of dL/d(batch)."""
        loss, of_batch = shard.batch.new_zeros(()), torch.zeros_like(shard.batch)
        for chunk in shard.chunks():
            slopes, part = self._chunk(shard, chunk, present)
            loss = loss + part
            of_batch.addmm_(slopes, chunk.vectors)
            torch.mm(slopes.T, shard.batch, out=shard.gradient[chunk.rows])
            shard.pull_ready(chunk)
        return loss, of_batch

    def _chunk(self, shard: ShardScores, chunk: Chunk, present: int) -> tuple[Tensor, Tensor]:
        """dL/d(score) of a chunk (B, n), and its part of the loss.

        A column's sum goes over all rows at once: a tile here is as high as the batch.
        """
        scores, _ = shard.tile(shard.batch, chunk)  # (B, n)
        whole = slice(0, len(shard.batch))
        mine = torch.zeros_like(scores, dtype=torch.bool)
        mine[shard.own(whole, chunk)] = True
        loss, slopes = scores.new_zeros(()), torch.zeros_like(scores)
        for side, count, members in ((-1, present, mine), (1, self.table.shards.num_classes, ~mine)):
            exponents = ((side * scores + self.spec.margin) * self.spec.alpha).masked_fill_(~members, -torch.inf)
            sums = torch.logsumexp(exponents, dim=0)  # (n,), -inf without members
            loss = loss + log_one_plus(sums).sum() / count
            # exp(x - log sum exp) x sigmoid(log sum exp): what is left where both are -inf is 0.
            shares = (exponents - sums.clamp_min(torch.finfo(sums.dtype).min)).exp_()
            slopes += shares * (torch.sigmoid(sums) * (side * self.spec.alpha / count))
        return slopes, loss
