"""TIES as published code does it, which engine.py compares with: its time, its memory and its result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from cases import Inputs, merge_in_memory
from inputs import PeakMemory, in_fresh_process, progress
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reference:
    """Figures of the reference.

    Attributes:
        seconds: Of each run, each in a process of its own.
        tasks: How many it merged.
        beyond: The highest increase of anonymous memory beyond the tensors returned, in bytes.
        difference: The largest one between its result and ours.
        equal: Whether the results agree within rounding.
    """

    seconds: list[float]
    tasks: int
    beyond: int
    difference: float
    equal: bool


def reference_ties(inputs: Inputs, density: float = 0.2) -> dict[str, Tensor]:
    """Merge by TIES on one matrix of all task vectors: flatten, k-th value, elect, merge; no batch normalisation."""
    base = load_file(inputs.base)
    experts = [load_file(path) for path in inputs.tasks.values()]
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]

    def flatten(state: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([state[name].float().flatten() for name in names])

    tau = torch.stack([flatten(state) for state in experts]) - flatten(base)  # (T, d)
    elements = tau.shape[1]
    thresholds = tau.abs().kthvalue(elements - int(elements * density), dim=1, keepdim=True).values
    tau = tau * (tau.abs() >= thresholds)
    signs = tau.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    agreeing = tau * torch.where(signs > 0, tau > 0, tau < 0)
    merged = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    parts = merged.split([base[name].numel() for name in names])
    return base | {
        name: (base[name].float() + part.view_as(base[name])).to(base[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }


def measure_reference(inputs: Inputs, rounds: int) -> Reference:
    """Run the reference some times, and compare its result with ours once."""
    seconds = []
    for number in range(rounds):
        progress(f"the reference algorithm, {number + 1} of {rounds}")
        taken, beyond, compared = in_fresh_process(_run, inputs, torch.get_num_threads(), number == 0)
        seconds.append(taken)
        if compared is not None:
            found = len(inputs.tasks), beyond, *compared
    return Reference(seconds, *found)


def _run(inputs: Inputs, threads: int, compare: bool) -> tuple[float, int, tuple[float, bool] | None]:
    torch.set_num_threads(threads)
    with PeakMemory() as peak:  # it looks on for less than a thousandth of the time
        began = time.perf_counter()
        expected = reference_ties(inputs)
        seconds = time.perf_counter() - began
    size = sum(tensor.nbytes for tensor in expected.values())
    return seconds, peak.increase - size, _compared(inputs, expected) if compare else None


def _compared(inputs: Inputs, expected: Mapping[str, Tensor]) -> tuple[float, bool]:
    found = merge_in_memory(inputs, "ties")
    pairs = [(found[name].float(), expected[name].float(), expected[name].dtype) for name in inputs.vectors.names]
    # One step of rounding is allowed where the dtype's are wider than the tolerance.
    return max(float((ours - theirs).abs().max()) for ours, theirs, _ in pairs), all(
        torch.allclose(ours, theirs, rtol=torch.finfo(dtype).eps, atol=TOLERANCE) for ours, theirs, dtype in pairs
    )
