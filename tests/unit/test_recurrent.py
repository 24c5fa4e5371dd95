"""LSTM, GRU and RNN on a device: results are torch's own, and each of their matrices is a device layer."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import pimcal
from pimcal.calibration.estimate import estimate
from pimcal.calibration.run import calibrate

RELU = {"nonlinearity": "relu"}
KINDS = [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, RELU)]
CELLS = [(nn.LSTMCell, {}), (nn.GRUCell, {}), (nn.RNNCell, {}), (nn.RNNCell, RELU)]


def leaves(value):
    """All tensors of a result, in order; a packed sequence with what tells how it is packed."""
    if isinstance(value, PackedSequence):
        return [*value]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, tuple) else [value]


def structure(value):
    if isinstance(value, tuple):
        return type(value), [structure(part) for part in value]
    return value if value is None else (value.shape, value.stride(), value.dtype)


def same(actual, expected):
    assert structure(actual) == structure(expected)
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def hidden_state(layer, n=None):
    """Random states of every width that a layer wants; for one sequence without a batch dimension with `n` None."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = () if n is None else (n,)
    h = torch.randn(count, *batch, layer.proj_size or layer.hidden_size)
    return (h, torch.randn(count, *batch, layer.hidden_size)) if isinstance(layer, nn.LSTM) else h


def on_device(net):
    return [row.name for row in net.placement.layers if row.on_device]


OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "bias", "batch_first"), values, strict=True))
    for values in itertools.product((1, 3), (False, True), (True, False), (False, True))
]


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
@pytest.mark.parametrize(("kind", "own"), KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_kind_of_recurrent_layer_gives_torchs_results(open_backend, backend, kind, own, options):
    layer = kind(3, 5, **own, **options).eval()
    x = torch.randn(4, 6, 3)
    hx = hidden_state(layer, 4 if layer.batch_first else 6)

    net = pimcal.deploy(layer, open_backend(backend))

    same(net(x), layer(x))
    same(net(x, hx), layer(x, hx))
    same(net(x, hx=hx), layer(x, hx))
    assert on_device(net) == [name for name, p in layer.named_parameters() if p.dim() == 2]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", [o for o in OPTIONS if o["num_layers"] == 3])
def test_a_projected_lstm_gives_torchs_results(open_backend, options):
    layer = nn.LSTM(3, 5, proj_size=2, dropout=0.5, **options).eval()
    x = torch.randn(4, 6, 3)
    hx = hidden_state(layer, 4 if layer.batch_first else 6)

    net = pimcal.deploy(layer, open_backend("ideal"))

    same(net(x, hx), layer(x, hx))
    assert "weight_hr_l2" in on_device(net)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "own"), KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_single_sequence_without_a_batch_dimension(open_backend, kind, own, batch_first):
    layer = kind(3, 5, 2, bidirectional=True, batch_first=batch_first, **own).eval()
    x, hx = torch.randn(4, 3), hidden_state(layer)

    net = pimcal.deploy(layer, open_backend("ideal"))

    same(net(x), layer(x))
    same(net(x, hx), layer(x, hx))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "own"), [*KINDS, (nn.LSTM, {"proj_size": 2})])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[6, 6, 4, 1], [1, 6, 4, 6], [3, 3, 3, 3]])
def test_packed_sequences_of_all_lengths_and_orders(open_backend, kind, own, bidirectional, lengths):
    layer = kind(3, 5, 2, bidirectional=bidirectional, **own).eval()
    packed = pack_sequence([torch.randn(length, 3) for length in lengths], enforce_sorted=False)
    hx = hidden_state(layer, len(lengths))

    net = pimcal.deploy(nn.ModuleDict({"layer": layer}), open_backend("ideal"))
    deployed = net.module["layer"]

    with net.session():
        same(deployed(packed), layer(packed))
        same(deployed(packed, hx), layer(packed, hx))


@torch.no_grad()
def test_sorted_packed_sequences_keep_that_they_have_no_indices(open_backend):
    layer = nn.LSTM(3, 5, batch_first=True).eval()
    packed = pack_padded_sequence(torch.randn(3, 6, 3), [6, 4, 1], batch_first=True)

    net = pimcal.deploy(nn.ModuleDict({"layer": layer}), open_backend("ideal"))

    with net.session():
        output = net.module["layer"](packed)
    assert output[0].sorted_indices is None
    same(output, layer(packed))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "own"), CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), ()])
def test_every_kind_of_cell_gives_torchs_results(open_backend, kind, own, bias, shape):
    cell = kind(3, 5, bias=bias, **own).eval()
    x, h = torch.randn(*shape, 3), torch.randn(*shape, 5)
    hx = (h, torch.randn(*shape, 5)) if kind is nn.LSTMCell else h

    net = pimcal.deploy(cell, open_backend("ideal"))

    same(net(x), cell(x))
    same(net(x, hx), cell(x, hx))
    assert on_device(net) == ["weight_ih", "weight_hh"]


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_torch_refuses_is_refused(open_backend, kind):
    layer, cell = kind(3, 5).eval(), getattr(nn, f"{kind.__name__}Cell")(3, 5).eval()
    states = (lambda *shape: (torch.zeros(*shape),) * 2) if kind is nn.LSTM else torch.zeros
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    wrong = [
        (layer, torch.randn(4, 6, 2), None),  # features
        (layer, torch.randn(4, 6, 3), states(1, 1, 5)),  # the state of one sequence for six
        (layer, packed, states(1, 1, 5)),
        (layer, torch.randn(0, 6, 3), None),  # no time step
        (cell, torch.randn(4, 3), states(1, 5)),
        (cell, torch.randn(4, 3), states(4, 1)),
    ]
    net = pimcal.deploy(nn.ModuleDict({"layer": layer, "cell": cell}), open_backend("ideal"))

    for module, x, hx in wrong:
        deployed = net.module["layer" if module is layer else "cell"]
        with pytest.raises(RuntimeError):
            module(x, hx)
        with net.session(), pytest.raises(RuntimeError):
            deployed(x, hx)


@torch.no_grad()
def test_an_empty_batch(open_backend):
    layer = nn.GRU(3, 5).eval()

    same(pimcal.deploy(layer, open_backend("ideal"))(torch.randn(4, 0, 3)), layer(torch.randn(4, 0, 3)))


@torch.no_grad()
def test_inputs_of_all_time_steps_are_one_product_and_hidden_states_are_one_each(open_backend):
    layer = nn.LSTM(3, 5, 2, bidirectional=True).eval()
    net = pimcal.deploy(layer, open_backend("ideal"))
    calls = {}
    for name, module in net.module.forward.parts.items():
        module.register_forward_hook(lambda _m, _x, y, name=name: calls.setdefault(name, []).append(len(y)))

    net(torch.randn(4, 6, 3))

    assert calls["weight_ih_l1_reverse"] == [24]
    assert calls["weight_hh_l1_reverse"] == [6] * 4
    assert net.device.cost.mvms == 8 * 24


class Classifier(nn.Module):
    """A sentence to a class, as tutorials have it: `lengths` are those of the padded sequences."""

    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = kind(8, 16, batch_first=True, **options)
        self.fc = nn.Linear(16, 4)

    def forward(self, tokens, lengths=None):
        x = self.embed(tokens)
        if lengths is None:
            return self.fc(self.rnn(x)[0][:, -1])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.fc(output[torch.arange(len(x)), lengths - 1])


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_padding_does_not_change_a_sequences_result_on_a_device_with_converters(open_backend, kind):
    model = Classifier(kind).eval()
    net = pimcal.deploy(model, pimcal.open_device("gaussian_8bit", {"device.eta0": 0.0}))
    tokens, lengths = torch.randint(0, 20, (3, 9)), torch.tensor([5, 9, 2])

    together = net(tokens, lengths)

    for row, length in enumerate(lengths):
        alone = net(tokens[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    error = (together - model(tokens, lengths)).norm() / model(tokens, lengths).norm()
    assert 1e-6 < error < 0.1  # eight bits, and no more


@torch.no_grad()
@pytest.mark.parametrize("part", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"])
def test_noise_reaches_every_matrix(open_backend, part):
    layer, x = nn.LSTM(3, 5, proj_size=2).eval(), torch.randn(4, 6, 3)
    host = [name for name, p in layer.named_parameters() if p.dim() == 2 and name != part]

    net = pimcal.deploy(layer, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.5, "host": host}))

    assert on_device(net) == [part]
    assert not torch.allclose(net(x)[0], layer(x)[0], rtol=1e-3)


def test_host_patterns_name_a_layer_or_one_of_its_matrices(open_backend):
    model = nn.ModuleDict({"rnn": nn.GRU(3, 4, 2, bidirectional=True), "fc": nn.Linear(8, 2)})

    def kept(*host):
        return on_device(pimcal.deploy(model, open_backend("ideal", {"host": [*host]})))

    assert kept("rnn") == ["fc"]
    assert kept("rnn.weight_hh_*", "fc") == [f"rnn.weight_ih_l{i}{end}" for i in (0, 1) for end in ("", "_reverse")]
    assert kept("*_l0*", "*_reverse") == ["rnn.weight_ih_l1", "rnn.weight_hh_l1", "fc"]


@torch.no_grad()
def test_the_estimate_knows_every_time_step(open_backend):
    net = pimcal.deploy(Classifier(num_layers=2).eval(), open_backend("ideal"))
    tokens = torch.randint(0, 20, (6, 9))

    predicted = estimate(net, tokens, images=6)
    net(tokens)

    assert predicted.mvms == net.device.cost.mvms == 6 * (4 * 9 + 1)


def test_affine_calibration_corrects_an_lstm_classifier():
    torch.manual_seed(0)
    model, generator = Classifier().eval(), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 20, (400, 12), generator=generator)
    with torch.no_grad():
        clean = model(tokens[200:])
    overrides = {"device.eta0": 0.05, "references.offset": 0, "references.gain": 0}
    net = pimcal.deploy(model, pimcal.open_device("gaussian_add", overrides))

    def error():
        with torch.no_grad():
            return float((net(tokens[200:]) - clean).square().mean())

    before = error()
    record = calibrate(net, tokens[:200].split(50), "affine")
    net.apply(record)

    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "fc"} <= record.corrections.keys()
    assert error() < before / 2


def test_an_lstm_is_computed_and_calibrated_on_a_board():
    torch.manual_seed(0)
    model, tokens = Classifier().eval(), torch.randint(0, 20, (24, 6))
    with torch.no_grad():
        clean = model(tokens)
    with pimcal.open_device("board_virtual") as device:
        net = pimcal.deploy(model, device)
        assert on_device(net) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "fc"]
        net.apply(calibrate(net, tokens[:16].split(8), "affine"))
        with torch.no_grad():
            error = (net(tokens) - clean).norm() / clean.norm()
    assert 1e-4 < error < 0.2


@pytest.mark.parametrize("method", ["paired", "affine"])
def test_batches_of_sequences_of_other_lengths_are_calibrated_together(method, open_backend):
    class Normed(Classifier):
        def __init__(self):
            super().__init__(nn.GRU, num_layers=2)
            self.norm = nn.BatchNorm1d(16)
            self.fc = nn.Sequential(self.norm, nn.Linear(16, 4))

    model = Normed().eval()
    batches = [torch.randint(0, 20, (8, length)) for length in (5, 9, 2)]
    net = pimcal.deploy(model, open_backend("ideal"))

    record = calibrate(net, batches, method)

    net.apply(record)
    with torch.no_grad():
        for batch in batches:  # on an ideal device there is nothing to correct
            torch.testing.assert_close(net(batch), model(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_computed_and_placed(open_backend, wrap, graph):
    layer = wrap(nn.LSTM(3, 5, 2), "weight_hh_l0").eval()
    x = torch.randn(4, 6, 3)
    with torch.set_grad_enabled(graph):
        layer(x)  # keeps the weights that it computed

    net = pimcal.deploy(layer, open_backend("ideal"))
    twin = copy.deepcopy(net)

    with torch.no_grad():
        same(net(x), layer(x))
        same(twin(x), layer(x))
        assert "weight_hh_l0" in on_device(net)
        net.module.parametrizations.weight_hh_l0  # noqa: B018 - the copy is parametrized as its model
        assert parametrize.is_parametrized(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_a_hook_computes_stay_and_are_right(open_backend):
    with torch.no_grad():
        layer = nn.utils.weight_norm(nn.LSTM(3, 5), "weight_hh_l0").eval()
        layer.weight_hh_l0_g *= 2  # as a checkpoint does: the weight itself is computed at the next call
    x = torch.randn(4, 6, 3)

    net = pimcal.deploy(layer, open_backend("ideal"))

    with torch.no_grad():
        same(net(x), layer(x))
    reasons = {row.name: row.reason for row in net.placement.layers}
    assert "a hook computes its weights anew" in reasons["weight_hh_l0"]
    assert reasons["weight_ih_l0"] == ""


def test_a_forward_of_its_own_is_run_and_that_of_an_instance_is_left_alone(open_backend):
    class Own(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    model = nn.ModuleDict({"class": Own(3, 5), "instance": nn.GRU(3, 5), "other": nn.Linear(2, 2)}).eval()
    model["instance"].forward = lambda x: x

    net = pimcal.deploy(model, open_backend("ideal"))

    assert on_device(net) == ["class.weight_ih_l0", "class.weight_hh_l0", "other"]
    x = torch.randn(4, 6, 3)
    with torch.no_grad(), net.session():
        same(net.module["class"](x), model["class"](x))
        same(net.module["instance"](x), x)


@torch.no_grad()
def test_copies_have_matrices_of_their_own_and_the_model_is_not_opened(open_backend):
    layer, x = nn.LSTM(3, 5).eval(), torch.randn(4, 6, 3)
    net = pimcal.deploy(layer, open_backend("ideal"))

    twin = copy.deepcopy(net)

    same(twin(x), layer(x))
    assert twin.module.forward.parts["weight_ih_l0"].owner is twin.module
    assert "forward" not in vars(layer)


@torch.no_grad()
def test_a_state_is_saved_and_restored(tmp_path):
    layer, x = nn.LSTM(3, 5).eval(), torch.randn(4, 6, 3)
    nets = [pimcal.deploy(layer, pimcal.open_device("gaussian_add", {"device.seed": seed})) for seed in (1, 2)]
    assert not torch.equal(nets[0](x)[0], nets[1](x)[0])

    torch.save(nets[0].state_dict(), tmp_path / "state.pt")
    nets[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    same(nets[1](x), nets[0](x))
