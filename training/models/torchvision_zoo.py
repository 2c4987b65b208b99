"""Any classification model of torchvision, by name, taken apart into stem, stages, pool and classifier.

Source: torchvision.models. Weights are never downloaded here: a recipe names a file, with torchvision's keys or ours.
The two Inceptions have no auxiliary classifiers, and torchvision's weights for them want a mean and deviation of 0.5.

Stem and stages end where the maps have one size for the last time, a block ends, and everything flows through one
map: in resnet50 after `relu`, `layer1`, ..., `layer4`. A model without such places, such as a vision transformer, gives
logits and nothing else.

Names:
    torchvision:resnet50, torchvision:swin_t, ...
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from cascade.errors import RecipeError
from training.models.contract import Network, Stage
from training.models.families import family
from training.models.pieces import Blank, Place, last_node, linear_at, piece, places_of, traced
from training.models.shapes import without_numbers

NAMES = tuple(torchvision.models.list_models(module=torchvision.models))
SIZE = 224  # pixels a side at which the places are looked for; they are the same at any other
SIZED = ("vit_", "maxvit_")  # those that are made for one size
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


class TorchvisionNetwork(Network):
    """A model in parts, each a traced piece of it, which share its parameters.

    `classifier` is the identity where a model ends in something else than a linear layer, as the SqueezeNets do.

    Args:
        blank: builds the same model.
        model: what is taken apart.
        places: where stem and stages end.
        num_classes: K.
    """

    def __init__(self, blank: Blank, model: nn.Module, places: list[Place], num_classes: int) -> None:
        graph, _ = traced(model)
        nodes = {node.name: node for node in graph.nodes}
        result = last_node(graph)
        linear = linear_at(model, result)
        end = Place(result.all_input_nodes[0].name if linear else result.name, 0, channels_last=False)
        starts: list[Place | None] = [None, *places]
        stem, *stages, pool = (
            piece(model, nodes, start, stop) for start, stop in zip(starts, [*places, end], strict=True)
        )
        super().__init__(stem, [Stage(stage) for stage in stages], places[-1].channels, num_classes, pool=pool)
        self.classifier = linear or nn.Identity()  # type: ignore[assignment]
        self.keys = Keys(blank, model, self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights under our own keys, or under torchvision's, old ones among them."""
        return super().load_state_dict(self.keys.ours(state_dict), strict, assign)


class LogitsOnly(Network):
    """A model that is not made of maps: it gives logits, and everything else is refused.

    Args:
        name: torchvision's.
        blank: builds the same model.
        model: what gives the logits.
    """

    def __init__(self, name: str, blank: Blank, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.name = name
        self.model = model
        self.keys = Keys(blank, model, self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights under our own keys, or under torchvision's, old ones among them."""
        return super().load_state_dict(self.keys.ours(state_dict), strict, assign)

    def __getattr__(self, name: str) -> Any:
        """Refuse what only a network of maps has.

        Raises:
            RecipeError: stem, stages, head, pool, classifier or their channels are asked for.
        """
        if name in ("stem", "stages", "head", "pool", "classifier", "pre_pool_channels"):
            raise RecipeError(
                f"torchvision:{self.name} is not made of maps: it gives logits, but no features, and cannot be cut; "
                "take a method that needs logits alone, such as kd"
            )
        return super().__getattr__(name)


class Keys:
    """Knows a part-wise network's weights by torchvision's names.

    Args:
        blank: builds the model.
        model: the model itself.
        parts: the network that has its parameters in parts.
    """

    def __init__(self, blank: Blank, model: nn.Module, parts: nn.Module) -> None:
        own = {id(value): key for key, value in parts.state_dict(keep_vars=True).items()}
        self.blank = blank
        self.own = {key: own[id(value)] for key, value in model.state_dict(keep_vars=True).items()}

    def ours(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same weights by our names. Old keys are brought up to date by the model's own code, as torchvision does.

        Raises:
            RuntimeError: they are not the model's.
        """
        if weights.keys() == set(self.own.values()):
            return weights
        plain = OrderedDict(
            (OLD_DENSENET_KEY.sub(r"\1", key), value)
            for key, value in weights.items()
            if not key.lower().startswith("aux")
        )
        plain._metadata = getattr(weights, "_metadata", None)  # type: ignore[attr-defined] # versions, by which keys are old
        reader = without_numbers(self.blank)
        reader.load_state_dict(plain, assign=True)
        return {self.own[key]: value for key, value in reader.state_dict().items()}


def construct(name: str, num_classes: int, size: int) -> nn.Module:
    """Make torchvision's own model, without weights; its size is set where that is part of it.

    Raises:
        RecipeError: the model cannot be made for this size.
    """
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": size}
    elif name.startswith("maxvit_"):
        options = {"input_size": (size, size)}
    try:
        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise RecipeError(f"torchvision:{name} cannot be made for images of {size} pixels: {error}") from error
    return net


@functools.cache
def places_by_name(name: str, num_classes: int, size: int) -> list[Place]:
    """Looked for once."""
    return places_of(functools.partial(construct, name, num_classes, size), size)


@family(
    r"torchvision:(\w+)",
    *("torchvision:resnet50", *(f"torchvision:{name}" for name in NAMES if name != "resnet50")),
    whole=lambda name, num_classes, size: construct(name[1], num_classes, size),
)
def from_torchvision(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """Build without weights.

    Raises:
        RecipeError: torchvision has no such classification model, or it cannot be made for this size.
    """
    if name[1] not in NAMES:
        raise RecipeError(f"torchvision has no classification model {name[1]!r}; it has {', '.join(NAMES)}")
    blank = functools.partial(construct, name[1], num_classes, size)
    model = blank()
    places = places_by_name(name[1], num_classes, size if name[1].startswith(SIZED) else SIZE)
    if not places:
        return LogitsOnly(name[1], blank, model)
    return TorchvisionNetwork(blank, model, places, num_classes)
