"""AdamW with moments in float32, or in eight bits by bitsandbytes; and what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jdmctl.errors import JdmError, MissingWeightsError

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of torch's AdamW


@dataclass(frozen=True)
class AdamW:
    """betas = (0, 0.95): what Diff-Instruct and its successors train one-step students with.

    With 8 bits, each 256 numbers of a moment share a float32 scale (block-wise dynamic quantisation,
    https://arxiv.org/abs/2110.02861); weights of fewer than 4096 numbers keep theirs in float32.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.0, 0.95)
    weight_decay: float = 0.01
    bits: int = 32  # or 8

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> Any:
        """A torch optimiser of them. Raises JdmError if it needs a package that is not there."""
        settings: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "weight_decay": self.weight_decay}
        if self.bits == 8:
            return eight_bit()(parameters, **settings)
        return torch.optim.AdamW(parameters, fused=True, **settings)


def eight_bit() -> Any:
    """The class of AdamW in eight bits. Raises JdmError if bitsandbytes is not there."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as problem:
        raise JdmError(
            "memory.optimizer: adamw_8bit needs bitsandbytes, which is not installed", hint="pip install 'jdmctl[8bit]'"
        ) from problem

    class InMemoryOrder(AdamW8bit):
        """bitsandbytes would make weights contiguous for good; here it sees them flat, and they stay as they lie."""

        def update_step(self, group: Any, p: nn.Parameter, gindex: int, pindex: int) -> None:
            state, weight = self.state[p], p.data
            gradient: Any = p.grad
            kept = {key: state[key] for key in ("state1", "state2")}
            laid_out = torch.empty_like(weight).copy_(gradient) if gradient.stride() != weight.stride() else gradient
            p.grad, p.data = None, _flat(weight)
            p.grad = _flat(laid_out)
            state.update({key: _flat(value) for key, value in kept.items()})
            super().update_step(group, p, gindex, pindex)
            p.grad, p.data = None, weight
            p.grad = gradient
            state.update(kept)

    return InMemoryOrder


def moments(optimizer: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an optimiser knows of a parameter; not bitsandbytes' tables, which are the same for all."""
    state = optimizer.state.get(parameter, {})
    return {key: torch.as_tensor(value) for key, value in state.items() if not key.startswith("qmap")}


def put_moment(optimizer: Any, index: int, key: str, value: Tensor) -> None:
    """Put one of `moments` back, of the optimiser's parameter number `index`.

    Raises MissingWeightsError if it is of another kind of optimiser.
    """
    group = optimizer.param_groups[0]
    parameter = group["params"][index]
    state = optimizer.state[parameter]
    is_eight_bit = not isinstance(optimizer, torch.optim.AdamW)
    if is_eight_bit and not state:
        optimizer.init_state(group, parameter, 0, index)
    if key not in (state if is_eight_bit else _MOMENTS):
        raise MissingWeightsError(
            "the checkpoint holds moments of another optimizer",
            hint="resume with the memory.optimizer that the run was started with",
        )
    if is_eight_bit:
        state[key] = int(value) if key == "step" else state[key].copy_(value)
    else:  # laid out as the parameter; the step, a number, lies where the parameter does
        like = parameter.new_empty(()) if key == "step" else parameter
        state[key] = torch.empty_like(like, dtype=value.dtype).copy_(value)


def _flat(tensor: Tensor) -> Tensor:
    """As it lies in memory, where weights have no gaps."""
    return tensor.as_strided((tensor.numel(),), (1,))
