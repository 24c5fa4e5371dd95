"""The hash that binds a calibration to a model."""

import copy

import pytest
import torch
from torch import nn

from pimcal.fingerprint import model_hash


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_equal_models_have_one_hash():
    assert model_hash(network()) == model_hash(copy.deepcopy(network()).eval())


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "1.running_var", "1.num_batches_tracked"])
def test_every_tensor_counts(name):
    model = network()
    model.state_dict()[name].view(-1)[0] += 1

    assert model_hash(model) != model_hash(network())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_type_has_a_hash_of_its_own(dtype):
    assert model_hash(network().to(dtype)) != model_hash(network())


def test_shapes_and_names_count():
    flat, tall = nn.Module(), nn.Module()
    flat.register_buffer("a", torch.zeros(2, 3))
    tall.register_buffer("a", torch.zeros(3, 2))
    other = nn.Module()
    other.register_buffer("b", torch.zeros(2, 3))

    assert len({model_hash(flat), model_hash(tall), model_hash(other)}) == 3


def test_empty_tensors_and_foreign_state_are_no_obstacle():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    model = nn.Sequential(Counting(2, 2))
    model.register_buffer("empty", torch.zeros(0))

    assert len(model_hash(model)) == 64
