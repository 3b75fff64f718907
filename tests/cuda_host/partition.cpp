// Walks over the partition of one launch, as its blocks and threads do.
#include <cstdint>
#include <vector>

#include "../../csrc/cuda/partition.h"

using namespace sharpkern::cuda;

template <int length>
static int walk(int tensors, const std::int64_t* numel, int lists, const std::uint64_t* addresses, const int* itemsize,
                std::uint8_t* visits) {
  std::vector<Word> extents;
  std::vector<std::uint8_t*> at;
  std::int64_t chunks = 0;
  for (int t = 0; t < tensors; ++t) {
    extents.push_back(extent(chunks, numel[t]));
    chunks += chunks_of(numel[t]);
    at.push_back(visits);
    visits += numel[t];
  }
  extents.push_back(extent(chunks, 0));
  int misaligned = 0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Piece p = locate(extents.data(), tensors, chunk);
    std::uint64_t ored = 0;
    for (int list = 0; list < lists; ++list) ored |= addresses[list * tensors + p.tensor];
    for (int thread = 0; thread < kThreads; ++thread)
      for_each_run<length>(p.count, aligned(ored), thread, [&](auto n, int i) {
        for (int j = 0; j < n; ++j) ++at[p.tensor][p.first + i + j];
        for (int list = 0; n > 1 && list < lists; ++list)
          misaligned += (addresses[list * tensors + p.tensor] + (p.first + i) * itemsize[list]) % 16 != 0;
      });
  }
  return misaligned;
}

// Counts the visits of each element; returns how many vectors were misaligned.
extern "C" int walk(int length, int tensors, const std::int64_t* numel, int lists, const std::uint64_t* addresses,
                    const int* itemsize, std::uint8_t* visits) {
  const auto chosen = length == 2 ? walk<2> : length == 4 ? walk<4> : walk<8>;
  return chosen(tensors, numel, lists, addresses, itemsize, visits);
}

// Where a chunk lies: tensor, first element, count.
extern "C" void find(int tensors, const std::int64_t* numel, std::int64_t chunk, std::int64_t* found) {
  std::vector<Word> extents;
  std::int64_t chunks = 0;
  for (int t = 0; t < tensors; ++t) {
    extents.push_back(extent(chunks, numel[t]));
    chunks += chunks_of(numel[t]);
  }
  extents.push_back(extent(chunks, 0));
  const Piece p = locate(extents.data(), tensors, chunk);
  found[0] = p.tensor, found[1] = p.first, found[2] = p.count;
}

extern "C" std::int64_t blocks(std::int64_t chunks) {
  const std::int64_t each = chunks_per_block(chunks, kPartials);
  return (chunks + each - 1) / each;
}
