"""The C++ extension: fused kernels on the CPU, one parallel region an op."""

from sharpkern.backend.native.ops import ascend_, descend_, instruction_sets, restore_, sq_norm, why_not

__all__ = ["ascend_", "descend_", "instruction_sets", "restore_", "sq_norm", "why_not"]
