"""Torchvision's models: taken apart they are what they were, and they read torchvision's weight files."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade.errors import RecipeError
from training import models
from training.checkpoint import load_weights
from training.models import Network
from training.models.shapes import without_numbers
from training.models.torchvision_zoo import construct

pytestmark = pytest.mark.train

# name, pixels a side, channels and pixels a side of stem and stages; one of each way to build a network
PARTS = {
    "resnet18": (32, [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)]),
    "densenet121": (32, [(64, 16), (256, 8), (512, 4), (1024, 2), (1024, 1)]),
    "googlenet": (32, [(64, 16), (192, 8), (480, 4), (832, 2), (1024, 1)]),
    "inception_v3": (80, [(64, 37), (192, 16), (288, 7), (768, 3), (2048, 1)]),
    "vgg11_bn": (32, [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2), (512, 7)]),
    "squeezenet1_1": (32, [(64, 15), (128, 7), (256, 3), (5, 1)]),
    "efficientnet_b0": (32, [(16, 16), (24, 8), (40, 4), (112, 2), (1280, 1)]),
    "convnext_tiny": (32, [(96, 8), (192, 4), (384, 2), (768, 1)]),
    "regnet_x_400mf": (32, [(32, 16), (32, 8), (64, 4), (160, 2), (400, 1)]),
    "swin_t": (64, [(96, 16), (192, 8), (384, 4), (768, 2)]),
    "maxvit_t": (224, [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)]),
}


def whole(name: str, **options: object) -> nn.Module:
    """Torchvision's own model of five classes, whose batch norms have seen something."""
    torch.manual_seed(1)
    net: nn.Module = torchvision.models.get_model(name, num_classes=5, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return net.eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", PARTS)
def test_a_model_is_left_where_its_maps_change_their_size(name: str) -> None:
    size, expected = PARTS[name]
    net = without_numbers(lambda: models.build(f"torchvision:{name}", 5, size)).eval()
    assert isinstance(net, Network)
    features = net.features(torch.zeros(2, 3, size, size, device="meta"))
    assert [(part.shape[1], part.shape[3]) for part in features.maps[:-1]] == expected
    assert net.pre_pool_channels == features.pre_pool.shape[1]
    assert features.logits.shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "efficientnet_b0", "swin_t"])
def test_a_model_in_parts_is_the_model(name: str, tmp_path: Path) -> None:
    model = whole(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    net = load_weights(tmp_path / "weights.pth", f"torchvision:{name}", 5, 32)
    assert isinstance(net, Network)
    front, back = net.cut(2)
    with torch.no_grad():
        assert torch.equal(net(images()), model(images()))
        assert torch.equal(back(front(images())), model(images()))


def test_in_training_a_model_in_parts_drops_paths_and_in_eval_it_does_not() -> None:
    net = models.build("torchvision:efficientnet_b0", 5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.p, module.momentum = 0.0, 0.0
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(net.train()(images()), net(images()))
        assert torch.equal(net.eval()(images()), net(images()))


def test_auxiliary_classifiers_in_a_weight_file_are_left_out(tmp_path: Path) -> None:
    model = whole("googlenet", init_weights=False, aux_logits=True)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    net = load_weights(tmp_path / "weights.pth", "torchvision:googlenet", 5)
    with torch.no_grad():
        assert torch.equal(net(images()), model(images()))


def test_old_keys_in_a_weight_file_are_understood(tmp_path: Path) -> None:
    model = whole("densenet121")
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in model.state_dict().items()
        if "num_batches_tracked" not in key
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "weights.pth")
    net = load_weights(tmp_path / "weights.pth", "torchvision:densenet121", 5)
    with torch.no_grad():
        assert torch.equal(net(images()), model(images()))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(whole("resnet18").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(RecipeError, match="are not of this network"):
        load_weights(tmp_path / "weights.safetensors", "torchvision:resnet34", 5)


def test_a_model_without_maps_reads_torchvisions_keys() -> None:
    net = without_numbers(lambda: models.build("torchvision:vit_b_32", 5, 64))
    model = without_numbers(lambda: construct("vit_b_32", 5, 64))
    net.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({})


def test_a_model_without_maps_gives_logits_and_refuses_the_rest() -> None:
    net = without_numbers(lambda: models.build("torchvision:vit_b_32", 5, 64))
    assert isinstance(net, Network)
    x = torch.zeros(2, 3, 64, 64, device="meta")
    assert net(x).shape == (2, 5)
    for ask in (lambda: net.features(x), lambda: net.cut(0), lambda: net.pre_pool(x), lambda: net.pre_pool_channels):
        with pytest.raises(RecipeError, match=r"vit_b_32 is not made of maps.*such as kd"):
            ask()
    with pytest.raises(AttributeError, match="nothing"):
        net.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["vit_h_14", "maxvit_t"])
def test_a_model_that_cannot_be_made_for_a_size_says_so(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"torchvision:{name} cannot .* 33 pixels"):
        without_numbers(lambda: models.build(f"torchvision:{name}", 5, 33))


def test_every_model_of_torchvision_that_has_maps_ends_in_a_linear_layer_but_the_squeezenets() -> None:
    for name in ("alexnet", "mnasnet0_5", "mobilenet_v3_small", "resnext50_32x4d", "shufflenet_v2_x0_5", "vgg11"):
        net = without_numbers(functools.partial(models.build, f"torchvision:{name}", 5, 224))
        assert isinstance(net.classifier, nn.Linear)
        assert net.classifier.out_features == 5
    squeezed = without_numbers(lambda: models.build("torchvision:squeezenet1_0", 5))
    assert isinstance(squeezed.classifier, nn.Identity)
