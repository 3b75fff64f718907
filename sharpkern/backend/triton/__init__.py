"""Triton kernels: one launch an op on a CUDA device, nothing to build."""

from sharpkern.backend.triton.ops import ascend_, descend_, restore_, sq_norm, why_not

__all__ = ["ascend_", "descend_", "restore_", "sq_norm", "why_not"]
