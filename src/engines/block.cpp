#include "engines/block.hpp"

#include <sys/mman.h>

#include <new>

namespace tplimit::engines {
namespace {

constexpr std::size_t kMapThreshold = std::size_t{1} << 20;

/// Blocks of a few sizes come and go by the thousand; mapping fresh zeroed pages for each costs as
/// much as filling them.
struct Pool {
  std::mutex mutex;
  std::unordered_multimap<std::size_t, double*> free;
  std::size_t free_bytes = 0, live_bytes = 0, most_live = 0;  ///< of pieces that may be pooled

  void count_live(std::size_t bytes) {
    live_bytes += bytes;
    most_live = std::max(most_live, live_bytes);
  }
};
Pool& pool() {
  static Pool* const instance =
      new Pool;  // never destroyed: buffers of static lifetime may outlive it
  return *instance;
}

double* allocate(std::size_t bytes) {
  if (bytes < kMapThreshold)
    return static_cast<double*>(::operator new (bytes, std::align_val_t{64}));
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<double*>(p);
}

void release(double* p, std::size_t bytes) {
  if (bytes < kMapThreshold)
    ::operator delete (p, std::align_val_t{64});
  else
    munmap(p, bytes);
}

void give_back(Pool& pool) {
  for (const auto& [bytes, data] : pool.free) release(data, bytes);
  pool.free.clear();
  pool.free_bytes = 0;
}

}  // namespace

Buffer::Buffer(std::int64_t doubles)
    : bytes_(static_cast<std::size_t>(std::max<std::int64_t>(doubles, 1)) * sizeof(double)) {
  if (bytes_ >= kMapThreshold) {
    const std::scoped_lock lock(pool().mutex);
    if (const auto it = pool().free.find(bytes_); it != pool().free.end()) {
      data_ = it->second;
      pool().free.erase(it);
      pool().free_bytes -= bytes_;
      pool().count_live(bytes_);
      return;
    }
    // Pieces that are kept must not add to what was alive at the worst moment.
    if (pool().live_bytes + pool().free_bytes + bytes_ > pool().most_live) give_back(pool());
    pool().count_live(bytes_);
  }
  data_ = allocate(bytes_);
}

Buffer::~Buffer() {
  if (!data_) return;
  if (bytes_ >= kMapThreshold) {
    const std::scoped_lock lock(pool().mutex);
    pool().free.emplace(bytes_, data_);
    pool().free_bytes += bytes_;
    pool().live_bytes -= bytes_;
  } else {
    release(data_, bytes_);
  }
}

void Buffer::release_pool() {
  const std::scoped_lock lock(pool().mutex);
  give_back(pool());
  pool().most_live = pool().live_bytes;
}

}  // namespace tplimit::engines
