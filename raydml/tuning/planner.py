"""A study's record in; the next piece of work out: which trial trains on, and to which step.

What was decided is on disk before anybody acts on it, and every decision follows from what is on disk: a study whose
driver was killed goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from raydml.errors import SpecError
from raydml.files import write_bytes
from raydml.spec import JobSpec, Pbt
from raydml.training.forks import copy_checkpoint
from raydml.tuning.algorithms import Known, algorithm_of, perturbed
from raydml.tuning.record import Configured, StudyRecord, TrialState, scores, trial_names
from raydml.tuning.rules import Create, Exploit, Promote, Standing, rule_of
from raydml.tuning.space import grid_size, readable
from raydml.tuning.trials import trial_spec, tuned

ATTEMPTS = 100  # draws of one configuration, of which no spec can be
ENDED = ("trained", "failed")
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # of C where it was built: 3 ms a trial instead of 17


@dataclass(frozen=True)
class Task:
    """A piece of work: train the trial of this folder up to a step."""

    trial: str
    folder: Path
    until: int


Copy = Callable[[Path, Path, int, str], None]
"""(parent's folder, child's folder, step, digest of the child's spec): make its checkpoint the child's."""


def copied_checkpoint(parent: Path, child: Path, step: int, digest: str) -> None:
    """What PBT copies: the whole training state."""
    copy_checkpoint(parent, child, step, digest)


class Planner:
    """Hands out pieces of work until there are none; at most `concurrency` at once."""

    def __init__(
        self, spec: JobSpec, record: StudyRecord, concurrency: int, copy: Copy = copied_checkpoint, over: bool = False
    ) -> None:
        self.spec, self.tune, self.record = spec, tuned(spec), record
        self.over = over  # nothing is handed out any more
        self.done = False
        self.concurrency, self._copy = concurrency, copy
        self._rule = rule_of(spec, self.tune)
        self._algorithm = algorithm_of(self.tune, spec.seed, spec.train.steps)
        self._configurations = record.configurations()
        names = (name for each in self._configurations for name in trial_names(each.number, self.tune.models))
        self._trials = {name: record.trial(name) for name in names}
        self._scored: dict[int, dict[int, float]] = {}  # by configuration, as long as no trial of it goes on
        self.running: set[str] = set()

    @property
    def total(self) -> int:
        """Configurations that there are to be."""
        if self.tune.algorithm.kind == "grid":
            return min(self.tune.trials, grid_size(self.tune.space))
        return self.tune.trials

    def next(self) -> Task | Literal["wait", "done"]:
        """The next piece of work, or why there is none."""
        if self.over:
            return "wait" if self.running else "done"
        if len(self.running) >= self.concurrency:
            return "wait"
        self._apply_pending()
        while True:
            task = self._waiting_task()
            if task is not None:
                self.running.add(task.trial)
                return task
            decision = self._rule.decide([self._standing(each) for each in self._configurations], self.total)
            if decision == "done" and not self.running:
                self.done = True
                return "done"
            if isinstance(decision, str):
                return "wait"
            self._carry_out(decision)

    def ended(self, trial: str, died: str | None = None) -> None:
        """A piece of work is over; `died` says why, where its process could not say so itself."""
        self.running.discard(trial)
        state = self.record.trial(trial)
        if died is None and not self.over and state.step <= self._trials[trial].step:
            died = f"it came no further than step {state.step}, and did not say why"  # nor would it the next time
        if died is not None and state.state not in ENDED:
            self.record.change_trial(trial, state="failed", reason=died)
            state = self.record.trial(trial)
        self._trials[trial] = state
        self._scored.pop(int(trial.partition("-")[0]), None)
        score = scores([state], self.tune.objective, running_best=self._running_best)
        told = {"score": score[state.step]} if state.step in score else {}
        reason = {"reason": state.reason} if state.reason else {}
        self.record.log(state.state, trial=trial, step=state.step, **told, **reason)

    @property
    def _running_best(self) -> bool:
        return self.spec.train.export == "best" and self.tune.algorithm.kind != "pbt"

    def _of(self, configured: Configured) -> list[TrialState]:
        return [self._trials[name] for name in trial_names(configured.number, self.tune.models)]

    def _waiting_task(self) -> Task | None:
        for configured in self._configurations:
            trials = self._of(configured)
            if any(trial.state == "failed" for trial in trials):
                continue
            for trial in trials:
                if trial.step < configured.target and trial.name not in self.running:
                    return Task(trial.name, self.record.trial_folder(trial.name), configured.target)
        return None

    def _standing(self, configured: Configured) -> Standing:
        trials = self._of(configured)
        failed = any(trial.state == "failed" for trial in trials)
        busy = any(trial.name in self.running for trial in trials)
        busy = busy or (not failed and any(trial.step < configured.target for trial in trials))
        if configured.number not in self._scored:
            found = scores(trials, self.tune.objective, running_best=self._running_best)
            self._scored[configured.number] = found
        return Standing(configured.number, configured.target, self._scored[configured.number], busy, failed)

    def _carry_out(self, decision: Create | Promote | Exploit) -> None:
        if isinstance(decision, Create):
            self._create(decision.until)
        elif isinstance(decision, Promote):
            self._raise_target(decision.number, decision.until)
            self.record.log("promoted", configuration=decision.number, until=decision.until)
        else:
            self._decide_generation(decision)

    def _raise_target(self, number: int, until: int) -> None:
        self._replace(replace(self._configurations[number], target=until))

    def _replace(self, configured: Configured) -> None:
        self.record.keep(configured)
        self._configurations[configured.number] = configured

    def _create(self, until: int) -> None:
        """Make the next configuration: its trials' folders first, for it is there once its own file is."""
        number = len(self._configurations)
        configured = Configured(number, {}, until)
        known = [self._known(each) for each in self._configurations]
        names = trial_names(number, self.tune.models)
        for attempt in range(ATTEMPTS):
            configured = replace(configured, values=self._algorithm.ask(number, attempt, known))
            try:
                specs = [self._trial_spec(configured, index) for index in range(self.tune.models)]
                break
            except SpecError as error:
                refused = error
        else:
            raise SpecError(f"{ATTEMPTS} configurations were drawn, and no spec can be like any of them: {refused}")
        for name, spec in zip(names, specs, strict=True):
            self._write_spec(name, spec)
            self.record.change_trial(name, state="waiting", seed=spec.seed)
            self._trials[name] = self.record.trial(name)
        self.record.keep(configured)
        self._configurations.append(configured)
        self.record.log("created", configuration=number, values=readable(self.tune.space, configured.values))

    def _known(self, configured: Configured) -> Known:
        standing, trials = self._standing(configured), self._of(configured)
        cost = sum(getattr(trial, self.tune.cost) for trial in trials) / len(trials) if self.tune.cost else None
        finished = self.spec.train.steps in standing.scores
        return Known(configured.values, standing.scores, cost, finished, not finished and not standing.busy)

    def _trial_spec(self, configured: Configured, index: int) -> JobSpec:
        name = trial_names(configured.number, self.tune.models)[index]
        return trial_spec(self.spec, configured.values, name, index)

    def _write_spec(self, name: str, spec: JobSpec) -> None:
        text = yaml.dump(spec.model_dump(mode="json"), Dumper=DUMPER, sort_keys=False)
        write_bytes(self.record.trial_folder(name) / "spec.yaml", text.encode())

    def _decide_generation(self, decision: Exploit) -> None:
        """Write down who copies whom, and what they change; then carry it out."""
        assert isinstance(self.tune.algorithm, Pbt)
        random = np.random.default_rng((self.spec.seed, decision.step))
        copies = []
        for child, parent in decision.copies:
            before, leader = self._configurations[child], self._configurations[parent]
            copies.append(
                {
                    "child": child,
                    "parent": parent,
                    "before": before.values,
                    "values": self._perturbed(leader, self.tune.algorithm, random),
                }
            )
        document = {"step": decision.step, "until": decision.until, "copies": copies, "done": False}
        self.record.keep_generation(decision.step, document)
        self._apply_pending()

    def _perturbed(self, leader: Configured, algorithm: Pbt, random: np.random.Generator) -> dict[str, int | float]:
        """The leader's values, changed; as they are where no spec can be like any change."""
        for _ in range(ATTEMPTS):
            values = perturbed(self.tune.space, leader.values, algorithm.resample, algorithm.factor, random)
            try:
                self._trial_spec(replace(leader, values=values), 0)
            except SpecError:
                continue
            return values
        return dict(leader.values)

    def _apply_pending(self) -> None:
        """Carry out a generation that was decided; may be repeated, for nobody trains before it is done."""
        step = self.record.pending_generation()
        if step is None:
            return
        generation = self.record.generation(step)
        for copy in generation["copies"]:
            configured = self._configurations[copy["child"]]
            self._replace(
                replace(
                    configured,
                    values=copy["values"],
                    lineage=[*(each for each in configured.lineage if each["step"] != step), {"step": step, **copy}],
                )
            )
            spec = self._trial_spec(self._configurations[copy["child"]], 0)
            (child,), (parent,) = trial_names(copy["child"], 1), trial_names(copy["parent"], 1)
            self._write_spec(child, spec)
            self._copy(self.record.trial_folder(parent), self.record.trial_folder(child), step, spec.digest())
            self.record.log(
                "copied",
                trial=child,
                parent=parent,
                step=step,
                before=readable(self.tune.space, copy["before"]),
                values=readable(self.tune.space, copy["values"]),
            )
        for configured in list(self._configurations):
            if not any(trial.state == "failed" for trial in self._of(configured)):
                self._raise_target(configured.number, generation["until"])
        self.record.keep_generation(step, generation | {"done": True})
