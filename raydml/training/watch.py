"""A step's tensors in, its health out: numbers, and alarms where they break a rule; training is not touched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import TrainingDiverged
from raydml.evaluation.health import compared_rows, effective_rank, nearest_proxies, pair_health, silent_share, spread
from raydml.losses import Objective, Verdict
from raydml.models import EmbeddingModel
from raydml.spec import WatchSpec
from raydml.training.rules import RULES

# Weights of a loss that stand for classes, by name: whether a proxy is a column.
PROXIES = {"proxies": False, "W": True, "fc": True, "weight": True}


@dataclass(frozen=True)
class Alarm:
    """A rule that has just been broken for as long as its patience."""

    rule: str
    action: str
    message: str


@dataclass(frozen=True)
class Health:
    """What was measured after a step, by name; both are empty where the step is not watched."""

    values: dict[str, float] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()


class Monitor:
    """Looks at every `watch.every`-th step, and counts how long each rule is broken; a resumed run counts anew."""

    def __init__(self, spec: WatchSpec, num_classes: int) -> None:
        self.spec = spec
        self._num_classes = num_classes
        self._batches: deque[tuple[Tensor, Tensor]] = deque(maxlen=spec.rules.dead_proxies.batches)
        self._broken_for = dict.fromkeys(RULES, 0)

    def due(self, step: int) -> bool:
        """Whether the step with this number, counted from 1, is looked at."""
        return self.spec.every > 0 and step % self.spec.every == 0

    def memory(self) -> tuple[list[tuple[Tensor, Tensor]], dict[str, int]]:
        """What it has seen that later steps are judged by, for a worker that joins."""
        return list(self._batches), dict(self._broken_for)

    def remember(self, memory: tuple[list[tuple[Tensor, Tensor]], dict[str, int]]) -> None:
        """Take over what another worker's monitor has seen."""
        batches, self._broken_for = memory
        self._batches = deque(batches, self._batches.maxlen)

    @torch.no_grad()
    def look(
        self, embeddings: Tensor, labels: Tensor, verdict: Verdict, norms: Tensor | None, objective: Objective
    ) -> Health:
        """Health of a step: its global batch (B, D), (B,), what its loss said, and the rows' norms (B,) before
        normalisation (None: the embeddings are as they came)."""
        rows = compared_rows(labels)
        lengths = embeddings.double().norm(dim=1) if norms is None else norms
        values = {
            "effective_rank": effective_rank(embeddings),
            "spread": spread(embeddings),
            "norm_mean": float(lengths.mean()),
            "norm_min": float(lengths.min()),
            "norm_max": float(lengths.max()),
            "silent_rows": silent_share(verdict.cotangents),
            **pair_health(embeddings[rows], labels[rows]),
        }
        proxies = proxies_of(objective)
        if proxies is not None:
            values["dead_proxies"] = self._dead(nearest_proxies(embeddings, proxies), labels, len(proxies))
        return Health(values, self._judge(values, min(len(embeddings) - 1, embeddings.shape[1])))

    def _dead(self, nearest: Tensor, labels: Tensor, num_proxies: int) -> float:
        """Of the classes with rows in the last watched batches, the share of which no proxy is nearest to any row.

        A class that had no row is not counted: its proxies had no chance.
        """
        found = nearest // (num_proxies // self._num_classes)  # a class's proxies stand side by side
        self._batches.append((self._mask(labels), self._mask(found)))
        seen, alive = (torch.stack(masks).any(0) for masks in zip(*self._batches, strict=True))  # (num_classes,)
        return float((seen & ~alive).sum() / seen.sum())

    def _mask(self, classes: Tensor) -> Tensor:
        mask = torch.zeros(self._num_classes, dtype=torch.bool, device=classes.device)
        mask[classes] = True
        return mask

    def _judge(self, values: Mapping[str, float], most_rank: int) -> tuple[Alarm, ...]:
        alarms = []
        for name, check in RULES.items():
            rule = getattr(self.spec.rules, name)
            message = None if rule.action == "off" else check(rule, values, most_rank)
            self._broken_for[name] = 0 if message is None else self._broken_for[name] + 1
            if message is not None and self._broken_for[name] == rule.patience:
                alarms.append(Alarm(name, rule.action, message))
        return tuple(alarms)


@contextmanager
def head_norms(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """A list that gets the L2 norms (rows,) of each forward pass before normalisation, one tensor a pass.

    It stays empty where they are not wanted, or where the model does not normalise.
    """
    norms: list[Tensor] = []
    if not (wanted and isinstance(model, EmbeddingModel) and model.normalize):
        yield norms
        return

    def take(head: nn.Module, inputs: Any, output: Tensor) -> None:
        norms.append(output.detach().double().norm(dim=1))

    handle = model.head.register_forward_hook(take)
    try:
        yield norms
    finally:
        handle.remove()


def proxies_of(objective: Objective) -> Tensor | None:
    """The loss's proxies or class weights, (num_classes x proxies of a class, D); None for a loss without."""
    for name, value in objective.named_parameters():
        columns = PROXIES.get(name.rpartition(".")[2])
        if columns is not None:
            return value.detach().T if columns else value.detach()
    return None


def stop_where_told(health: Health, step: int) -> None:
    """Raises TrainingDiverged, with the numbers and the way out, where a broken rule says stop."""
    told = [alarm for alarm in health.alarms if alarm.action == "stop"]
    if told:
        raise TrainingDiverged(
            f"step {step}: {'; '.join(alarm.message for alarm in told)}. The last checkpoint is kept; "
            f"`--set watch.rules.{told[0].rule}=warn` goes on from it.",
            step=step,
            rules=[alarm.rule for alarm in told],
            values=health.values,
        )
