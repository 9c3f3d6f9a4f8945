"""CUDA graphs of PyTorch steps."""

from __future__ import annotations

from collections.abc import Callable

import torch


def graph_of(
    step: Callable[[], torch.Tensor], warm: int = 1
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Captures a step after ``warm`` eager ones; returns the graph and the tensor it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result
