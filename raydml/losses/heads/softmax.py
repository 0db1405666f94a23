"""Cross entropy over classes that lie on their owners: each worker takes the whole batch against its own shards.

Three numbers of each row travel (the score of its own class, the largest logit, the sum of exponentials below it), and
gradients of the batch (B, D), summed over the fixed tree of shards; gradients of class vectors stay where they are.
Scores are computed a chunk of classes at a time, twice but for some that are kept: the whole B x C / W never is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydml.losses.heads.margins import Margin
from raydml.losses.heads.scores import Kept, ShardScores
from raydml.losses.heads.table import ClassTable, Rows
from raydml.losses.tiled.reduction import add_exponentials, log_one_plus, reduce_rows
from raydml.losses.tiled.scores import DotProduct, pull_prepare
from raydml.parallel import TreeAccumulator, tree_sum


@dataclass(frozen=True, eq=False)
class HeadStep:
    """What a commit needs: rows of the own shards with dL/d(vectors), and what moves by its own rule."""

    gradients: tuple[tuple[Rows, Tensor], ...]
    moved: Tensor | None = None

    def norms(self, like: Tensor) -> Tensor:
        """L2 norms of the gradients, (own shards,)."""
        return torch.stack(
            [gradient.norm() if gradient.numel() else like.new_zeros(()) for _, gradient in self.gradients]
        )

    def clip(self, limit: float, norm: Tensor) -> None:
        """Scale the gradients, in place, as torch's clipping does with all others of this norm."""
        factor = (limit / (norm + 1e-6)).clamp(max=1)
        for _, gradient in self.gradients:
            gradient.mul_(factor.to(gradient))


HeadFound = tuple[Tensor, Tensor, HeadStep]  # loss, dL/d(own rows of the batch), the rest


class SoftmaxHead(nn.Module):
    """A softmax head: `margin` says what logits are, `reducer` how terms of rows become one number."""

    def __init__(self, table: ClassTable, margin: Margin, reducer: nn.Module) -> None:
        super().__init__()
        self.table, self.margin, self.reducer = table, margin, reducer

    def evaluate(self, embeddings: Tensor, labels: Tensor, step: int) -> HeadFound:
        """The loss of a gathered batch (B, D), (B,), with gradients of the own rows and of the own class vectors."""
        group, margin = self.table.group, self.margin
        score = DotProduct(margin.normalize)
        batch = score.prepare(embeddings)  # (B, D), on all workers alike
        shards = [self._scores(index, batch, labels, step) for index in group.owned]
        targets = batch.new_zeros(len(batch))
        for shard in shards:
            targets[shard.rows] = shard.targets()[0]
        targets = group.all_reduce(targets + 0.0)  # one number and zeros: exact in any order
        moved, kept = margin.begin(targets), Kept()
        others = self._others(shards, targets, moved, kept)
        answers = torch.stack([targets, others], dim=1).requires_grad_()  # (B, 2)
        with torch.enable_grad():
            wanted = margin.target(answers[:, 0]) * margin.scale
            loss = reduce_rows(self, log_one_plus(answers[:, 1] - wanted), labels)
        (slopes,) = torch.autograd.grad(loss, answers, materialize_grads=True, allow_unused=True)
        accumulator = TreeAccumulator(group.num_slices)
        for shard in shards:
            accumulator.add(shard.held.index, [self._pull(shard, targets, others, moved, slopes, kept)])
        (of_batch,) = tree_sum(accumulator, group)
        size = len(batch) // group.num_slices
        own = slice(group.owned.start * size, group.owned.stop * size)
        gradients = tuple((shard.held, shard.gradient.view_as(shard.held.vectors)) for shard in shards)
        return loss.detach(), pull_prepare(score, embeddings[own], of_batch[own], size), HeadStep(gradients, moved)

    def commit(self, done: HeadStep, step: int) -> None:
        """Update the own class vectors; only when the step commits."""
        for rows, gradient in done.gradients:
            self.table.update(rows, gradient, step)
        self.margin.commit(done.moved)

    def _scores(self, index: int, batch: Tensor, labels: Tensor, step: int) -> ShardScores:
        rows, places = self.table.shards.within(labels, index)
        held = self.table.rows(index, labels, step)
        return ShardScores(held, batch, rows, places, normalize=self.margin.normalize)

    def _others(self, shards: list[ShardScores], targets: Tensor, moved: Tensor | None, kept: Kept) -> Tensor:
        """log sum exp of the logits of all other classes, (B,), -inf where there is none."""
        group = self.table.group
        states = [self._sum(shard, targets, moved, kept) for shard in shards]
        largest = group.maximum(torch.stack([state[0] for state in states]).amax(0))
        accumulator = TreeAccumulator(group.num_slices)
        for shard, (own, total) in zip(shards, states, strict=True):
            accumulator.add(shard.held.index, [total * (own - largest).exp()])
        (total,) = tree_sum(accumulator, group)
        return largest + total.log()

    def _sum(self, shard: ShardScores, targets: Tensor, moved: Tensor | None, kept: Kept) -> tuple[Tensor, Tensor]:
        """The largest logit of a shard's other classes, and the sum of exponentials below it; (B,) each."""
        scaled = shard.batch * self.margin.scale
        largest = torch.full_like(targets, torch.finfo(targets.dtype).min)
        total = torch.zeros_like(largest)
        for chunk in shard.chunks():
            for rows in shard.tiles():
                logits, best = shard.tile(scaled[rows], chunk)
                kept.put((shard.held.index, chunk.rows.start, rows.start), logits, best)
                self.margin.others(logits, targets[rows], moved)
                logits[shard.own(rows, chunk)] = -torch.inf
                largest[rows], total[rows] = add_exponentials(largest[rows], total[rows], logits)
        return largest, total

    def _pull(
        self,
        shard: ShardScores,
        targets: Tensor,
        others: Tensor,
        moved: Tensor | None,
        slopes: Tensor,
        kept: Kept,
    ) -> Tensor:
        """dL/d(batch) (B, D) through a shard's classes; dL/d(its vectors) goes to `shard.gradient`."""
        scaled = shard.batch * self.margin.scale
        weight = (slopes[:, 1] * self.margin.scale).unsqueeze(1)  # (B, 1)
        forces = shard.batch * weight
        of_batch = torch.zeros_like(shard.batch)
        of_rows, places, of_vectors = shard.pull_targets(slopes[shard.rows, 0])
        for chunk in shard.chunks():
            gradient = shard.gradient[chunk.rows]
            for rows in shard.tiles():
                held = kept.take((shard.held.index, chunk.rows.start, rows.start))
                shares, best = held or shard.tile(scaled[rows], chunk)
                steepness = self.margin.others(shares, targets[rows], moved)
                shares.sub_(others[rows].unsqueeze(1)).exp_()
                shares[shard.own(rows, chunk)] = 0
                if steepness is not None:
                    shares *= steepness
                shares = shard.spread(shares, best)
                of_batch[rows].addmm_(shares, chunk.vectors)
                gradient.addmm_(shares.T, forces[rows], beta=float(rows.start > 0))
            here = (places >= chunk.rows.start) & (places < chunk.rows.stop)
            gradient.index_add_(0, places[here] - chunk.rows.start, of_vectors[here])
            shard.pull_ready(chunk)
        return of_batch.mul_(weight).index_add_(0, shard.rows, of_rows)
