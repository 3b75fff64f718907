"""Sharpness-aware optimizers for PyTorch with fused kernels."""

from sharpkern import fisher
from sharpkern.model import frozen_statistics, param_groups
from sharpkern.ops import BackendStatus, backends
from sharpkern.optimizer import SharpnessAware
from sharpkern.variants import ASAM, SAM, FisherSAM

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "SAM",
    "BackendStatus",
    "FisherSAM",
    "SharpnessAware",
    "backends",
    "fisher",
    "frozen_statistics",
    "param_groups",
]
