"""Residual connections and the gradients of a deep network (He et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.learn.gpt import GELU


class DeepNetwork(nn.Module):
    """A chain of linear layers with GELU; with residual connections a layer only adds to its input.

    Args:
        sizes: channels of the input, of each layer, of the output. A residual connection needs equal sizes around its
            layer.
        shortcuts: whether there are residual connections.
    """

    def __init__(self, sizes: Sequence[int], shortcuts: bool):
        super().__init__()
        self.shortcuts = shortcuts
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(n_in, n_out), GELU()) for n_in, n_out in zip(sizes, sizes[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers: [B, sizes[0]] -> [B, sizes[-1]]."""
        for layer in self.layers:
            y = layer(x)
            x = x + y if self.shortcuts and x.shape == y.shape else y
        return x


class ExampleDeepNeuralNetwork(DeepNetwork):
    """`DeepNetwork` under its usual name and arguments."""

    def __init__(self, layer_sizes: Sequence[int], use_shortcut: bool):
        super().__init__(layer_sizes, use_shortcut)


def gradient_sizes(network: DeepNetwork, x: Tensor, target: Tensor) -> list[float]:
    """Return the mean absolute gradient of each layer's weight, from the first layer to the last."""
    weights = [parameter for parameter in network.parameters() if parameter.dim() == 2]  # not the biases
    gradients = torch.autograd.grad(F.mse_loss(network(x), target), weights)
    return [gradient.abs().mean().item() for gradient in gradients]


def print_gradients(model: DeepNetwork, x: Tensor) -> None:
    """Print the mean absolute gradient of each layer's weight, for a target of 0."""
    with torch.no_grad():
        target = torch.zeros_like(model(x))
    for layer, size in enumerate(gradient_sizes(model, x, target)):
        print(f"layers.{layer}.0.weight has gradient mean of {size}")
