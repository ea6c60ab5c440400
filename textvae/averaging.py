"""An average of the weights along the way of training, which is what is validated, kept and served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a model's parameters; of its buffers there is but one state.

    Kingma & Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), section 7.2, in the place of the
    even average of all steps (Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging",
    1992). After step n of training the average is decay times what it was, plus the rest of the new weights,
    where decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: so the first
    steps, whose weights are soon outdated, are forgotten sooner.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps, of which the first is 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), 1.0 - decay)

    @torch.no_grad()
    def restart(self, parameter: Tensor) -> None:
        """Forget what this parameter of the model was before now."""
        (name,) = (name for name, each in self._parameters.items() if each is parameter)
        self._average[name].copy_(parameter)

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """The model holds an average from a checkpoint: take it from there, and give it these weights."""
        for name, value in self._parameters.items():
            self._average[name].copy_(value)
            value.copy_(weights[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it lasts the model holds the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def apart(self) -> Mapping[str, Tensor]:
        """What the model does not hold now: the average, or, while it is shown, what it is the average of."""
        return self._average

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._parameters.items():
            weights = value.clone()
            value.copy_(self._average[name])
            self._average[name].copy_(weights)
