"""AdamW on the fused kernel of torch, with a state of plain named tensors.

The same kernel and numbers as torch.optim.AdamW(fused=True), kept by hand because that class imports torch's compiler at
its first step, ten seconds of every fresh process.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)  # as in everything that is published here


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The same numbers as they lie in memory: the kernel copies a transposed matrix there and back."""
    return tensor.T if tensor.ndim == 2 and not tensor.is_contiguous() else tensor


class AdamW:
    """Decoupled weight decay Adam over named parameters.

    Args:
        named:        (name, parameter) pairs, e.g. model.named_parameters().
        weight_decay: of every parameter but those in `groups`.
        groups:       name -> multiple of the learning rate; these parameters get no weight decay, unless groups_decay.
    Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: dict[str, float] | None = None,
        groups_decay: bool = False,
    ):
        self.named = dict(named)
        self.eps = eps
        special = groups or {}
        usual = [name for name in self.named if name not in special]
        apart = [([n], m, groups_decay * weight_decay) for n, m in special.items() if n in self.named]
        self.groups = [(usual, 1.0, weight_decay), *apart]
        self.state: dict[str, Tensor] = {}
        for name, p in self.named.items():
            self.state[f"mean.{name}"] = torch.zeros_like(p, requires_grad=False)
            self.state[f"square.{name}"] = torch.zeros_like(p, requires_grad=False)
            self.state[f"step.{name}"] = torch.zeros((), dtype=torch.float32, device=p.device)

    def zero_grad(self) -> None:
        for p in self.named.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of every parameter that has a gradient."""
        for names, multiple, decay in self.groups:
            names = [name for name in names if self.named[name].grad is not None]
            if not names:
                continue
            steps = [self.state[f"step.{name}"] for name in names]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [_in_memory_order(self.named[name]) for name in names],
                [_in_memory_order(self.named[name].grad) for name in names],
                [_in_memory_order(self.state[f"mean.{name}"]) for name in names],
                [_in_memory_order(self.state[f"square.{name}"]) for name in names],
                [],
                steps,
                lr=lr * multiple,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Copy a saved `state` into place. Raises: ValueError naming a tensor that is missing or of another shape."""
        for name, tensor in self.state.items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"optimiser state {name}: expected {tuple(tensor.shape)}, found {found}")
            tensor.copy_(state[name])
