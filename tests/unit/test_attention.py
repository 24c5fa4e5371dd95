"""Multi-head attention on a device: its results are torch's own, and its projections are device layers."""

import copy

import pytest
import torch
from torch import nn

import pimcal
from pimcal.attention import own_attention
from pimcal.opened import named_layers, open_layers

PARTS = {"q_proj", "k_proj", "v_proj", "out_proj"}


def close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def causal(length):
    return nn.Transformer.generate_square_subsequent_mask(length)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 6, "vdim": 5},
        {"kdim": 6, "vdim": 5, "batch_first": True, "add_bias_kv": True, "bias": False},
    ],
)
def test_every_kind_of_attention_gives_torchs_results(open_backend, backend, options):
    layer = nn.MultiheadAttention(8, 2, **options).eval()
    shape = (3, 4) if options.get("batch_first") else (4, 3)
    query, key, value = (torch.randn(*shape, width or 8) for width in (8, layer.kdim, layer.vdim))

    net = pimcal.deploy(layer, open_backend(backend))

    close(net(query, key, value), layer(query, key, value))
    assert {row.name for row in net.placement.layers if row.on_device} == PARTS
    # a query, a key, a value and an output vector for each of 3 x 4 positions
    assert net.device.cost.mvms == 4 * 12


@torch.no_grad()
@pytest.mark.parametrize(
    "call",
    [
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": causal(4)},
        {"attn_mask": causal(4), "is_causal": True, "need_weights": False},
        {"attn_mask": torch.randn(6, 4, 4)},
        {"attn_mask": torch.eye(4, dtype=torch.bool).logical_not()},
        {"key_padding_mask": torch.tensor([[False, False, False, True]] * 3)},
        {"key_padding_mask": torch.tensor([[False] * 3 + [True]] * 3), "attn_mask": causal(4) < 0},
    ],
)
def test_every_mask_and_kind_of_weights_gives_torchs_results(open_backend, call):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 4, 8)

    net = pimcal.deploy(layer, open_backend("ideal"))

    close(net(x, x, x, **call), layer(x, x, x, **call))


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_single_sequence_without_a_batch_dimension(open_backend, batch_first):
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    x, memory = torch.randn(4, 8), torch.randn(7, 8)

    net = pimcal.deploy(layer, open_backend("ideal"))

    close(net(x, memory, memory), layer(x, memory, memory))


@torch.no_grad()
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_encoder_is_computed_on_the_device_and_not_by_torchs_fast_path(open_backend, norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])

    net = pimcal.deploy(model, open_backend("ideal"))

    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)
    assert net.device.cost.mvms == 2 * 15 * 6  # four projections and two linear layers a position
    masked = net(x, src_key_padding_mask=padding)[~padding]
    torch.testing.assert_close(masked, model(x, src_key_padding_mask=padding)[~padding], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_whole_transformer_with_cross_attention(open_backend):
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).eval()
    source, target = torch.randn(2, 5, 8), torch.randn(2, 3, 8)

    net = pimcal.deploy(model, open_backend("ideal", {"host": ["decoder.layers.*.multihead_attn"]}))

    expected = model(source, target, tgt_mask=causal(3))
    torch.testing.assert_close(net(source, target, tgt_mask=causal(3)), expected, rtol=1e-4, atol=1e-5)
    reasons = {row.name: row.reason for row in net.placement.layers}
    assert all("multihead_attn" in reasons[f"decoder.layers.0.multihead_attn.{part}"] for part in PARTS)
    assert not any(reasons[f"decoder.layers.0.self_attn.{part}"] for part in PARTS)


@torch.no_grad()
def test_the_fast_path_is_left_as_it_was(open_backend):
    net = pimcal.deploy(nn.MultiheadAttention(8, 2), open_backend("ideal"))
    x = torch.randn(4, 3, 8)

    net(x, x, x)

    assert torch.backends.mha.get_fastpath_enabled()
    with own_attention():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


@torch.no_grad()
def test_noise_reaches_every_projection(open_backend):
    layer = nn.MultiheadAttention(8, 2).eval()
    x = torch.randn(4, 3, 8)
    clean = layer(x, x, x)[0]
    for part in PARTS:
        host = sorted(PARTS - {part})
        net = pimcal.deploy(layer, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.5, "host": host}))
        assert not torch.allclose(net(x, x, x)[0], clean, rtol=1e-3), part


@torch.no_grad()
def test_copies_have_projections_of_their_own(open_backend):
    layer, x = nn.MultiheadAttention(8, 2).eval(), torch.randn(4, 3, 8)
    net = pimcal.deploy(layer, open_backend("ideal"))

    twin = copy.deepcopy(net)

    close(twin(x, x, x), layer(x, x, x))
    assert twin.module.forward.attention is twin.module
    assert twin.module.forward.parts["q_proj"].owner is twin.module
    assert twin.layers["q_proj"] is not net.layers["q_proj"]


def test_the_deployed_model_itself_is_not_opened(open_backend):
    layer = nn.MultiheadAttention(8, 2)

    pimcal.deploy(layer, open_backend("ideal"))

    assert "forward" not in vars(layer)


def test_layers_are_named_once_and_in_the_models_order():
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "attention": nn.MultiheadAttention(4, 2), "last": nn.ReLU()})
    open_layers(model)

    names = [name for name, _ in named_layers(model)]

    parts = [f"attention.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert names == ["", "first", "attention", *parts, "last"]


def test_an_attention_that_is_used_twice_is_named_once():
    attention = nn.MultiheadAttention(4, 2)
    model = nn.ModuleList([attention, attention])
    open_layers(model)

    assert [name for name, _ in named_layers(model)] == [
        "",
        "0",
        *(f"0.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj")),
    ]
