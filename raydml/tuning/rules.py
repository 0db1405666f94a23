"""How far each configuration has come and how good it was there in; who trains on, to which step, out.

Every rule is a pure function of the standings: a study that is taken up again decides as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from raydml.spec import Asha, Hyperband, JobSpec, Pbt, TuneSpec


@dataclass(frozen=True)
class Standing:
    """One configuration: the step it may train to, its score at each step that all of its trials have reached.

    `busy` until all of its trials are at the target; a failed one has no score and is passed over.
    """

    number: int
    target: int
    scores: Mapping[int, float]
    busy: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Create:
    """Begin the next configuration; it may train to this step."""

    until: int


@dataclass(frozen=True)
class Promote:
    """A configuration may train on, to this step."""

    number: int
    until: int


@dataclass(frozen=True)
class Exploit:
    """All may train on from `step` to `until`; of them `copies` of (who, whose checkpoint)."""

    step: int
    until: int
    copies: tuple[tuple[int, int], ...]


Decision = Create | Promote | Exploit | Literal["wait", "done"]


class Rule(Protocol):
    """Decides who trains next; `total` configurations are to be made."""

    def decide(self, standings: Sequence[Standing], total: int) -> Decision:
        """One decision; after it was carried out, the next may be asked for."""


@dataclass(frozen=True)
class AllToTheEnd:
    """Nobody is stopped."""

    steps: int

    def decide(self, standings: Sequence[Standing], total: int) -> Decision:
        """Create until there are enough."""
        if len(standings) < total:
            return Create(self.steps)
        return "wait" if any(each.busy for each in standings) else "done"


@dataclass(frozen=True)
class SuccessiveHalving:
    """ASHA (Li et al., MLSys 2020): one in `factor` of those that reached a rung goes on to the next one."""

    rungs: tuple[int, ...]
    factor: int

    def decide(self, standings: Sequence[Standing], total: int) -> Decision:
        """Promote before creating; when all is still, the best of the highest rung goes on, so that one finishes."""
        for rung, following in reversed(list(zip(self.rungs, self.rungs[1:], strict=False))):
            arrived = [each for each in standings if rung in each.scores or (each.failed and each.target >= rung)]
            for each in best(arrived, rung)[: len(arrived) // self.factor]:
                if each.target == rung and not each.busy:
                    return Promote(each.number, following)
        if len(standings) < total:
            return Create(self.rungs[0])
        if any(each.busy for each in standings):
            return "wait"
        return _last_one(standings, self.rungs)


@dataclass(frozen=True)
class Brackets:
    """Hyperband (Li et al., JMLR 2018): bracket b halves its configurations from rung b on, a whole rung at a time."""

    rungs: tuple[int, ...]
    factor: int

    def sizes(self, total: int) -> list[int]:
        """Configurations of each bracket: in proportion to Hyperband's own, `total` together."""
        last = len(self.rungs) - 1
        weights = [self.factor ** (last - b) * (last + 1) / (last - b + 1) for b in range(last + 1)]
        exact = [total * weight / sum(weights) for weight in weights]
        found = [int(share) for share in exact]
        for b in sorted(range(last + 1), key=lambda b: found[b] - exact[b])[: total - sum(found)]:
            found[b] += 1
        return found

    def decide(self, standings: Sequence[Standing], total: int) -> Decision:
        """Lower rungs first, so that a rung is complete before it is judged."""
        start = 0
        for b, size in enumerate(self.sizes(total)):
            members = standings[start : start + size]
            start += size
            if len(members) < size:
                return Create(self.rungs[b])
            promoted = self._promoted(members, b)
            if promoted is not None:
                return promoted
        return "wait" if any(each.busy for each in standings) else _last_one(standings, self.rungs)

    def _promoted(self, members: Sequence[Standing], b: int) -> Decision | None:
        for rung, following in list(zip(self.rungs, self.rungs[1:], strict=False))[b:]:
            arrived = [each for each in members if each.target >= rung]
            if not all(each.failed or rung in each.scores for each in arrived):
                return None
            for each in best(arrived, rung)[: max(1, len(arrived) // self.factor)]:
                if each.target == rung:
                    return Promote(each.number, following)
        return None


@dataclass(frozen=True)
class Generations:
    """Population based training, a generation at a time: the worst go on from the checkpoints of the best."""

    steps: int
    every: int
    share: float

    def decide(self, standings: Sequence[Standing], total: int) -> Decision:
        """The n-th worst copies the n-th best; who failed is neither."""
        if len(standings) < total:
            return Create(min(self.every, self.steps))
        if any(each.busy for each in standings):
            return "wait"
        alive = [each for each in standings if not each.failed]
        if not alive or alive[0].target == self.steps:
            return "done"
        step = alive[0].target
        ranked = best(alive, step)
        number = min(max(1, int(self.share * len(ranked))), len(ranked) // 2)
        pairs = zip(reversed(ranked), ranked[:number], strict=False)
        copies = tuple((worst.number, leader.number) for worst, leader in pairs)
        return Exploit(step, min(step + self.every, self.steps), copies)


def best(standings: Sequence[Standing], step: int) -> list[Standing]:
    """Those that have a score at the step, the best first; of equal ones, the one that was made first."""
    scored = [each for each in standings if step in each.scores and not each.failed]
    return sorted(scored, key=lambda each: (-each.scores[step], each.number))


def rule_of(spec: JobSpec, tune: TuneSpec) -> Rule:
    """The rule of a study."""
    steps, every = spec.train.steps, spec.train.evaluate_every
    if isinstance(tune.algorithm, Pbt):
        return Generations(steps, tune.algorithm.every or every, tune.algorithm.share)
    if isinstance(tune.scheduler, Asha):
        ladder = rungs(tune.scheduler.grace or every, tune.scheduler.factor, every, steps)
        return SuccessiveHalving(ladder, tune.scheduler.factor)
    if isinstance(tune.scheduler, Hyperband):
        ladder = rungs(tune.scheduler.grace or every, tune.scheduler.factor, every, steps)
        return Brackets(ladder, tune.scheduler.factor)
    return AllToTheEnd(steps)


def rungs(grace: int, factor: int, every: int, steps: int) -> tuple[int, ...]:
    """Steps at which trials are compared: the first evaluation from `grace` on, times powers of `factor`, the last."""
    rung, found = -(-grace // every) * every, []
    while rung < steps:
        found.append(rung)
        rung *= factor
    return (*found, steps)


def _last_one(standings: Sequence[Standing], ladder: tuple[int, ...]) -> Decision:
    """Where nobody has come to the top, the best of the highest rung goes on."""
    alive = [each for each in standings if not each.failed]
    highest = max((each.target for each in alive), default=ladder[-1])
    if highest == ladder[-1]:
        return "done"
    leader = best([each for each in alive if each.target == highest], highest)[0]
    return Promote(leader.number, ladder[ladder.index(highest) + 1])
