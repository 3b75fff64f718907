"""The images that networks are trained on: `digits.py` and `cifar.py` read them, `augment.py` varies them."""

from sharpkern.train.data.digits import (
    CLASSES,
    TRAIN_IMAGES,
    Digits,
    batches,
    flip_labels,
    load_digits,
    shifted,
)

__all__ = ["CLASSES", "TRAIN_IMAGES", "Digits", "batches", "flip_labels", "load_digits", "shifted"]
