"""Which layers go to the device, and the reasons told for the others."""

import pytest
import torch
from torch import nn

import pimcal
from pimcal.errors import ConfigError, DataError, UsageError
from pimcal.opened import open_layers
from pimcal.survey import check_initialized, survey, unmatched


def reasons(model, *host):
    return {c.name: c.reason for c in survey(model, host)}


def test_modules_without_a_matrix_are_not_mentioned():
    assert set(reasons(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2), nn.LayerNorm(2)))) == {"0"}


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Embedding(3, 4), "Embedding looks up, it multiplies nothing"),
        (nn.Bilinear(2, 2, 2), "Bilinear uses its weights in its own code"),
        (nn.Linear(2, 2, dtype=torch.complex64), "its weights are torch.complex64"),
    ],
)
def test_what_no_device_can_compute_stays_with_a_reason(module, reason):
    assert reasons(nn.ModuleDict({"it": module, "other": nn.Linear(2, 2)})) == {"it": reason, "other": ""}


def test_a_subclass_with_a_forward_of_its_own_stays():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert reasons(nn.Sequential(Scaled(2, 2))) == {"0": "Scaled has a forward of its own"}


def test_an_attention_with_a_forward_of_its_own_stays_with_its_output_projection():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = nn.ModuleDict({"attention": Own(4, 2)})
    open_layers(model)

    assert reasons(model) == {
        "attention": "Own uses its weights in its own code",
        "attention.out_proj": "its attention has a forward of its own",
    }


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_a_hook_computes_stay_and_parametrized_ones_go():
    with torch.no_grad():
        by_hook = nn.utils.weight_norm(nn.Linear(2, 2))
    found = reasons(nn.ModuleDict({"hook": by_hook, "new": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))}))

    assert "a hook computes its weights anew" in found["hook"]
    assert found["new"] == ""


def test_a_host_pattern_covers_the_layers_inside_its_match():
    model = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), "head": nn.Linear(2, 2)}
    )

    assert reasons(model, "body") == {
        "body.0": "kept by host pattern 'body'",
        "body.1.0": "kept by host pattern 'body'",
        "head": "",
    }
    assert reasons(model, "nothing", "*.1.*")["body.1.0"] == "kept by host pattern '*.1.*'"


def test_a_pattern_that_matches_nothing_is_found():
    candidates = survey(nn.Sequential(nn.Linear(2, 2)), ["fc", "0"])

    assert unmatched([c.name for c in candidates], ["fc", "0"]) == ["fc"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name_and_number(bad):
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].weight.data[0] = bad

    with pytest.raises(DataError, match="layer 0: 2 of 6 weights are NaN or infinite"):
        survey(model, [])


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyBatchNorm2d()])
def test_a_lazy_layer_is_refused_before_it_has_weights(lazy):
    with pytest.raises(UsageError, match=r"0\.\w+ is lazy and has no values yet; call the model once"):
        check_initialized(nn.Sequential(lazy))


@pytest.mark.filterwarnings("ignore:.*quantiz.*", "ignore:.*torch.ao.*", "ignore:.*TypedStorage.*")
def test_quantised_layers_are_listed_with_the_reason(open_backend):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(4, 2, 1)).eval()
    mixed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})

    placement = pimcal.deploy(mixed, open_backend("ideal")).placement

    assert [row.name for row in placement.layers if row.on_device] == ["2"]
    assert "Linear keeps its weights quantised" in {row.name: row.reason for row in placement.layers}["0"]
    whole = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    with pytest.raises(
        ConfigError, match=r"0: Linear keeps its weights quantised.*deploy the model that was quantised"
    ):
        pimcal.deploy(whole, open_backend("ideal"))


def test_weights_in_buffers_are_listed(open_backend):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("qweight", torch.ones(4, 4, dtype=torch.int8))

        def forward(self, x):
            return x @ self.qweight.float()

    model = nn.Sequential(Packed(), nn.Linear(4, 2))

    assert reasons(model) == {"0": "Packed uses its weights in its own code", "1": ""}
