"""The definition: every op in plain PyTorch, on any device, one tensor at a time."""

from sharpkern.backend.reference.ops import ascend_, descend_, restore_, sq_norm, why_not

__all__ = ["ascend_", "descend_", "restore_", "sq_norm", "why_not"]
