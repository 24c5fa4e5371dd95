"""The deployed network refers to nothing of the original model, whatever its hooks and attributes hold."""

import functools
import types
import warnings
import weakref

import pytest
import torch
from torch import nn

import pimcal
from pimcal.errors import DataError
from pimcal.fingerprint import model_hash

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Features(nn.Module):
    """Its output is what a hook, made in `__init__` in one of several ways, has kept."""

    def __init__(self, attach):
        super().__init__()
        self.body = nn.Linear(4, 4)
        attach(self)

    def forward(self, x):
        self.body(x)
        return self.features.clone()


def keep(model, module, args, output):
    model.features = output


def by_closure(self):
    def hook(module, args, output):
        self.features = output

    self.body.register_forward_hook(hook)


def by_method(self):
    self.body.register_forward_hook(types.MethodType(keep, self))


def by_partial(self):
    self.body.register_forward_hook(functools.partial(keep, self))


def by_weak_reference(self):
    me = weakref.ref(self)
    self.body.register_forward_hook(lambda module, args, output: keep(me(), module, args, output))


def by_default(self):
    def hook(module, args, output, owner=self):
        owner.features = output

    self.body.register_forward_hook(hook)


def by_closure_in_a_closure(self):
    def outer():
        def hook(module, args, output):
            keep(self, module, args, output)

        return hook

    self.hooks = [{"hook": outer()}]
    self.body.register_forward_hook(lambda *args: self.hooks[0]["hook"](*args))


class Keeper:
    def __init__(self, owner):
        self.owner = owner

    def __call__(self, module, args, output):
        self.owner.features = output


def by_object(self):
    self.body.register_forward_hook(Keeper(self))


def by_tuple_in_a_closure(self):
    parts = (self, {"owner": self})
    self.body.register_forward_hook(lambda m, a, output: keep(parts[1]["owner"], m, a, output))


WAYS = [
    by_closure, by_method, by_partial, by_weak_reference, by_default, by_closure_in_a_closure, by_object,
    by_tuple_in_a_closure,
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("attach", WAYS)
def test_hooks_work_on_the_copy(open_backend, attach):
    model = Features(attach)
    net = pimcal.deploy(model, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.5}))

    first, second = net(X), net(2 * X)

    assert not hasattr(model, "features")
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, model(X))
    torch.testing.assert_close(net.reference(X), model(X))


def test_a_hook_that_uses_a_global_name_of_the_model_is_refused(open_backend, monkeypatch):
    def hook(module, args, output):
        everyone.features = output  # noqa: F821

    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(hook)
    monkeypatch.setitem(globals(), "everyone", model)

    with pytest.raises(
        DataError, match=r"0\._forward_hooks: .*test_copying.py:\d+\) uses the global 'everyone'.*itself"
    ):
        pimcal.deploy(model, open_backend("ideal"))


class Shared:
    def __deepcopy__(self, memo):
        return self


def test_an_object_that_is_not_copied_and_refers_to_the_model_is_refused(open_backend):
    model = nn.Sequential(nn.Linear(4, 4))
    model.helper = Shared()
    model.helper.owner = model

    with pytest.raises(DataError, match=r"the model\.helper: its Shared is shared .* refers to the model in 'owner'"):
        pimcal.deploy(model, open_backend("ideal"))


@torch.no_grad()
def test_nothing_is_expected_of_what_a_models_own_methods_return(open_backend):
    class Silent(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

        def eval(self):
            super().eval()

        def requires_grad_(self, requires_grad=True):
            super().requires_grad_(requires_grad)

    model = nn.Sequential(Silent(nn.Linear(4, 4)), nn.Linear(4, 2))

    torch.testing.assert_close(pimcal.deploy(model, open_backend("ideal"))(X), model(X))
    torch.testing.assert_close(pimcal.deploy(model[0], open_backend("ideal"))(X), model[0](X))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of layouts in beta
    COMPRESSED = torch.eye(3).to_sparse_csr()
TENSORS = {
    "sparse": torch.eye(3).to_sparse(),
    "csr": COMPRESSED,
    "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "per channel": torch.quantize_per_channel(
        torch.ones(2, 3), torch.ones(2), torch.zeros(2, dtype=torch.long), 0, torch.qint8
    ),
    "complex": torch.ones(3, dtype=torch.complex64),
    "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
    "boolean": torch.ones(3, dtype=torch.bool),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_every_layout_and_type_has_a_hash(kind):
    def hash_of(tensor):
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        model.register_buffer("extra", tensor)
        return model_hash(model)

    tensor = TENSORS[kind]
    others = {hash_of(other) for name, other in TENSORS.items() if name not in (kind, "complex", "conjugate")}
    assert hash_of(tensor) == hash_of(tensor.clone())
    assert hash_of(tensor) not in others


def test_values_of_sparse_and_quantised_tensors_count():
    def hash_of(tensor):
        model = nn.Module()
        model.register_buffer("extra", tensor)
        return model_hash(model)

    assert hash_of(torch.eye(3).to_sparse()) != hash_of((2 * torch.eye(3)).to_sparse())
    first, second = (torch.quantize_per_tensor(torch.ones(3), scale, 0, torch.qint8) for scale in (0.1, 0.2))
    assert hash_of(first) != hash_of(second)


def test_a_model_without_memory_is_refused(open_backend):
    with pytest.raises(DataError, match=r"0\.weight is on torch's meta device and has no values"):
        pimcal.deploy(nn.Sequential(nn.Linear(2, 2, device="meta")), open_backend("ideal"))
