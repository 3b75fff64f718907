// The ops on the CPU. Each covers all tensors of a table in one parallel region.
#pragma once

#include "../table.h"
#include "kernels.h"

namespace sharpkern::cpu {

// Names of the instruction sets that run here, widest first.
std::vector<std::string> instruction_sets();

// The kernels of one of them; throws std::invalid_argument for a name that is not among them.
const Kernels& kernels_of(const std::string& instruction_set);

struct Launch {
  const Kernels* kernels;
  int threads;
  bool streaming;  // written data does not fit the cache
  bool ahead;      // nor does what is read: the next chunk is asked for while one is computed
};

// *total <- (add ? *total : 0) + sum s g^2 over all tensors that have a gradient.
void sq_norm(Table& table, const Launch& launch, const std::string& covariance, const std::vector<double>& scalars,
             double* total, bool add);

// What ascend adds: rho (worst s g / sqrt(*total) + noise sqrt(s) eta). Without total no gradient is looked at. again,
// unless negative, is added to the number of the draw, and w0 is read from its source instead of copied there.
struct Step {
  double rho;
  const double* total;
  double worst, noise;
  bool track;
  int again;
};

// w0 <- w (masters are there already); w <- w0 + the step, rounded stochastically where the table wants it; track moves on
// what is kept and the number of draws. Does nothing where *total is not finite, only copies where nothing is added.
void ascend(Table& table, const Launch& launch, const std::string& covariance, const std::vector<double>& scalars,
            const Step& step);

// w <- base(w0, g, m, v), counted in steps, the correction making that g; where a tensor has no gradient, w <- w0. Does
// nothing where *total is not finite; only restores where *second is not (second may be null).
void descend(Table& table, const Launch& launch, const std::string& base, const std::vector<double>& options,
             const std::string& correction, const std::vector<double>& scalars, const double* total,
             const double* second);

// w <- w0, unless *total is not finite, in which case w never moved.
void restore(Table& table, const Launch& launch, const double* total);

}  // namespace sharpkern::cpu
