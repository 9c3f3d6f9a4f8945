"""The sentence encoder in PyTorch.

It runs on the device of the weights, the ids and the mask: all on one CUDA device, or all on the
CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from encoder import Encoder, Weights


class TorchEncoder(Encoder[torch.Tensor]):
    """The encoder on a device of PyTorch."""

    encode = torch.inference_mode()(Encoder.encode)

    def rows(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, table)

    def linear(self, x: torch.Tensor, name: str, weights: Weights[torch.Tensor]) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer_norm(
        self, x: torch.Tensor, name: str, weights: Weights[torch.Tensor]
    ) -> torch.Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.config.layer_norm_eps)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x)

    def softmax(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~present, float("-inf")).softmax(dim=-1)

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        present = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * present).sum(dim=1) / present.sum(dim=1)
        return F.normalize(mean, dim=1)
