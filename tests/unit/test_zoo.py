"""Some architectures of the libraries that people use: deployed on `ideal`, they compute what torch computes."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = {"smp": "segmentation_models_pytorch"}
# multiplied by plain modules: everything is on the device
WHOLE = [
    "torch/LSTM", "torch/GRU", "torch/LSTM_projected", "torch/Transformer", "torchvision/efficientnet_b0",
    "torchvision/mobilenet_v2", "torchvision/regnet_y_400mf", "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1", "timm/levit_128s", "timm/vit_tiny_patch16_224", "transformers/bert", "transformers/t5",
    "smp/FPN_resnet18",
]  # fmt: skip
OTHERS = [
    "torchvision/swin_v2_t", "timm/convit_tiny", "timm/efficientformerv2_s0", "timm/ghostnet_050", "timm/nf_regnet_b0",
    "timm/tf_efficientnet_b0", "transformers/mixtral", "transformers/wav2vec2", "transformers/xlnet",
]  # fmt: skip


@pytest.fixture
def zoo(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return importlib.import_module("zoo")


def examined(zoo, name):
    library = name.split("/")[0]
    pytest.importorskip(MODULES.get(library, library))
    found = next(a for a in zoo.LIBRARIES[library]() if f"{a.library}/{a.name}" == name)
    row = zoo.examine(found)
    assert "failed" not in row, row
    return row


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WHOLE)
def test_an_architecture_of_plain_modules_agrees_and_is_all_on_the_device(zoo, name):
    row = examined(zoo, name)

    assert row["agrees"], row
    assert row["weight_macs"] > 1000
    assert row["share"] == pytest.approx(1.0)
    assert row["uncounted"] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_an_architecture_that_multiplies_in_its_own_code_agrees_or_is_refused(zoo, name):
    row = examined(zoo, name)

    assert row.get("agrees") or row.get("refused"), row


def test_the_count_knows_products_of_weights_from_products_of_inputs(zoo):
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ConvTranspose2d(6, 5, 2, 2)
            self.fc, self.table = nn.Linear(5, 7), nn.Parameter(torch.randn(7, 3))

        def forward(self, x):
            y = self.fc(self.up(self.conv(x)).mean((2, 3)))  # [2, 7]
            scores = y @ y.t()  # inputs with inputs
            constants = self.table.t() @ self.table  # no input at all
            return scores @ (y @ self.table @ constants)

    x = torch.randn(2, 4, 8, 8)
    macs = zoo.Macs((x,))
    with torch.no_grad(), macs:
        Model()(x)

    conv, up, fc = 2 * 6 * 64 * 2 * 9, 2 * 64 * 6 * 5 * 4, 2 * 5 * 7
    assert macs.counts["weights"] == conv + up + fc + 2 * 7 * 3 + 2 * 3 * 3
    assert macs.counts["inputs"] == 2 * 2 * 7 + 2 * 2 * 3
