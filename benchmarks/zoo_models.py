"""The architectures of `zoo.py`: small members of each family, with random weights and small inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Architecture:
    """`make` gives the model; `inputs` keyword or positional arguments for it, the first that it accepts of several."""

    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Callable[[], dict[str, Any] | tuple[Any, ...]], ...]


def _images(*sizes: int, channels: int = 3) -> tuple[Callable[[], tuple[Tensor]], ...]:
    return tuple(partial(_image, size, channels) for size in sizes)


def _image(size: int, channels: int) -> tuple[Tensor]:
    return (torch.randn(2, channels, size, size),)


# torch itself

_RECURRENT = ("LSTM", "GRU", "RNN")


def _torch() -> Iterator[Architecture]:
    def sequence() -> tuple[Tensor]:
        return (torch.randn(9, 2, 32),)

    for kind in _RECURRENT:
        options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
        yield Architecture("torch", kind, partial(getattr(nn, kind), 32, 48, **options), (sequence,))
    yield Architecture("torch", "LSTM_projected", partial(nn.LSTM, 32, 48, proj_size=16), (sequence,))
    yield Architecture("torch", "Transformer", partial(nn.Transformer, 32, 4, 2, 2, 64), (_pair,))


def _pair() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 2, 32), torch.randn(5, 2, 32)


# torchvision

_TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
]
_TORCHVISION_SEGMENTATION = [
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
]
_TORCHVISION_VIDEO = ["mc3_18", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t"]
_TORCHVISION_SIZES = {"maxvit_t": 224, "vit_b_32": 224, "inception_v3": 96, "alexnet": 96}


def _torchvision() -> Iterator[Architecture]:
    import torchvision.models as zoo

    def make(name: str, **options: Any) -> nn.Module:
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "aux_logits": False}
        return zoo.get_model(name, weights=None, **options)

    for name in _TORCHVISION:
        yield Architecture("torchvision", name, partial(make, name), _images(_TORCHVISION_SIZES.get(name, 64)))
    for name in _TORCHVISION_SEGMENTATION:
        yield Architecture("torchvision", name, partial(make, name, weights_backbone=None), _images(64))
    for name in _TORCHVISION_VIDEO:
        yield Architecture("torchvision", name, partial(make, name), (partial(_clip, 64), partial(_clip, 224)))


def _clip(size: int) -> tuple[Tensor]:
    return (torch.randn(1, 3, 16, size, size),)


# timm

_TIMM = [
    "beit_base_patch16_224",
    "botnet26t_256",
    "halonet26t",
    "lambda_resnet26t",
    "gernet_s",
    "repvgg_a0",
    "mobileone_s0",
    "resnet26t",
    "gcresnext26ts",
    "bat_resnext26ts",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "crossvit_9_240",
    "csatv2",
    "cs3darknet_s",
    "cspresnet50",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla34",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mixnet_s",
    "tf_mixnet_s",
    "mnasnet_small",
    "mobilenetv2_050",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_lrf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "ghostnetv2_100",
    "ghostnetv3_050",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "levit_128s",
    "lowformer_b0",
    "mambaout_femto",
    "coatnet_0_rw_224",
    "maxvit_tiny_rw_224",
    "coatnext_nano_rw_224",
    "caformer_s18",
    "poolformer_s12",
    "convformer_s18",
    "gmlp_ti16_224",
    "mixer_s32_224",
    "resmlp_12_224",
    "fbnetv3_b",
    "lcnet_035",
    "tf_mobilenetv3_small_minimal_100",
    "mobilenetv4_conv_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "mvitv2_tiny",
    "nest_tiny",
    "nextvit_small",
    "nf_resnet26",
    "eca_nfnet_l0",
    "nf_regnet_b0",
    "dm_nfnet_f0",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "repghostnet_050",
    "repvit_m0_9",
    "res2net50_26w_4s",
    "resnest14d",
    "resnet10t",
    "resnet18d",
    "seresnext26d_32x4d",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "twins_pcpvt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_relpos_small_patch16_224",
    "volo_d1_224",
    "ese_vovnet19b_slim",
    "xception41",
    "xcit_nano_12_p16_224",
]


def _timm() -> Iterator[Architecture]:
    import timm

    for name in _TIMM:
        yield Architecture("timm", name, partial(timm.create_model, name), _images(64, 224, 240, 256, 288, 320))


# transformers, from configurations

_SMALL: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_KEY_VALUE = {"num_key_value_heads": 2, "head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SEQUENCES: dict[str, dict[str, Any]] = {
    "d_model": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
                "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
}  # fmt: skip
_TEXT: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 32}, "bert": {}, "bloom": {}, "camembert": {}, "codegen": {"rotary_dim": 8},
    "cohere": _KEY_VALUE, "convbert": {"embedding_size": 64}, "ctrl": {"dff": 128}, "data2vec-text": {},
    "deberta": {}, "deberta-v2": {}, "distilbert": {}, "electra": {"embedding_size": 32}, "ernie": {}, "esm": {},
    "falcon": {}, "fnet": {}, "gemma": _KEY_VALUE, "gemma2": _KEY_VALUE, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]}, "gpt_neox": {}, "gptj": {"rotary_dim": 8},
    "granite": _KEY_VALUE, "gpt_oss": {**_KEY_VALUE, **_EXPERTS}, "ibert": {}, "layoutlm": {}, "llama": _KEY_VALUE,
    "mamba": {"state_size": 8}, "megatron-bert": {}, "mistral": _KEY_VALUE, "mixtral": {**_KEY_VALUE, **_EXPERTS},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}, "mpnet": {}, "mpt": {},
    "nystromformer": {"segment_means_seq_len": 16, "num_landmarks": 16}, "olmo": _KEY_VALUE,
    "olmoe": {**_KEY_VALUE, **_EXPERTS}, "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64}, "persimmon": {},
    "phi": {}, "phi3": _KEY_VALUE, "qwen2": _KEY_VALUE, "qwen2_moe": {**_KEY_VALUE, **_EXPERTS,
    "shared_expert_intermediate_size": 32}, "qwen3": _KEY_VALUE, "qwen3_moe": {**_KEY_VALUE, **_EXPERTS},
    "rembert": {"input_embedding_size": 32}, "roberta": {}, "roformer": {"embedding_size": 64}, "squeezebert": {
    "embedding_size": 64}, "stablelm": _KEY_VALUE, "starcoder2": _KEY_VALUE, "xglm": {"ffn_dim": 128, "d_model": 64},
    "xlm": {"emb_dim": 64, "n_heads": 4, "n_layers": 2}, "xlm-roberta": {}, "xlnet": {"d_model": 64, "n_head": 4,
    "n_layer": 2, "d_inner": 128, "max_position_embeddings": None}, "yoso": {},
}  # fmt: skip
_PAIRS = {
    "bart": "d_model", "blenderbot": "d_model", "m2m_100": "d_model", "marian": "d_model", "mbart": "d_model",
    "pegasus": "d_model", "t5": "t5", "mt5": "t5", "umt5": "t5", "switch_transformers": "t5",
}  # fmt: skip
_STAGES = dict.fromkeys(_SMALL)  # networks in stages have lists instead
_VISION: dict[str, dict[str, Any]] = {
    "beit": {}, "convnext": {**_STAGES, "depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]}, "deit": {},
    "data2vec-vision": {}, "dinov2": {}, "mobilenet_v1": {}, "mobilenet_v2": {}, "poolformer": {}, "pvt": _STAGES,
    "regnet": {**_STAGES, "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1],
               "groups_width": 8},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, "segformer": _STAGES,
    "swin": {**_STAGES, "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 2},
    "vit": {}, "vit_mae": {},
}  # fmt: skip
_AUDIO: dict[str, dict[str, Any]] = {
    kind: {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    for kind in ("hubert", "wav2vec2", "wavlm", "unispeech")
}


def _transformers() -> Iterator[Architecture]:
    def add(kind: str, options: dict[str, Any], inputs: Callable[[], dict[str, Any]]) -> Architecture:
        return Architecture("transformers", kind, partial(_from_config, kind, options), (inputs,))

    for kind, options in _TEXT.items():
        yield add(kind, options, _tokens)
    for kind, family in _PAIRS.items():
        yield add(kind, _SEQUENCES[family], _token_pairs)
    for kind, options in _VISION.items():
        yield add(kind, {"image_size": 64, **options}, _pixels)
    for kind, options in _AUDIO.items():
        yield add(kind, options, _wave)
    yield add("whisper", {**_SEQUENCES["d_model"], "max_source_positions": 50, "max_target_positions": 32}, _spectrum)


def _from_config(kind: str, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    small = {key: value for key, value in {**_SMALL, **options}.items() if value is not None}
    config = AutoConfig.for_model(kind, **small)
    config.use_cache = False
    return AutoModel.from_config(config, attn_implementation="eager")


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 200, (2, 16))}


def _token_pairs() -> dict[str, Any]:
    return {**_tokens(), "decoder_input_ids": torch.randint(3, 200, (2, 9))}


def _pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 64, 64)}


def _wave() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 4000)}


def _spectrum() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": torch.randint(3, 200, (2, 9))}


# segmentation-models-pytorch

_DECODERS = [
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "UPerNet",
    "Segformer",
]
_ENCODERS = [
    "mobilenet_v2",
    "efficientnet-b0",
    "timm-regnetx_002",
    "mit_b0",
    "densenet121",
    "resnext50_32x4d",
    "xception",
]


def _segmentation() -> Iterator[Architecture]:
    import segmentation_models_pytorch as smp

    for decoder, encoder in (*((d, "resnet18") for d in _DECODERS), *(("Unet", e) for e in _ENCODERS)):
        make = partial(getattr(smp, decoder), encoder, encoder_weights=None)
        side = 128 if decoder == "PAN" else 64  # its pyramid pools eight times finer than the others' deepest map
        yield Architecture("smp", f"{decoder}_{encoder}", make, _images(side))
    yield Architecture(
        "smp",
        "DPT_vit",
        partial(smp.DPT, "tu-vit_tiny_patch16_224", encoder_weights=None, dynamic_img_size=True),
        _images(64, 224),
    )


LIBRARIES: dict[str, Callable[[], Iterator[Architecture]]] = {
    "torch": _torch,
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "smp": _segmentation,
}
QUICK = frozenset(
    [
        "torch/LSTM",
        "torch/GRU",
        "torch/LSTM_projected",
        "torch/Transformer",
        "torchvision/efficientnet_b0",
        "torchvision/mobilenet_v2",
        "torchvision/regnet_y_400mf",
        "torchvision/resnet18",
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/squeezenet1_1",
        "torchvision/swin_v2_t",
        "timm/convit_tiny",
        "timm/efficientformerv2_s0",
        "timm/ghostnet_050",
        "timm/levit_128s",
        "timm/nf_regnet_b0",
        "timm/tf_efficientnet_b0",
        "timm/vit_tiny_patch16_224",
        "transformers/bert",
        "transformers/gpt2",
        "transformers/mixtral",
        "transformers/xlnet",
        "transformers/t5",
        "transformers/wav2vec2",
        "smp/FPN_resnet18",
        "smp/DeepLabV3Plus_resnet18",
    ]
)
