"""Continued training of an open model: it learns Khmer and keeps what it knows of its old languages.

Three things hold the old languages. Replay: the mixture's `weights` say which share of the training text is English.
Rates: the rows of new tokens, which begin as rough guesses, learn at a multiple of the rate of all weights that the
base had. And an average of the last steps' weights, which is better than any of them in both languages.

What does not belong here: the loop that trains, and what is measured.
"""

from typing import TYPE_CHECKING, Any

from khmer_assets.foundation.settings import PositiveFloat, Ratio, Settings

if TYPE_CHECKING:
    import torch


class Continued(Settings):
    """`new_rows_rate`: how many times the learning rate the rows of new tokens learn at. `new_rows_first`: the share of
    the steps in which they learn alone. `averaged`: the share of the steps, at the end, whose weights are averaged."""

    new_rows_rate: PositiveFloat = 10.0
    new_rows_first: Ratio = 0.1
    averaged: Ratio = 0.2


class ContinuedOptimizer:
    """AdamW for `steps` steps of a model whose embeddings (and head) have rows of new tokens from `first_new_row` on.

    AdamW moves a weight as far however small its gradient is, so that rates cannot be set by scaling gradients: the
    old and the new rows are parameters of their own here, which share the model's memory. `first_new_row` is the number
    of rows where there are no new ones; all weights then learn from the first step on.
    """

    def __init__(self, model: "torch.nn.Module", settings: Continued, first_new_row: int, steps: int):
        import torch

        self.model, self.settings, self.steps = model, settings, steps
        self.done = self.averaged = 0
        layers = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]  # transformers'
        token_wise = {id(layer.weight): layer.weight for layer in layers}
        self.shared = [(p, p.data[:first_new_row], p.data[first_new_row:]) for p in token_wise.values()]
        self.others = [p for p in model.parameters() if p.requires_grad and id(p) not in token_wise]
        self.has_new = any(len(new) for _, _, new in self.shared)
        groups = [
            {"params": [*self.others, *(old for _, old, _ in self.shared)], "of_learning_rate": 1.0},
            {"params": [new for _, _, new in self.shared], "of_learning_rate": settings.new_rows_rate},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.mean: dict[str, torch.Tensor] = {}

    def step(self, learning_rate: float) -> None:
        """Update with the gradients at hand, then forget them."""
        alone = self.has_new and self.done < self.settings.new_rows_first * self.steps
        for parameter, old, new in self.shared:
            if parameter.grad is not None:
                old.grad = None if alone else parameter.grad[: len(old)]
                new.grad = parameter.grad[len(old) :]
        if alone:
            for parameter in self.others:
                parameter.grad = None
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate * group["of_learning_rate"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        self.done += 1
        if self.done > self.steps * (1 - self.settings.averaged):
            self._average()

    def _average(self) -> None:
        self.averaged += 1
        for name, parameter in self.model.named_parameters():
            if name in self.mean:
                self.mean[name].lerp_(parameter.detach(), 1 / self.averaged)
            else:
                self.mean[name] = parameter.detach().clone()

    def finish(self) -> None:
        """Give the model the averaged weights, where steps were averaged."""
        for name, parameter in self.model.named_parameters():
            if name in self.mean:
                parameter.data.copy_(self.mean[name])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"adamw": self.adamw.state_dict(), "done": self.done, "averaged": self.averaged, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.adamw.load_state_dict(state["adamw"])
        self.done, self.averaged = state["done"], state["averaged"]
        self.mean = {name: mean.to(self.model.get_parameter(name).device) for name, mean in state["mean"].items()}
