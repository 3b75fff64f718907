// The four ops on CUDA, each one launch over all tensors of a list (more only where a list is longer than a launch takes).
// They wait for nothing and allocate nothing: the workspace, zero at first, belongs to the caller.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../table.h"
#include "launch.h"

namespace sharpkern::cuda {

// Where launches go. The workspace holds a counter, and behind it the partial sums of a norm.
struct Queue {
  static constexpr std::size_t kCounterBytes = 16, kWorkspaceBytes = kCounterBytes + kPartials * sizeof(double);

  int device = 0;
  std::uintptr_t stream = 0;
  std::uintptr_t workspace = 0;
  std::int64_t partials = 0;  // that it has room for
  std::size_t launches = 0;   // so far
};

// What ascend adds; see cpu/ops.h.
struct Step {
  Scalar rho;
  const double* total;
  double worst, noise;
  bool track;
  int again;
};

// What the ops of cpu/ops.h do, by the same names.
void sq_norm(const Table& table, Queue& queue, const std::string& covariance, const std::vector<Scalar>& scalars,
             double* total, bool add);
void ascend(const Table& table, Queue& queue, const std::string& covariance, const std::vector<Scalar>& scalars,
            const Step& step);
void descend(const Table& table, Queue& queue, const std::string& base, const std::vector<Scalar>& options,
             const std::string& correction, const std::vector<Scalar>& scalars, const double* total,
             const double* second);
void restore(const Table& table, Queue& queue, const double* total);

}  // namespace sharpkern::cuda
