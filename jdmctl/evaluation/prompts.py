"""Whether pictures show what their captions state, by a classifier's predictions."""

from collections.abc import Mapping

from torch import Tensor

OPEN = -1  # the class of an attribute that a caption does not state

Classes = Mapping[str, Tensor]  # attribute -> class indices, long [N]


def stated_accuracy(predicted: Classes, stated: Classes) -> dict[str, Tensor]:
    """Attribute -> [n] of 1 (as stated) and 0, over the n captions that state it.

    Attributes that no caption states are left out.
    """
    correct = {}
    for name, classes in stated.items():
        is_stated = classes != OPEN
        if is_stated.any():
            correct[name] = (predicted[name] == classes)[is_stated].double()
    return correct
