"""Everything that a step changes: model, objective, optimiser, loss scale, step; as named tensors and one SHA-256."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydml.data import SamplingPlan
from raydml.errors import CheckpointError, SpecError
from raydml.models import has_prefix
from raydml.parallel import Group, Sharded, Spread
from raydml.spec import AdamW, JobSpec, OptimizerSpec, ScheduleSpec, Sgd
from raydml.training.scaling import LossScaler

HEAD = "objective.head"  # the name of a class-parallel head's vectors, which are no parameter of the objective


@dataclass(frozen=True)
class Capture:
    """A state as it is saved. On the first worker: its `tensors`, whole, and its SHA-256; on every one its own `parts`.

    Of workers that hold the same parts, the first has them to save. `names` are those of all parts of all workers.
    """

    tensors: dict[str, Tensor]
    parts: dict[str, dict[str, Tensor]]
    names: list[str]
    sha256: str


class TrainingState:
    """The model and the objective under one optimiser, after `step` steps.

    All randomness is a function of (seed, step), so these two numbers are the whole state of the generators.
    `sharded` and `spread` are what no worker of the group holds whole, see `parallel.sharding`: then all workers call
    `capture` and `digest` together.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: nn.Module,
        spec: JobSpec,
        plan: SamplingPlan | None = None,
        *,
        group: Group | None = None,
        sharded: Mapping[str, Sharded] | None = None,
        spread: Spread | None = None,
    ) -> None:
        self.model, self.objective, self.spec, self.plan = model, objective, spec, plan
        self._group = group or Group(0, 1, spec.batch.virtual_workers)
        self._sharded, self._spread = dict(sharded or {}), spread
        self.step = 0
        self.scaler = LossScaler() if spec.parallel.precision == "fp16" else None
        named = [(f"model.{name}", value) for name, value in model.named_parameters() if value.requires_grad]
        named += [(f"objective.{name}", value) for name, value in objective.named_parameters()]
        self._names = {id(value): name for name, value in named}
        self.parameters = [value for _, value in named]
        beside = [HEAD] if getattr(objective, "head", None) is not None else []
        self.optimizer = build_optimizer(spec.train.optimizer, named, beside, complete=spread is None)
        self._factors = [group["factor"] for group in self.optimizer.param_groups] if self.optimizer else []

    def update(self, gradients: Sequence[Tensor], norm: Tensor | None = None) -> float:
        """One optimiser step with gradients in order of `parameters`; returns their L2 norm before clipping.

        A norm that is not finite changes nothing: the caller decides. `norm` is theirs, where it is known already.
        """
        if self.optimizer is None:
            self.step += 1
            return 0.0
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.get_total_norm(gradients) if norm is None else norm
        if bool(norm.isfinite()):
            if self.spec.train.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(self.parameters, self.spec.train.clip_norm, norm)
            factor = learning_rate_factor(self.spec.train.schedule, self.step, self.spec.train.steps)
            for group, own in zip(self.optimizer.param_groups, self._factors, strict=True):
                group["lr"] = self.spec.train.optimizer.lr * own * factor
            self.optimizer.step()
            self.step += 1
            if self.scaler is not None:
                self.scaler.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def skip(self, *, back_off: bool) -> None:
        """Pass over a step that overflowed float16: only the step number and the loss scale move."""
        assert self.scaler is not None
        self.scaler.after_skip(back_off=back_off)
        self.step += 1

    @property
    def apart(self) -> bool:
        """Whether no worker holds the whole state."""
        return bool(self._sharded) or self._spread is not None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that this worker holds, but for parts, by name, as it is (not copied)."""
        named = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        named |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        if self.scaler is not None:
            named |= {f"scaler.{name}": value for name, value in self.scaler.state_dict().items()}
        for parameter, slots in self.optimizer.state.items() if self.optimizer else ():
            prefix = f"optimizer.{self._names[id(parameter)]}"
            named |= {f"{prefix}.{slot}": value for slot, value in slots.items() if value is not None}
        if self.plan is not None and self.plan.neighbours is not None:
            named["sampling.neighbours"] = torch.from_numpy(self.plan.neighbours)
        return named

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The parts that this worker holds, by name: their tensors as they are (not copied)."""
        return {
            f"{name}-{index:05d}": thing.shard(index)
            for name, thing in sorted(self._sharded.items())
            for index in self._group.owned
        }

    def load(
        self, tensors: dict[str, Tensor], step: int, parts: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> None:
        """Take over a saved state: whole tensors, own parts. Raises CheckpointError where names or shapes misfit."""
        own = self.parts()
        _check_fit(own, parts or {})
        if self._spread is not None:
            tensors = self._spread.local(tensors)
        try:
            self.model.load_state_dict(_below(tensors, "model."))
            self.objective.load_state_dict(_below(tensors, "objective."))
            if self.scaler is not None:
                self.scaler.load_state_dict(_below(tensors, "scaler."))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint belongs to another model or loss: {error}") from error
        for parameter in self.parameters if self.optimizer else ():
            slots = _below(tensors, f"optimizer.{self._names[id(parameter)]}.")
            if slots and self.optimizer:
                self.optimizer.state[parameter] = {
                    slot: value.clone() if slot == "step" else value.to(parameter.device).clone()
                    for slot, value in slots.items()
                }
        if self.plan is not None and self.plan.neighbours is not None:
            known = tensors.get("sampling.neighbours", torch.empty(0)).numpy()
            if known.shape != self.plan.neighbours.shape:
                raise CheckpointError(
                    f"the checkpoint's table of neighbours is {known.shape}, not {self.plan.neighbours.shape}"
                )
            self.plan.learn(known)
        with torch.no_grad():
            for name, values in own.items():
                for key, value in values.items():
                    value.copy_((parts or {})[name][key])
        self.step = step

    def capture(self) -> Capture:
        """The state as it is saved, not copied; where it is `apart`, all workers call this together."""
        tensors, parts = self.tensors(), self.parts()
        if self._spread is not None:
            tensors = self._whole(self._spread, tensors)
        digests = {name: _sha256(values) for name, values in parts.items()}
        if self._sharded:
            digests = {name: digest for told in self._group.objects(digests) for name, digest in told.items()}
        sha = self._sha256(tensors, digests) if self._group.rank == 0 else ""
        return Capture(tensors, parts if self._group.speaks else {}, sorted(digests), sha)

    def digest(self) -> str:
        """SHA-256 of names, types, shapes and bits of all tensors, of the parts' own, of the seed and of the step."""
        if not self.apart:
            return self._sha256(self.tensors(), {})
        sha256: str = self._group.objects(self.capture().sha256)[0]
        return sha256

    def _whole(self, spread: Spread, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the first worker all tensors, whole; on the others those that every worker holds alike."""
        cut = {name: value for name, value in tensors.items() if name.startswith(("model.", "optimizer.model."))}
        alike = {name: value for name, value in tensors.items() if name not in cut}
        return alike | spread.whole(cut)

    def _sha256(self, tensors: Mapping[str, Tensor], parts: Mapping[str, str]) -> str:
        digests = "".join(f"{name} {digest}" for name, digest in sorted(parts.items()))
        return _sha256(tensors, f"seed {self.spec.seed} step {self.step}{digests}")


def _sha256(tensors: Mapping[str, Tensor], beside: str = "") -> str:
    """Of names, types, shapes and bits, in order of name."""
    sha = hashlib.sha256(beside.encode())
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _check_fit(own: Mapping[str, Mapping[str, Tensor]], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """CheckpointError unless every own part was saved with the same names, types and shapes."""
    for name, values in own.items():
        want = {key: (value.dtype, tuple(value.shape)) for key, value in values.items()}
        found = {key: (value.dtype, tuple(value.shape)) for key, value in saved.get(name, {}).items()}
        if want != found:
            raise CheckpointError(f"the checkpoint's part {name} holds {found}, and this job's holds {want}")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def build_optimizer(
    spec: OptimizerSpec,
    named: Sequence[tuple[str, nn.Parameter]],
    beside: Sequence[str] = (),
    *,
    complete: bool = True,
) -> torch.optim.Optimizer | None:
    """The optimiser of the spec with one group of parameters per learning-rate factor; None without parameters.

    `beside` names what learns by the spec too, but elsewhere. complete: these are all parameters, so that each prefix
    in `parts` must name one of them.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(_factor(name, spec), []).append(parameter)
    if not groups and not beside:
        return None
    names = [_part(name) for name in (*(name for name, _ in named), *beside)]
    unused = [prefix for prefix in spec.parts if not any(has_prefix(name, prefix) for name in names)]
    if complete and unused:
        raise SpecError(f"train.optimizer.parts: {unused} name no trained parameter; there are {names[:6]}")
    if not groups:
        return None
    options = [{"params": members, "factor": factor} for factor, members in groups.items()]
    if isinstance(spec, Sgd):
        return torch.optim.SGD(options, spec.lr, spec.momentum, nesterov=spec.nesterov, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if isinstance(spec, AdamW) else torch.optim.Adam
    return kind(options, spec.lr, spec.betas, spec.eps, spec.weight_decay)


def _part(name: str) -> str:
    """Names as in `parts`: those of the model as they are, those of the objective below `loss`."""
    return name.removeprefix("model.") if name.startswith("model.") else name.replace("objective", "loss", 1)


def _factor(name: str, spec: OptimizerSpec) -> float:
    fitting = [prefix for prefix in spec.parts if has_prefix(_part(name), prefix)]
    return spec.parts[max(fitting, key=len)] if fitting else 1.0


def head_rate(spec: JobSpec) -> Callable[[int], float]:
    """The learning rate of a class-parallel head, by step."""
    lr = spec.train.optimizer.lr * _factor(HEAD, spec.train.optimizer)
    return lambda step: lr * learning_rate_factor(spec.train.schedule, step, spec.train.steps)


def learning_rate_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    """Factor of the rate at a step: linear warm-up, then constant or half a cosine (Loshchilov and Hutter 2017)."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    if spec.kind == "constant":
        return 1.0
    progress = (step - spec.warmup_steps) / max(1, steps - 1 - spec.warmup_steps)
    return spec.final_factor + (1 - spec.final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
