"""Public architectures by `library:name`, built without weights: the network, and inputs that it takes.

Of timm the smallest of a family, of transformers small configurations, of ultralytics (AGPL-3.0; imported only where
it is installed and asked for) the smallest of each YAML file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.surgery.networks import CLASSES

SEEN = 21  # classes of segmentation networks
NOTHING = r"(?!)"
TIMM = """
beit_base_patch16_224 botnet26t_256 halonet26t lambda_resnet26t lamhalobotnet50ts_256 bat_resnext26ts eca_resnext26ts
gcresnext26ts gernet_s mobileone_s0 regnetz_b16 repvgg_a0 resnet50_clip resnet51q resnet32ts seresnext26ts
cait_xxs24_224 coat_lite_tiny coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms convnext_atto convnextv2_atto
cpubone_nano crossvit_9_240 crossvit_tiny_240 csatv2 cs3darknet_focus_s cspresnet50 cspresnext50 darknet17
cspnext_tiny davit_tiny deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121
densenetblur121d dla34 dla46x_c dla60_res2net dpn48b dpn68 edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 efficientnet_b0_gn efficientnet_b0_g16_evos efficientnet_cc_b0_4e efficientnet_es efficientnet_lite0
efficientnetv2_rw_t fbnetc_100 mixnet_s mnasnet_small mobilenetv1_100 efficientvim_m1 efficientvit_b0 efficientvit_l1
efficientvit_m0 eva02_tiny_patch14_224 vit_small_patch16_rope_224 vit_small_patch16_dinov3 fasternet_t0 fastvit_t8
fastvit_sa12 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny
hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lcnetv2_small levit_128s levit_conv_128s lowformer_b0 mambaout_femto coatnet_pico_rw_224
coatnext_nano_rw_224 maxvit_pico_rw_256 maxxvitv2_nano_rw_256 caformer_s18 convformer_s18 poolformer_s12
poolformerv2_s12 gmixer_24_224 gmlp_ti16_224 mixer_s32_224 resmlp_12_224 fbnetv3_b lcnet_050 mobilenetv3_small_050
mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small
dm_nfnet_f0 eca_nfnet_l0 nf_regnet_b0 nf_resnet26 pit_ti_224 pit_ti_distilled_224 pvt_v2_b0 pvt_v2_b2_li rdnet_tiny
regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvit_m0_9 res2net50_14w_8s res2next50 resnest14d resnet10t
resnet18 resnet50_gn resnetaa34d resnetblur18 resnetrs50 ecaresnet26t seresnet18 resnext50_32x4d resnetv2_18
resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnetv2_50x1_bit rexnet_100 rexnetr_100 selecsls42
legacy_seresnet18 legacy_seresnext26_32x4d sequencer2d_s shvit_s1 skresnet18 skresnext50_32x4d starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small vgg11 vgg11_bn
visformer_tiny flexivit_small vit_small_patch32_224 vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
vit_tiny_r_s16_p8_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224 eca_vovnet39b ese_vovnet19b_slim_dw
legacy_xception xception41 xception41p xcit_nano_12_p16_224
""".split()
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
VIDEO = ("mc3_18", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn", "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
"""Their backbones: what comes after is control flow over boxes."""
YAMLS = """
yolov3-tiny yolov5n yolov6n yolov8n yolov8n-cls yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-ghost yolov8n-p2 yolov9t
yolov10n yolo11n yolo11n-cls yolo11n-seg yolo11n-pose yolo11n-obb yolo12n yolo12n-cls yolo26n yolo26n-cls yolo26n-seg
rtdetr-resnet50
""".split()
_VIT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 64,
    "patch_size": 8,
}  # fmt: skip
_STAGES = {"hidden_sizes": [32, 64], "depths": [1, 1]}
_PVT = {
    "image_size": 64, "num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [32, 64, 64, 64], "depths": [1, 1, 1, 1],
}  # fmt: skip
_PYRAMID = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
_WINDOWS = {"image_size": 64, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "beit": {**_VIT, "use_relative_position_bias": True},
    "bit": {**_STAGES, "embedding_size": 32, "layer_type": "preactivation", "num_groups": 8},
    "clip": {"vision_config": {**_VIT, "projection_dim": 32}},
    "convnext": {**_STAGES, "num_stages": 2},
    "convnextv2": {**_STAGES, "num_stages": 2},
    "cvt": {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "data2vec-vision": {**_VIT, "use_relative_position_bias": True},
    "deit": _VIT,
    "dinov2": {**_VIT, "mlp_ratio": 2},
    "dinov2_with_registers": {**_VIT, "mlp_ratio": 2},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640, "image_size": 64},
    "focalnet": {"image_size": 64, "embed_dim": 32, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "hgnet_v2": {},
    "hiera": {
        "image_size": [64, 64], "embed_dim": 32, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 8],
        "masked_unit_size": [8, 8],
    },
    "ijepa": _VIT,
    "levit": {
        "image_size": 64, "hidden_sizes": [32, 64, 64], "num_attention_heads": [2, 4, 4], "depths": [1, 1, 1],
        "key_dim": [16, 16, 16],
    },
    "metaclip_2": {"vision_config": {**_VIT, "projection_dim": 32}},
    "mobilenet_v1": {"depth_multiplier": 0.5},
    "mobilenet_v2": {"depth_multiplier": 0.5},
    "mobilevit": {"image_size": 64},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.5},
    "poolformer": _PYRAMID,
    "pvt": _PVT,
    "pvt_v2": _PVT,
    "regnet": {**_STAGES, "embedding_size": 32, "groups_width": 8},
    "resnet": {**_STAGES, "embedding_size": 32},
    "segformer": {"hidden_sizes": [32, 64, 64, 64], "num_attention_heads": [1, 2, 4, 4], "depths": [1, 1, 1, 1]},
    "siglip": {"vision_config": _VIT},
    "siglip2": {"vision_config": {**_VIT, "num_patches": 64}},
    "swiftformer": {"embed_dims": [16, 32, 64, 64], "depths": [1, 1, 1, 1]},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "textnet": {},
    "vit": _VIT,
    "vit_msn": _VIT,
}  # fmt: skip
SIZES = {"levit": 64, "cvt": 64, "swiftformer": 64}


@dataclass(frozen=True)
class Network:
    """`outputs`: what the names of modules match that make the network's outputs."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: str = NOTHING


class Whole(nn.Module):
    """A network that answers with the list of its maps in place of a dict of the library's own class."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.inner(x).values())


class First(nn.Module):
    """What a detector is deployed for: the boxes, without the maps and the raw answers that it gives beside them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        answer = self.inner(x)
        return answer if isinstance(answer, Tensor) else answer[0]


def images(side: int, *frames: int) -> tuple[Tensor]:
    return (torch.randn((2, 3, *frames, side, side), generator=torch.Generator().manual_seed(0)),)


def of_torchvision(name: str) -> Network:
    from torchvision.models import get_model

    more = {"weights": None, "weights_backbone": None}
    if name in SEGMENTATION:
        return Network(
            get_model(name, **more, num_classes=SEEN, aux_loss=False), images(224), r"classifier\.4|_classifier$"
        )
    if name in DETECTION:
        return Network(Whole(get_model(name, **more).backbone), images(224), r"layer_blocks|extra\.|\.p[67]")
    if name in VIDEO:
        side, frames = (224, 16) if name in ("mvit_v2_s", "s3d") else (64, 8)
        return Network(get_model(name, num_classes=CLASSES), images(side, frames))
    still = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return Network(get_model(name, **still), images(224))


def of_timm(name: str) -> Network:
    import timm

    model: Any = timm.create_model(name, num_classes=CLASSES)
    return Network(model, images(model.default_cfg["input_size"][-1]))


def of_transformers(name: str) -> Network:
    import transformers

    auto: Any = transformers
    config = auto.AutoConfig.for_model(name, **TRANSFORMERS[name])
    config.num_labels, config.architectures = CLASSES, []
    side = SIZES.get(name, 64)
    return Network(auto.AutoModelForImageClassification.from_config(config), images(side))


def of_ultralytics(name: str) -> Network:
    import ultralytics

    library: Any = ultralytics
    model: nn.Module = library.YOLO(f"{name}.yaml", verbose=False).model
    return Network(
        First(model), images(224 if name.endswith("-cls") else 320), r"model\.\d+\.(one2one_)?cv\d\.\d\.2$|_embed|dec_"
    )


LIBRARIES: Mapping[str, Callable[[str], Network]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
    "ultralytics": of_ultralytics,
}


def specs() -> list[str]:
    """Every `library:name` of the libraries that are installed."""
    import torchvision

    names = {
        "torchvision": [*torchvision.models.list_models(module=torchvision.models), *SEGMENTATION, *VIDEO, *DETECTION],
        "timm": TIMM, "transformers": list(TRANSFORMERS), "ultralytics": YAMLS,
    }  # fmt: skip
    return [f"{library}:{name}" for library in LIBRARIES if find_spec(library) for name in names[library]]


def network(spec: str) -> Network:
    library, _, name = spec.partition(":")
    return LIBRARIES[library](name)
