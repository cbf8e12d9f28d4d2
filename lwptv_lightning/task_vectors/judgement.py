"""Whether fine-tuned weights are of their base: figures of each tensor, and one judgement of them for all who ask.

Of tensors that say something, the elements of fine-tuned weights go with the base's, and those of another training do
not. A constant tensor, such as the ones of a fresh normalisation, says nothing: any model's agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import Checkpoint, some_of

UNLIKE = "re-initialised or permuted"
"""What is said of a tensor whose elements don't go with the base's."""
_UNRELATED = 0.2
"""Least mean cosine of weights to their base's: independent trainings have nearly 0, fine-tuning nearly 1."""
_UNLIKE = 0.25
"""Least cosine of one tensor to the base's, unless the others moved so far that less is expected."""
_CERTAIN = 3.0
"""Standard deviations of chance beyond which a cosine is believed."""
_WEIGHT_CAP = 4096
"""Elements from which on a tensor counts no more than others."""
_TIMES = 10.0
"""Change of a tensor's norm that no fine-tuning makes."""
_FAR = 5.0
"""Times the usual change of an element, above which a grown tensor stands out."""
_NOTHING = 1e-12
"""Ratio of squares below which float64 sums are rounding."""
_LEAST_CERTAIN = 16
"""Elements that tell weights as large as the base from a difference, which is a fraction of it."""
_ALONG = 0.8
"""Cosine above which elements are those of the base, but for fine-tuning."""
_SMALL = 0.5
"""Part of the base's norm that no difference reaches, and all weights do."""
_SAMPLED_PARTS = 4
_SAMPLED_ELEMENTS = 1024
"""What a sample takes of a tensor: some thousand elements, in few pages of a mapped file."""


@dataclass(frozen=True)
class TensorFigures:
    """Sums over elements of one tensor of the base and of T task vectors, in float64.

    Attributes:
        elements: How many.
        sums: ``(1 + T,)``, the base first.
        gram: Inner products, ``(1 + T, 1 + T)``.
    """

    elements: int
    sums: Tensor
    gram: Tensor


@dataclass(frozen=True)
class Judgement:
    """What the figures say of one task.

    Attributes:
        finite: Whether all weights are.
        cosine: Mean over the tensors that say something of the cosine of the task's elements to the base's, less their
            means; None where no tensor does.
        tensors: How many these are.
        another_base: Whether the weights go with the base's no more than by chance.
        outliers: Tensor name to what is wrong with it, beside the others of the task.
        size: Norm of the weights, less their means, beside the base's; None where it says nothing.
    """

    finite: bool = True
    cosine: float | None = None
    tensors: int = 0
    another_base: bool = False
    outliers: Mapping[str, str] = field(default_factory=dict)
    size: float | None = None

    @property
    def difference_told(self) -> str:
        """What says that a difference was given as whole weights, in words; empty where nothing does."""
        if self.size is None or self.cosine is None or not 0 < self.size < _SMALL or self.cosine > _ALONG:
            return ""
        return (
            f"a difference from the base in the place of whole weights: norm {self.size:.2g} times the base's, cosine "
            f"{self.cosine:.2f} to it. Add the base, or mark the file by lwptv_kind=task_vector in its metadata."
        )

    @property
    def told(self) -> str:
        """What is wrong, in words; empty where nothing is. What is not finite is told when it is read."""
        if self.another_base:
            return self.difference_told or (
                f"another base: cosine {self.cosine:.2f} to its weights, the mean over {self.tensors} tensors; that of "
                "fine-tuned weights is nearly 1."
            )
        kinds: dict[str, list[str]] = {}
        for name, kind in self.outliers.items():
            kinds.setdefault(kind, []).append(name)
        return " ".join(f"{kind}: {some_of(names, 3)}" for kind, names in kinds.items())


@dataclass(frozen=True)
class Windows:
    """A few parts of a flattened tensor, the first at its beginning and each some elements after the one before."""

    step: int

    def of(self, elements: Tensor) -> Tensor:
        """Return the elements in these parts, a row for each."""
        return elements.unfold(0, _SAMPLED_ELEMENTS, self.step)[:_SAMPLED_PARTS]


def measure(
    name: str, base: Checkpoint, experts: Sequence[Checkpoint | None], parts: Iterable[slice | Windows]
) -> TensorFigures:
    """Sum up one tensor over parts of its flattened elements; the task vector of an expert that is None is zero."""
    weights = base.read(name).reshape(-1)
    absent = weights.new_zeros(()).expand(weights.shape), True
    stored = [absent if expert is None else expert.read_for_difference(name) for expert in experts]
    flat = [weights, *(values.reshape(-1) for values, _ in stored)]
    whole: Any = [row for row, (_, is_difference) in enumerate(stored, start=1) if not is_difference]
    if len(whole) == len(stored):
        whole = slice(1, None)  # which takes no copy
    elements, sums = 0, torch.zeros(1 + len(experts), dtype=torch.float64)
    gram = torch.zeros(len(sums), len(sums), dtype=torch.float64)
    for part in parts:
        taken = part.of if isinstance(part, Windows) else itemgetter(part)
        rows = _in_float64([taken(values) for values in flat])
        rows[whole] -= rows[0]
        elements += rows.shape[1]
        sums += rows.sum(1)
        gram += rows @ rows.T
    return TensorFigures(elements, sums, gram)


def _in_float64(values: Sequence[Tensor]) -> Tensor:
    """Return T tensors of any dtypes, from anywhere, as ``(T, n)``, at once: operations on each take much longer."""
    if len({(each.dtype, each.device) for each in values}) > 1:
        values = [each.to("cpu", torch.float64) for each in values]
    return torch.stack(tuple(values)).to("cpu", torch.float64).flatten(1)


def whole_as_difference(figures: Mapping[str, TensorFigures], task: int) -> str:
    """Return what says that a task vector, as its file calls it, is whole weights; empty where nothing does.

    A difference that fine-tuning made is neither as large as the base nor along it.
    """
    if not figures:
        return ""
    pairs = _Pairs.of(figures, task)
    along = pairs.product - pairs.x_spread
    spread = pairs.y_spread - pairs.x_spread - 2 * along
    told = pairs.x_varies & (spread > _NOTHING * pairs.tau)
    if float((pairs.elements * told).sum()) < _LEAST_CERTAIN:
        return ""
    x, tau, product = (float((each * told).sum()) for each in (pairs.x_spread, spread, along))
    cosine, size = product / math.sqrt(x * tau), math.sqrt(tau / x)
    if not (cosine > _ALONG and _SMALL < size < 1 / _SMALL):
        return ""
    return (
        f"whole weights, labelled as a task vector: cosine {cosine:.2f} to the base's, norm {size:.2g} times theirs. "
        "Give the difference from the base, or take lwptv_kind out of the file's metadata."
    )


def judge(figures: Mapping[str, TensorFigures], task: int) -> Judgement:
    """Judge the task vector of a position among the T that were measured.

    ``y = theta_t`` against ``x = theta_0``, tensor by tensor: norms, and the cosine of both less their means.
    """
    if not figures:
        return Judgement()
    pairs = _Pairs.of(figures, task)
    if not bool(torch.isfinite(torch.stack([pairs.along, pairs.tau])).all()):
        return Judgement(finite=False)
    weight = (pairs.elements.clamp_max(_WEIGHT_CAP) - 1) * pairs.telling
    total, tensors = float(weight.sum()), int(pairs.telling.sum())
    if not tensors:
        return Judgement(outliers=pairs.outliers())
    mean = float((pairs.cosine * weight).sum()) / total
    x, y = (float((each * pairs.telling).sum()) for each in (pairs.x_spread, pairs.y_spread))
    size = math.sqrt(y / x) if float((pairs.elements * pairs.telling).sum()) >= _LEAST_CERTAIN else None
    least = min(max(_UNRELATED, _CERTAIN / math.sqrt(total)), 0.5)
    return Judgement(cosine=mean, tensors=tensors, another_base=mean < least, outliers=pairs.outliers(), size=size)


@dataclass(frozen=True)
class _Pairs:
    """The L tensors of a base, ``x``, and of a task, ``y``; each attribute is ``(L,)``, norms without their root."""

    names: tuple[str, ...]
    elements: Tensor
    x: Tensor
    y: Tensor
    tau: Tensor
    along: Tensor
    x_spread: Tensor
    y_spread: Tensor
    product: Tensor

    @classmethod
    def of(cls, figures: Mapping[str, TensorFigures], task: int) -> _Pairs:
        found, row = list(figures.values()), 1 + task
        elements = torch.tensor([each.elements for each in found], dtype=torch.float64).clamp_min(1)
        sums, gram = (torch.stack([getattr(each, what) for each in found]) for what in ("sums", "gram"))
        x, tau, along = gram[:, 0, 0], gram[:, row, row], gram[:, 0, row]
        x_sum, y_sum = sums[:, 0], sums[:, 0] + sums[:, row]
        y = (x + 2 * along + tau).clamp_min(0)
        spreads = x - x_sum.square() / elements, y - y_sum.square() / elements
        return cls(tuple(figures), elements, x, y, tau, along, *spreads, x + along - x_sum * y_sum / elements)

    @property
    def x_varies(self) -> Tensor:
        return (self.x_spread > _NOTHING * self.x) & (self.elements > 2)

    @property
    def y_varies(self) -> Tensor:
        return self.y_spread > _NOTHING * (self.x + self.y)

    @property
    def telling(self) -> Tensor:
        """Which tensors are constant in neither model."""
        return self.x_varies & self.y_varies

    @property
    def cosine(self) -> Tensor:
        """Of the elements less their means; 0 for tensors that say nothing."""
        norms = (self.x_spread * self.y_spread).clamp_min(1e-300).sqrt()
        return torch.where(self.telling, self.product / norms, 0)

    def outliers(self) -> dict[str, str]:
        """Return what is wrong with single tensors."""
        step = (self.tau / self.elements).sqrt()
        usual = float(step[step > 0].median()) if int((step > 0).sum()) > 1 else 0.0
        # Where a tensor is small beside the usual change, as biases soon after their beginning are, little is expected.
        deviation = (self.x_spread.clamp_min(0) / self.elements).sqrt()
        expected = deviation / (deviation.square() + usual**2).sqrt().clamp_min(1e-300)
        certain = _CERTAIN / self.elements.sqrt() < expected / 2
        changed, size = (self.x > 0) & (self.tau > 0), (self.y / self.x.clamp_min(1e-300)).sqrt()
        hits = {
            "zeroed": changed & (self.y <= _NOTHING * self.x),
            "constant": changed & self.x_varies & ~self.y_varies,
            "{:g} times as large": changed & ((size <= 1 / _TIMES) | (size >= _TIMES) & (step >= _FAR * usual)),
            UNLIKE: self.telling & certain & (self.cosine < (expected / 2).clamp_max(_UNLIKE)),
        }
        found: dict[str, str] = {}
        for kind, hit in hits.items():
            for position in hit.nonzero().flatten().tolist():
                found.setdefault(self.names[position], kind.format(float(f"{float(size[position]):.2g}")))
        return found


def same_weights(figures: Mapping[str, TensorFigures], first: int, second: int) -> bool:
    """Whether two measured task vectors are equal, and not zero."""
    gram = sum((each.gram for each in figures.values()), torch.zeros(1, 1, dtype=torch.float64))
    one, other = 1 + first, 1 + second
    apart = gram[one, one] + gram[other, other] - 2 * gram[one, other]
    return bool(gram[one, one] > 0 and apart <= _NOTHING * gram[one, one])


def spread(elements: int) -> slice | Windows:
    """Return a few parts of a flattened tensor from its beginning to its end; all of a small one."""
    if elements <= _SAMPLED_PARTS * _SAMPLED_ELEMENTS:
        return slice(0, elements)
    return Windows((elements - _SAMPLED_ELEMENTS) // (_SAMPLED_PARTS - 1))
