"""Every network of torchvision and a sample of timm's families: the law holds, and little is frozen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from pipeline.surgery import shrink
from tests.pipeline.surgery.laws import answers, parameters
from tests.pipeline.surgery.zoo import fill, kill, without_initialisation

pytestmark = pytest.mark.slow

CLASSIFIERS = models.list_models(module=models)
SEGMENTERS = models.list_models(module=models.segmentation)
VAST = 300_000_000  # parameters above which float64 copies do not fit beside each other in 16 GiB
FIXED = ("vit_", "swin", "maxvit")  # positions or windows for 224 x 224
TIMM = """
resnet18 resnet26d seresnet18 seresnet50 ecaresnet26t regnetx_002 regnety_002 regnetz_b16 resnest14d res2net50_26w_4s
res2next50 densenet121 dpn48b dpn68 vgg11_bn inception_v3 inception_v4 inception_resnet_v2 xception41 legacy_xception
mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium efficientnet_b0
tf_efficientnetv2_b0 efficientnet_lite0 ghostnet_050 ghostnetv2_100 hrnet_w18_small cspresnet50 cspdarknet53 darknet53
cspresnext50 ese_vovnet19b_dw vovnet39a convnext_atto convnextv2_atto convmixer_768_32 repvgg_a0 dm_nfnet_f0
nf_regnet_b0 nf_resnet26 eca_nfnet_l0 vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224
swin_tiny_patch4_window7_224 mixer_s32_224 poolformer_s12 poolformerv2_s12 maxvit_rmlp_pico_rw_256 maxvit_nano_rw_256
coatnet_pico_rw_224 efficientformer_l1 efficientformerv2_s0 resmlp_12_224 gmlp_ti16_224 cait_xxs24_224
xcit_nano_12_p16_224 fastvit_t8 mobileone_s0 levit_128s edgenext_xx_small hardcorenas_a selecsls42 lcnet_050 tinynet_e
rexnet_100 skresnet18 gernet_s tresnet_m sebotnet33ts_256 halonet26t lambda_resnet26t visformer_tiny pvt_v2_b0
repghostnet_050 hgnet_tiny inception_next_tiny mobilevit_xxs mobilevitv2_050 crossvit_tiny_240 twins_pcpvt_small
convit_tiny tiny_vit_5m_224 davit_tiny focalnet_tiny_srf hiera_tiny_224 starnet_s1 rdnet_tiny
""".split()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


def torchvision_model(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    more: dict[str, Any] = {"weights_backbone": None} if name in SEGMENTERS else {}
    if name in ("googlenet", "inception_v3"):
        more = {"init_weights": False}
    with without_initialisation():
        model = models.get_model(name, weights=None, **more)
    side = 224 if name.startswith(FIXED) else 128 if name != "inception_v3" else 299
    return model, (torch.zeros(1, 3, side, side),)


@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS])
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet:FutureWarning")
def test_torchvision(name: str) -> None:
    model, example = torchvision_model(name)
    kill(fill(model, example[0]), classes=21 if name in SEGMENTERS else 1000)
    vast = parameters(model) > VAST
    compact = shrink(model, example, verify=not vast)
    told = compact.certificate
    assert {row["reason"] for row in told["frozen"]} == {"output of the network"}
    assert told["channels"]["after"] < 0.95 * told["channels"]["before"]
    assert told["parameters"]["after"] == parameters(compact.model) < 0.9 * parameters(model)
    if not vast:
        assert told["law"]["max_rel_diff"] <= 1e-9
    assert close(model, compact.model, example) <= 1e-4


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with without_initialisation():
        model = timm.create_model(name, pretrained=False, num_classes=1000)
    example = (torch.zeros(1, *model.default_cfg["input_size"]),)
    kill(fill(model, example[0]), classes=1000)
    compact = shrink(model, example)
    told = compact.certificate
    assert told["law"]["max_rel_diff"] <= 1e-9
    assert told["channels"]["after"] < told["channels"]["before"]
    assert told["parameters"]["after"] == parameters(compact.model) < parameters(model)
    assert close(model, compact.model, example) <= 1e-4


@torch.no_grad()
def close(model: nn.Module, compact: nn.Module, example: tuple[torch.Tensor, ...]) -> float:
    """Largest fp32 difference of the answers to a fresh image, over the largest answer."""
    image = torch.randn(example[0].shape, generator=torch.Generator().manual_seed(7))
    left, right = answers(model(image)), answers(compact(image))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(left, right, strict=True))
