"""What every agent shares: modules, optimisers, random streams, state. No loss lives here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVarTuple, cast

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.memory import keep_freed_memory
from wmrl_ray.core.nets import Normalizer

Metrics = dict[str, Tensor]
ObsDim = int | tuple[int, int, int]  # O of vectors, (C, h, w) of images
Returned = TypeVarTuple("Returned")

# Why: a LayerNorm reads five tensors; beyond four (torch's default) its result goes through memory to the activation. And
# without the second, a product and a sum are two instructions where processors have one.
COMPILE_OPTIONS = {"realize_reads_threshold": 100, "cpp.enable_floating_point_contract_flag": "fast"}


# What a number of these names can be, in every agent's Config
POSITIVE = {"lr", "actor_lr", "encoder_lr_scale", "hidden_dim", "grad_clip", "loss_clip", "largest_weight", "reward_scale"}
NOT_NEGATIVE = {"policy_std", "policy_noise", "policy_noise_clip", "noise_clip", "weight_decay", "beta", "shift"}
FRACTIONS = {"tau", "rho", "scale_rate"}


@dataclass(frozen=True)
class AgentConfig:
    """What every agent's Config has besides its own hyper-parameters."""

    precision: Literal["float32", "bfloat16"] = "float32"  # of activations; weights and optimisers stay float32
    compile: Literal["off", "default", "cuda_graphs"] = "off"  # torch.compile; cuda_graphs: reduce-overhead, not of whole steps

    needs_return_to_go: ClassVar[bool] = False  # `update` reads `Batch.time` and `Batch.return_to_go`

    def __post_init__(self) -> None:
        values = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        for name, value in values.items():
            check(name not in POSITIVE or value > 0, f"{name} = {value}; it must be positive")
            not_negative = name in NOT_NEGATIVE or name.endswith("_coef")
            check(not not_negative or value >= 0, f"{name} = {value}; it must not be negative")
            check(name not in FRACTIONS or 0 < value <= 1, f"{name} = {value}; it must be in (0, 1]")
        low, high = values.get("log_std_min", -1), values.get("log_std_max", 0)
        check(low < high, f"log_std_min = {low}, log_std_max = {high}; the first must be smaller")

    @property
    def window(self) -> int:
        """H, the number of actions in the windows that `update` takes."""
        return 1


class Agent:
    """Acts and learns. Subclasses fill `model`, `target`, `optimizers` and define `update` and `act`.

    model: all that acting needs. target: what only learning needs, or None. optimizers: by name.
    sync_grads: called with the parameters of an optimiser between backward and clipping; data-parallel learners set it.
    """

    Config: ClassVar[type[AgentConfig]]
    acts: ClassVar[bool] = True  # its actions are the environment's; those of a Manager are not
    learns_online: ClassVar[bool] = False  # takes its own steps in the environment while it learns
    needs_demonstrations: ClassVar[bool] = False  # its batches hold rows of an expert's episodes, marked by `is_expert`
    takes_images: ClassVar[bool] = False  # obs may be uint8 [..., C, h, w], and obs_dim (C, h, w)
    compiled_functions: ClassVar[tuple[str, ...]] = ()  # methods of tensors alone, which `config.compile` compiles

    obs_dim: Any  # O, or (C, h, w) where it takes images
    model: nn.Module
    target: nn.Module | None
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(
        self,
        config: Any,
        obs_dim: ObsDim,
        action_dim: int,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        check(
            isinstance(obs_dim, int) or self.takes_images,
            f"observations of shape {obs_dim}: {type(self).__name__} takes vectors only",
        )
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        self.device = torch.device(device)
        keep_freed_memory()
        self._compiled_steps = config.compile != "off" and self.compiles_steps()
        check(
            config.compile != "cuda_graphs" or not self._compiled_steps,
            f"compile = 'cuda_graphs' has no effect on {type(self).__name__}: its whole steps change parameters and optimiser "
            "state, and torch takes no CUDA graph of what changes its inputs; use 'default'",
        )
        check(
            config.compile != "cuda_graphs" or self.device.type == "cuda",
            f"compile = 'cuda_graphs' needs a CUDA device, got {str(self.device)!r}; use 'default' or 'off'",
        )
        self.num_updates = 0
        self._sync_grads: Callable[[Sequence[nn.Parameter]], None] | None = None
        # Two streams, so that acting (evaluation, another process) never changes what is learned.
        self.update_generator = torch.Generator(self.device).manual_seed(2 * seed)
        self.act_generator = torch.Generator(self.device).manual_seed(2 * seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model, self.target = self.build()
        self.model.to(self.device)
        if self.target is not None:
            self.target.to(self.device).requires_grad_(False)
        self.optimizers = self.build_optimizers()
        if self._compiled_steps:
            _allow_autograd_in_graphs()
            for optimizer in self.optimizers.values():
                adam_state(optimizer)
        if config.compile != "off":
            graphs = config.compile == "cuda_graphs"
            how: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {"options": COMPILE_OPTIONS}
            for name in self.compiled_functions:
                setattr(self, name, torch.compile(getattr(self, name), **how))

    @classmethod
    def compiles_steps(cls) -> bool:
        """Compiled, a whole step is one graph: `sync_grads` has no place in it."""
        return any(name.endswith("step") for name in cls.compiled_functions)

    @property
    def sync_grads(self) -> Callable[[Sequence[nn.Parameter]], None] | None:
        return self._sync_grads

    @sync_grads.setter
    def sync_grads(self, average: Callable[[Sequence[nn.Parameter]], None] | None) -> None:
        # Why here: an error raised inside a compiled step only makes torch run that step uncompiled
        check(
            average is None or not self._compiled_steps,
            f"compile = {self.config.compile!r} makes one graph of a whole step of {type(self).__name__}, in which sync_grads "
            "cannot average gradients; use compile = 'off', or one learner",
        )
        self._sync_grads = average

    # -- what a subclass defines ------------------------------------------------------------------------------------------

    def build(self) -> tuple[nn.Module, nn.Module | None]:
        """(model, target), initialised from the global generator, which is seeded around this call."""
        raise NotImplementedError

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        raise NotImplementedError

    def update(self, batch: Batch) -> Metrics:
        """One gradient step on a batch; returns detached scalars, still tensors. Raises nothing on non-finite values:
        the loop converts metrics once per call and raises there.
        """
        raise NotImplementedError

    def act(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        *,
        explore: bool = False,
        reward: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Metrics]:
        """Actions for W environments.

        Args:
            obs: [W, O], or images [W, C, h, w] u8. is_first: [W] bool, the environment has just been reset.
            plan_state: what the previous call returned (None at first); a planner's warm start, or a sequence model's history.
            reward: [W], what the previous action earned; not read where is_first. None: 0.

        Returns:
            action: [W, A] in [-1, 1]; the new plan_state; scalars such as `plan/nan_frac`.
        """
        raise NotImplementedError

    # -- shared ---------------------------------------------------------------------------------------------------------

    def set_obs_stats(self, mean: Tensor, std: Tensor) -> None:
        """Gives the normalisers the dataset's statistics [O]; kept with the weights. Without normalisers, does nothing."""
        for module in [*self.model.modules(), *(self.target.modules() if self.target is not None else ())]:
            if isinstance(module, Normalizer):
                module.mean.copy_(mean)
                module.std.copy_(std + 1e-3)  # CORL's; Why: a dimension that never changes would divide by zero

    def optimize(self, name: str, loss: Tensor, max_norm: float | None) -> Tensor:
        """Backward, average over learners, clip, step. Returns the gradient norm before clipping.

        In a compiled function the gradient and Adam's step become part of its graph.
        """
        if torch.compiler.is_compiling():
            return self._compiled_step(name, loss, max_norm)
        parameters = self.backward(name, loss)
        if max_norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        self.optimizers[name].step()
        return norm

    def descend(self, name: str, loss: Tensor) -> None:
        """`optimize` for small networks that nothing clips: without the gradient's norm, which takes time."""
        if torch.compiler.is_compiling():
            self._compiled_step(name, loss, None)
        else:
            self.backward(name, loss)
            self.optimizers[name].step()

    def _compiled_step(self, name: str, loss: Tensor, max_norm: float | None) -> Tensor:
        optimizer = self.optimizers[name]
        grads = torch.autograd.grad(loss, [p for group in optimizer.param_groups for p in group["params"]])
        norm = nn.utils.get_total_norm(grads)
        if max_norm is not None:
            grads = [grad * (max_norm / (norm + 1e-6)).clamp(max=1.0) for grad in grads]
        adam_step(optimizer, grads)
        return norm

    def backward(self, name: str, loss: Tensor) -> list[nn.Parameter]:
        """Gives the parameters of optimiser `name` the loss's gradient, averaged over learners, and returns them."""
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # Why: a loss reaches this optimiser's parameters and no others
        if self.sync_grads is not None:
            self.sync_grads(parameters)
        return parameters

    def kept(self, *returned: *Returned) -> tuple[*Returned]:
        """What a compiled function returned, to be read after another one has run: under "cuda_graphs" copies of it.

        returned: tensors, metrics and batches; but no loss, whose gradient does not read its value.

        Why: a CUDA graph writes what it returns into memory of its own, which the next graph may write into.
        """
        if self.config.compile != "cuda_graphs":
            return returned
        return cast(tuple[*Returned], tuple(_copied(value) for value in returned))

    def autocast(self) -> contextlib.AbstractContextManager:
        """The activations' precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def get_state(self) -> dict[str, Any]:
        """All that exact continuation needs: a tree of tensors, numbers and strings."""
        return {
            "model": self.model.state_dict(),
            "target": {} if self.target is None else self.target.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "generators": {"update": self.update_generator.get_state(), "act": self.act_generator.get_state()},
            "num_updates": self.num_updates,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.model.load_state_dict(state["model"])
        if self.target is not None:
            self.target.load_state_dict(state["target"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            if self._compiled_steps:
                adam_state(optimizer)  # Why: a state saved before the optimiser's first step may have none
        self.set_generators(state["generators"])
        self.num_updates = int(state["num_updates"])

    def set_generators(self, states: dict[str, Tensor]) -> None:
        """Continues the random streams `update` and `act`, where the state is of this kind of device.

        A GPU's generator cannot continue a CPU's stream, nor the reverse: the streams then start from the agent's seed.
        """
        for generator, saved in ((self.update_generator, states["update"]), (self.act_generator, states["act"])):
            saved = torch.as_tensor(saved).cpu()
            if saved.numel() == generator.get_state().numel():
                generator.set_state(saved)


def _copied(returned: object) -> Tensor | Batch | Metrics:
    match returned:
        case Tensor():
            return returned.clone()
        case Batch():
            return returned.each(torch.clone)
        case dict():
            return {name: value.clone() for name, value in returned.items()}
    raise TypeError(f"no copy of {type(returned).__name__}")


def _allow_autograd_in_graphs() -> None:
    """Lets torch.compile trace `torch.autograd.grad`: a compiled step contains its gradient."""
    check(
        hasattr(torch._dynamo.config, "trace_autograd_ops"),
        f"torch {torch.__version__} cannot compile whole steps (it has no trace_autograd_ops); "
        "use compile = 'off', or the torch of constraints.txt",
    )
    torch._dynamo.config.trace_autograd_ops = True


def adam_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter the state that Adam's first step would.

    Raises:
        ConfigError: an optimiser whose step is not `adam_step`'s.
    """
    for group in optimizer.param_groups:
        options = {key: group[key] for key in ("weight_decay", "amsgrad", "maximize") if group.get(key)}
        check(
            isinstance(optimizer, torch.optim.Adam) and not options,
            f"a compiled step is plain Adam's, not that of {type(optimizer).__name__} with {options}; use compile = 'off'",
        )
        for p in group["params"]:
            if not optimizer.state[p]:
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                optimizer.state[p] = {"step": torch.zeros((), device=p.device), **zeros}


@torch.no_grad()
def adam_step(optimizer: torch.optim.Optimizer, grads: Sequence[Tensor]) -> None:
    """torch.optim.Adam's step (no decay, no amsgrad) in operations that torch.compile fuses; `adam_state` first."""
    remaining = iter(grads)
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            state, grad = optimizer.state[p], next(remaining)
            step = state["step"].add_(1)
            state["exp_avg"].lerp_(grad, 1 - beta1)
            state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
            scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
            p.sub_(group["lr"] / (1 - beta1**step) * state["exp_avg"] / scale)


def demonstration_rows(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """The indices, on `device`, of a batch's expert rows and of its behaviour rows.

    Give it the batch as the replay made it. Why: the host knows the rows there; of a batch on a GPU it would have to wait for
    them, twice in every update.

    Raises:
        ConfigError: there are no expert rows.
    """
    check(
        batch.is_expert is not None,
        "the batch does not say which rows are an expert's (is_expert); give the run demonstrations",
    )
    assert batch.is_expert is not None
    expert, behaviour = batch.is_expert.nonzero().squeeze(-1), (~batch.is_expert).nonzero().squeeze(-1)
    check(len(expert) > 0, f"none of the batch's {len(batch.is_expert)} rows is an expert's; give the run demonstrations")
    return expert.to(device, non_blocking=True), behaviour.to(device, non_blocking=True)


@torch.no_grad()
def soft_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Parameters inside take no gradient: a loss may pass through these modules without reaching them."""
    parameters = [p for module in modules for p in module.parameters()]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
