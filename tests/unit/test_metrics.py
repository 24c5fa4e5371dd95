"""Accuracy against labels, likeness with the digital model, and metrics of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pimcal import hookspecs, metrics, registry
from pimcal.errors import DataError, UsageError
from pimcal.metrics import accuracy, agreement, cosine, main_output, mse, per_batch, resolve_metric


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.data())
def test_accuracy_equals_counting_one_by_one(data: st.DataObject) -> None:
    shape = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(2, 5)),
        *data.draw(st.sampled_from([(), (2, 3)])),
    )
    outputs = _random(*shape, seed=data.draw(st.integers(0, 99)))
    targets = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    right = [
        np.argmax(outputs.numpy()[(index[0], slice(None), *index[1:])]) == label
        for index, label in np.ndenumerate(targets.numpy())
    ]
    assert accuracy(outputs, targets) == pytest.approx(sum(right) / len(right))


def test_void_labels_of_dense_outputs_are_not_counted() -> None:
    outputs = torch.tensor([[[9.0, 9.0, 0.0, 0.0]], [[0.0, 0.0, 9.0, 9.0]]]).transpose(0, 1)  # [1, 2, 4]
    assert accuracy(outputs, torch.tensor([[0, 1, 2, -100]])) == 0.5
    with pytest.raises(DataError, match="nothing to count"):
        accuracy(outputs, torch.tensor([[2, 2, 255, -1]]))


@pytest.mark.parametrize("label", [-1, 3])
def test_label_outside_the_classes_is_refused_with_the_range(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label} is no class.*3 outputs: labels from 0 to 2"):
        accuracy(torch.rand(2, 3), torch.tensor([0, label]))


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.rand(2, 3), torch.zeros(3, dtype=torch.int64), r"int64 \[3\]; .* shape \[2\]"),
        (torch.rand(2, 3), torch.zeros(2), r"float32 \[2\]; class numbers"),
        (torch.rand(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64), r"shape \[2, 4, 4\]"),
        (torch.rand(2, 3), [0, 1], "labels are list"),
        (torch.rand(2), torch.tensor([0, 1]), "2 or more classes"),
        (torch.rand(2, 1), torch.tensor([0, 1]), "--metric mse or cosine"),
        ({"boxes": torch.rand(2, 4)}, torch.tensor([0, 1]), "a dict with 'boxes'"),
        ("text", torch.tensor([0]), "returns str"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_refused(outputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        accuracy(outputs, targets)


def test_nan_outputs_are_wrong_and_agree_with_nothing() -> None:
    outputs = torch.full((2, 3), float("nan"))
    assert accuracy(outputs, torch.tensor([0, 0])) == 0
    assert agreement(outputs, outputs) == 0


def test_the_judged_tensor_is_found_in_dicts_and_tuples() -> None:
    tensor = torch.rand(2, 3)
    for outputs in (tensor, {"out": tensor, "aux": 0}, {"loss": 0, "logits": tensor}, (tensor, 1), [tensor]):
        assert main_output(outputs) is tensor


def test_agreement_counts_equal_predictions() -> None:
    reference = torch.eye(4)
    noisy = reference[[0, 1, 3, 3]]
    assert agreement(noisy, reference) == 0.75
    assert agreement((noisy,), {"logits": noisy}) == 1
    with pytest.raises(DataError, match=r"\[4, 4\], the digital model's \[3, 4\]"):
        agreement(noisy, reference[:3])


def test_mse_and_cosine_equal_their_definitions() -> None:
    a, b = _random(3, 2, 4), _random(3, 2, 4, seed=1)
    x, y = a.numpy().reshape(3, -1).astype(float), b.numpy().reshape(3, -1).astype(float)
    assert mse(a, b) == pytest.approx(((x - y) ** 2).mean())
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert cosine(a, b) == pytest.approx(expected.mean())
    assert mse(a, a) == 0
    assert cosine(a, 3 * a) == pytest.approx(1)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), name=st.sampled_from(sorted(metrics.BUILT_IN)))
def test_value_over_batches_does_not_depend_on_how_they_are_cut(sizes: list[int], name: str) -> None:
    total = sum(sizes)
    metric = resolve_metric(name)
    outputs = _random(total, 3)
    targets = torch.arange(total) % 3 if metric.needs_labels else _random(total, 3, seed=1)
    running = metric.start()
    for x, y in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        running.update(x, y, len(x))
    assert running.compute() == pytest.approx(metric(outputs, targets))


def test_built_in_metrics_know_what_they_need_and_which_way_is_better() -> None:
    assert resolve_metric("accuracy").needs_labels
    assert not resolve_metric("agreement").needs_labels
    assert not resolve_metric("mse").higher_is_better
    assert resolve_metric("cosine").higher_is_better


def test_own_function_is_averaged_weighted_by_images(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom pimcal.metrics import per_batch\n"
        "def top(outputs, targets):\n    return outputs.max()\n"
        "def fails(outputs, targets):\n    return targets['boxes']\n"
        "def nothing(outputs, targets):\n    return None\n"
        "error = per_batch('error', lambda o, t: 0.5, higher_is_better=False)\n"
        "table = 3\n"
    )
    own = f"{tmp_path}/own.py"
    running = resolve_metric(f"{own}:top").start()
    running.update(torch.tensor([1.0]), None, 3)
    running.update(torch.tensor([5.0]), None, 1)
    assert running.compute() == 2
    assert not resolve_metric(f"{own}:error").higher_is_better
    with pytest.raises(UsageError, match=r"fails failed with IndexError.*own\.py:6\)"):
        resolve_metric(f"{own}:fails")(torch.ones(1), torch.ones(1))
    with pytest.raises(UsageError, match="nothing returned a NoneType; a number"):
        resolve_metric(f"{own}:nothing")(torch.ones(1), torch.ones(1))
    with pytest.raises(UsageError, match="is a int, not a function"):
        resolve_metric(f"{own}:table")


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to count"):
        resolve_metric("accuracy").start().compute()


class _Plugin:
    """A plugin with a plain function and a full metric."""

    @hookspecs.hookimpl
    def pimcal_register_metrics(self, register: hookspecs.RegisterMetric) -> None:
        register("largest", lambda outputs, targets: float(outputs.max()))
        register("regret", per_batch("regret", lambda outputs, targets: 0.25, higher_is_better=False))


def test_metrics_of_plugins_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = registry.Registry()
    own.register_plugin(_Plugin(), "test-metrics")
    monkeypatch.setattr(registry, "default", lambda: own)
    assert resolve_metric("largest")(torch.tensor([2.0, 7.0]), None) == 7
    assert not resolve_metric("regret").higher_is_better
    with pytest.raises(UsageError, match=r"no metric 'larges'; did you mean 'largest'.*accuracy"):
        resolve_metric("larges")
