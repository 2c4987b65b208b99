"""Where a network begins, if not from random weights."""

from __future__ import annotations

from torch import nn

from cascade.errors import RecipeError

BODY = ("stem.", "stages.", "head.")


def begin_from(start: nn.Module, net: nn.Module) -> None:
    """Give a network another one's body, and a classifier of zeros, so that it begins by changing nothing.

    What the stages before leave is too little to learn features from, where there are none yet: from random weights, a
    res-student whose labels judge the sum may stay near zero for as long as the learning rate is high.
    """
    classifier = net.classifier
    assert isinstance(classifier, nn.Linear), "recipes allow this for networks of ours alone"
    net.load_state_dict(start.state_dict())
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)


def take_body(start: nn.Module, net: nn.Module) -> None:
    """Give a network another one's stem, stages and head; what follows the last map stays as it is.

    Raises:
        RecipeError: the other one's body is not of this shape.
    """
    own = net.state_dict()
    body = {key: value for key, value in start.state_dict().items() if key.startswith(BODY)}
    wanted = {key: value.shape for key, value in own.items() if key.startswith(BODY)}
    if wanted != {key: value.shape for key, value in body.items()}:
        raise RecipeError(
            "the network of student.start has another body than student.model: name the model that the run has "
            "trained; a run that reused stages of its teacher, or left out the last convolution, has no whole body"
        )
    net.load_state_dict({**own, **body})
