"""A product of an input and a weight over labelled axes, as vectors times matrices: einsum, matmul, bmm and the like.

Each axis has a label, as in Einstein's notation. Labels that both operands and the result have number independent
products (groups); those that only the operands share are summed over (rows); the weight's own are columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Vectors:
    """Inputs [..., groups * rows], matrices [groups, rows, cols], and how results [..., groups * cols] are put back."""

    inputs: Tensor
    matrices: Tensor
    restore: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Contraction:
    """The labels of an input's, a weight's and their product's axes."""

    x: Labels
    weight: Labels
    out: Labels

    def is_a_product(self) -> bool:
        """Whether this is one: no label twice in an operand, and the result made of the operands' labels."""
        unique = all(len(set(labels)) == len(labels) for labels in (self.x, self.weight, self.out))
        return unique and set(self.out) <= set(self.x) | set(self.weight)

    def vectors(self, x: Tensor, weight: Tensor) -> Vectors:
        """Both operands, rearranged; the matrices are a view of the weight wherever its memory allows."""
        weight, labels = _unstretched(weight, self.weight, self.x)
        x, x_labels = _unstretched_beside(x, self.x, dict(zip(labels, weight.shape, strict=True)))
        x, x_labels = _summed(x, x_labels, {*labels, *self.out})
        weight, labels = _summed(weight, labels, {*x_labels, *self.out})
        groups = [label for label in labels if label in x_labels and label in self.out]
        rows = [label for label in labels if label in x_labels and label not in self.out]
        cols = [label for label in labels if label not in x_labels]
        free = [label for label in x_labels if label not in labels]
        sizes = dict(zip(x_labels, x.shape, strict=True)) | dict(zip(labels, weight.shape, strict=True))
        g, r, c = (math.prod(sizes[label] for label in part) for part in (groups, rows, cols))
        inputs = _arranged(x, x_labels, [*free, *groups, *rows]).reshape(*(sizes[label] for label in free), g * r)
        matrices = _arranged(weight, labels, [*groups, *rows, *cols]).reshape(g, r, c)
        found = [*free, *groups, *cols]

        def restore(y: Tensor) -> Tensor:
            return _arranged(y.reshape([sizes[label] for label in found]), found, list(self.out))

        return Vectors(inputs, matrices, restore)


def _arranged(tensor: Tensor, labels: Sequence[str], order: Sequence[str]) -> Tensor:
    return tensor.permute([labels.index(label) for label in order])


def _unstretched(weight: Tensor, labels: Labels, others: Labels) -> tuple[Tensor, Labels]:
    """Without the axes along which one matrix is repeated for each of the input's: broadcast, or expanded."""
    for axis, label in reversed([*enumerate(labels)]):
        if label in others and (weight.shape[axis] == 1 or weight.stride(axis) == 0):
            weight, labels = weight.select(axis, 0), labels[:axis] + labels[axis + 1 :]
    return weight, labels


def _unstretched_beside(x: Tensor, labels: Labels, sizes: dict[str, int]) -> tuple[Tensor, Labels]:
    """Without the axes of size 1 that meet a larger one of the weight: there the weight's own columns are."""
    for axis, label in reversed([*enumerate(labels)]):
        if x.shape[axis] == 1 and sizes.get(label, 1) > 1:
            x, labels = x.select(axis, 0), labels[:axis] + labels[axis + 1 :]
    return x, labels


def _summed(tensor: Tensor, labels: Labels, kept: set[str]) -> tuple[Tensor, Labels]:
    """Axes that nothing else has are added up."""
    alone = [i for i, label in enumerate(labels) if label not in kept]
    return (tensor.sum(alone) if alone else tensor), tuple(label for label in labels if label in kept)


def of_einsum(equation: str, x: Tensor, weight: Tensor, *, x_first: bool) -> Contraction | None:
    """The contraction that `torch.einsum(equation, ...)` names, or None where it is no product of two operands."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    parts = operands.split(",")
    if len(parts) != 2:
        return None
    first, second = (x, weight) if x_first else (weight, x)
    one, two = _axes(parts[0], first.dim()), _axes(parts[1], second.dim())
    if one is None or two is None:
        return None
    dots = max((label for label in (*one, *two) if label.isdigit()), key=int, default=None)
    every = tuple(str(i) for i in reversed(range(0 if dots is None else int(dots) + 1)))
    once = sorted(label for label in {*one, *two} - {*every} if (*one, *two).count(label) == 1)
    out = tuple(once) if not arrow else None
    labels = (*every, *out) if out is not None else _spread(result, every)
    return Contraction(*((one, two) if x_first else (two, one)), labels)


def _axes(part: str, dims: int) -> Labels | None:
    """A label an axis; what dots stand for is numbered from the last axis on, as broadcasting counts."""
    more = dims - len(part.replace("...", ""))
    if more < 0 or ("..." not in part and more):
        return None
    return _spread(part, tuple(str(i) for i in reversed(range(more))))


def _spread(part: str, dots: Labels) -> Labels:
    before, found, after = part.partition("...")
    return (*before, *(dots if found else ()), *after)


def of_matmul(x: Tensor, weight: Tensor, *, x_first: bool) -> Contraction:
    """The contraction of `torch.matmul`, with its rules for vectors and for leading axes."""
    first, second = (x, weight) if x_first else (weight, x)
    lead = [tuple(str(i) for i in reversed(range(max(0, t.dim() - 2)))) for t in (first, second)]
    one: Labels = ("k",) if first.dim() == 1 else (*lead[0], "m", "k")
    two: Labels = ("k",) if second.dim() == 1 else (*lead[1], "k", "n")
    ends = [label for label, t in (("m", first), ("n", second)) if t.dim() > 1]
    out = (*max(lead, key=len), *ends)
    return Contraction(*((one, two) if x_first else (two, one)), out)


def of_tensordot(x: Tensor, weight: Tensor, dims: tuple[Sequence[int], Sequence[int]], *, x_first: bool) -> Contraction:
    """The contraction of `torch.tensordot`; `dims` are the axes of the first and of the second operand."""
    first, second = (x, weight) if x_first else (weight, x)
    one = [f"a{i}" for i in range(first.dim())]
    two = [f"b{i}" for i in range(second.dim())]
    for i, j in zip(*dims, strict=True):
        two[j % second.dim()] = one[i % first.dim()]
    shared = {*one} & {*two}
    out = tuple(label for label in (*one, *two) if label not in shared)
    labels = (tuple(one), tuple(two)) if x_first else (tuple(two), tuple(one))
    return Contraction(*labels, out)


def block_product(inputs: Tensor, matrices: Tensor) -> Tensor:
    """[..., groups * rows] times [groups, rows, cols]: [..., groups * cols]."""
    groups, rows, cols = matrices.shape
    by_group = inputs.reshape(-1, groups, rows).transpose(0, 1)
    return torch.bmm(by_group, matrices).transpose(0, 1).reshape(*inputs.shape[:-1], groups * cols)
