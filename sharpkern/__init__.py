"""Sharpness-aware optimizers for PyTorch with fused kernels."""

from sharpkern import fisher
from sharpkern.accumulation import m_sharpness, passes
from sharpkern.evolution import EvolutionStrategies
from sharpkern.learned import MFVI, VariationalSAM
from sharpkern.model import guard, param_groups
from sharpkern.ops import BackendStatus, backends
from sharpkern.optimizer import SharpnessAware
from sharpkern.statistics import frozen_statistics
from sharpkern.tracer import TRACER
from sharpkern.variants import ASAM, SAM, FisherSAM, MixSAM, RandomSAM

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "MFVI",
    "SAM",
    "TRACER",
    "BackendStatus",
    "EvolutionStrategies",
    "FisherSAM",
    "MixSAM",
    "RandomSAM",
    "SharpnessAware",
    "VariationalSAM",
    "backends",
    "fisher",
    "frozen_statistics",
    "guard",
    "m_sharpness",
    "param_groups",
    "passes",
]
