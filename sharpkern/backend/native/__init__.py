"""The C++ extension: fused kernels, one parallel region of the CPU or one launch of CUDA an op."""

from sharpkern.backend.native.ops import (
    ascend_,
    cuda_architectures,
    descend_,
    instruction_sets,
    restore_,
    sq_norm,
    why_not,
)

__all__ = ["ascend_", "cuda_architectures", "descend_", "instruction_sets", "restore_", "sq_norm", "why_not"]
