#include "engines/stored_entries.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tplimit/math/normals.hpp"
#include "tplimit/math/slab_products.hpp"

namespace tplimit::engines {
namespace {

using Index = std::int64_t;

Index round_up(Index x, Index step) { return (x + step - 1) / step * step; }

template <class T>
T* array(const Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.data());
}
template <class T>
Buffer buffer_of(Index count) {
  return Buffer(round_up(count * static_cast<Index>(sizeof(T)), 8) / 8);
}

/// factor x as vectors [offset, ..) of `vectors`, packed in blocks of `block` coordinates.
/// Coordinates beyond x are left as they are.
template <Index block, class T>
void pack(const Executor& executor, const Block& x, double factor, Index offset, Index vectors,
          T* out) {
  executor.parallel(x.chunks(), [&](Index c) {
    for (Index q = 0; q < x.columns(); ++q) {
      const double* in = x.chunk(c) + q * x.ld();
      for (Index i = 0; i < x.chunk_rows(c); ++i) {
        const Index row = c * kChunkRows + i;
        out[(row / block * vectors + offset + q) * block + row % block] =
            static_cast<T>(factor * in[i]);
      }
    }
  });
}

}  // namespace

void save(Writer& out, const Slabs& entries) {
  for (const Buffer* buffer : {&entries.values, &entries.left, &entries.right}) buffer->save(out);
  out.value(entries.rank);
  out.value(entries.scale);
}

std::shared_ptr<Slabs> load_entries(Reader& in) {
  auto entries = std::make_shared<Slabs>();
  for (Buffer* buffer : {&entries->values, &entries->left, &entries->right})
    *buffer = Buffer::load(in);
  entries->rank = in.value<std::int64_t>();
  entries->scale = in.value<double>();
  return entries;
}

template <class T>
Index StoredEntries<T>::rows_of_slab() {
  static_assert(kRange == 2 * kSlabColumns && kChunkRows % kRange == 0 &&
                kRange % kSlabRows<T> == 0);
  return kSlabRows<T>;
}

template <class T>
StoredEntries<T>::StoredEntries(const Executor& executor, Index n)
    : executor_(executor),
      n_(n),
      slabs_((n + kSlabRows<T> - 1) / kSlabRows<T>),
      columns_(round_up(n, kColumnStep)) {}

template <class T>
double StoredEntries<T>::bytes(Index n) {
  return static_cast<double>(round_up(n, kSlabRows<T>)) *
         static_cast<double>(round_up(n, kColumnStep)) * static_cast<double>(sizeof(T));
}

template <class T>
double StoredEntries<T>::packed_bytes(Index n, Index vectors) {
  return static_cast<double>(round_up(n, kSlabRows<T>) * round_up(vectors, kVectorStep)) *
         static_cast<double>(sizeof(T));
}

template <class T>
T* StoredEntries<T>::slab(const Slabs& e, Index p) const {
  return array<T>(e.values) + p * kSlabRows<T> * columns_;
}

template <class T>
std::shared_ptr<Slabs> StoredEntries<T>::uninitialised() const {
  auto out = std::make_shared<Slabs>();
  out->values = buffer_of<T>(slabs_ * kSlabRows<T> * columns_);
  return out;
}

template <class T>
std::shared_ptr<Slabs> StoredEntries<T>::zeros() const {
  std::shared_ptr<Slabs> out = uninitialised();
  for_slabs([&](Index p) { std::fill_n(slab(*out, p), kSlabRows<T> * columns_, T{0}); });
  return out;
}

template <class T>
std::shared_ptr<Slabs> StoredEntries<T>::drawn(std::uint64_t key, ir::EntryLaw law) const {
  std::shared_ptr<Slabs> out = uninitialised();
  const double s = 1 / std::sqrt(static_cast<double>(n_));
  // Column j is stream j; normals are made faster by the hundred than by the slab.
  constexpr Index h = kSlabRows<T>;
  for_slab_groups([&](Index first, Index last) {
    const Index rows = std::min(last * h, n_) - first * h;
    std::vector<double> normals(static_cast<std::size_t>((last - first) * h));
    for (Index j = 0; j < columns_; ++j) {
      if (j < n_)
        plain_normals(mix_key(key, static_cast<std::uint64_t>(j)),
                      static_cast<std::uint64_t>(first * h),
                      {normals.data(), static_cast<std::size_t>(rows)});
      else
        std::fill(normals.begin(), normals.end(), 0.0);
      if (law == ir::EntryLaw::kUniform)  // sqrt(12) (Phi(z) - 1/2)
        for (double& z : normals) z = std::sqrt(3.0) * std::erf(z * std::sqrt(0.5));
      else if (law == ir::EntryLaw::kSign)
        for (double& z : normals) z = j < n_ ? std::copysign(1.0, z) : 0;
      for (Index p = first; p < last; ++p) {
        T* to = slab(*out, p) + j * h;
        for (Index i = 0; i < h; ++i)
          to[i] = static_cast<T>(s * normals[static_cast<std::size_t>((p - first) * h + i)]);
      }
    }
  });
  return out;
}

template <class T>
void StoredEntries<T>::settle(const Slabs& e, Index p, Index first, Index count) const {
  constexpr Index h = kSlabRows<T>;
  T* const a = slab(e, p) + first * h;
  if (e.scale != 1)
    for (Index i = 0; i < count * h; ++i) a[i] *= static_cast<T>(e.scale);
  if (e.rank > 0)
    add_slab_update(a, count, array<T>(e.left) + p * h * e.rank, array<T>(e.right) + first * e.rank,
                    e.rank);
}

template <class T>
void StoredEntries<T>::apply(Slabs& e, double factor, bool transposed, const Block& x,
                             Block& y) const {
  constexpr Index h = kSlabRows<T>;
  // Padded coordinates meet padded zeros of the matrix, padded vectors are not read: neither may
  // hold a NaN, so all is cleared.
  const Index vectors = round_up(x.columns(), transposed ? kVectorLanes<T> : kVectorStep),
              coordinates = transposed ? slabs_ * h : columns_;
  const Buffer packed = buffer_of<T>(coordinates * vectors);
  std::fill_n(array<T>(packed), coordinates * vectors, T{0});
  if (transposed)
    pack<1>(executor_, x, 1, 0, vectors, array<T>(packed));
  else
    pack<kColumnBlock>(executor_, x, 1, 0, vectors, array<T>(packed));
  const auto write = [&](Index row, Index q, double value) {
    y.chunk(row / kChunkRows)[q * y.ld() + row % kChunkRows] = factor * value;
  };

  if (transposed) {
    executor_.parallel((columns_ + kRange - 1) / kRange, [&](Index r) {
      const Index first = r * kRange, count = std::min(kRange, columns_ - first);
      std::vector<double> sums(static_cast<std::size_t>(count * vectors));
      for (Index p = 0; p < slabs_; ++p)
        for (Index k = first; k < first + count; k += kSlabColumns) {
          const Index some = std::min(kSlabColumns, first + count - k);
          settle(e, p, k, some);
          add_transposed_slab_product(slab(e, p) + k * h, some, array<T>(packed) + p * h * vectors,
                                      vectors, sums.data() + (k - first) * vectors);
        }
      for (Index q = 0; q < y.columns(); ++q)
        for (Index k = first; k < std::min(first + count, n_); ++k)
          write(k, q, sums[static_cast<std::size_t>((k - first) * vectors + q)]);
    });
  } else {
    for_slabs([&](Index p) {
      std::vector<double> sums(static_cast<std::size_t>(h * vectors));
      for (Index k = 0; k < columns_; k += kSlabColumns) {
        const Index some = std::min(kSlabColumns, columns_ - k);
        settle(e, p, k, some);
        add_slab_product(slab(e, p) + k * h, some, array<T>(packed) + k * vectors, vectors,
                         sums.data());
      }
      for (Index q = 0; q < y.columns(); ++q)
        for (Index i = 0; i < std::min(h, n_ - p * h); ++i)
          write(p * h + i, q, sums[static_cast<std::size_t>(q * h + i)]);
    });
  }
  e = {std::move(e.values)};
}

template <class T>
typename StoredEntries<T>::Factors StoredEntries<T>::factors(const std::vector<UpdateTerm>& terms,
                                                             double factor) const {
  constexpr Index h = kSlabRows<T>;
  Factors f;
  for (const UpdateTerm& t : terms) f.rank += t.d->columns();
  f.left = buffer_of<T>(slabs_ * h * f.rank);
  f.right = buffer_of<T>(columns_ * f.rank);
  std::fill_n(array<T>(f.left), slabs_ * h * f.rank, T{0});
  std::fill_n(array<T>(f.right), columns_ * f.rank, T{0});
  Index offset = 0;
  for (const UpdateTerm& t : terms) {
    pack<h>(executor_, *t.d, factor * t.c, offset, f.rank, array<T>(f.left));
    pack<kColumnBlock>(executor_, *t.x, 1, offset, f.rank, array<T>(f.right));
    offset += t.d->columns();
  }
  return f;
}

template <class T>
void StoredEntries<T>::add(const Factors& f, Index p, Index first, Index count, T* to) const {
  add_slab_update(to, count, array<T>(f.left) + p * kSlabRows<T> * f.rank,
                  array<T>(f.right) + first * f.rank, f.rank);
}

template <class T>
void StoredEntries<T>::add(Slabs& a, double c, Slabs& b) const {
  for_slabs([&](Index p) {
    settle(b, p, 0, columns_);
    T *to = slab(a, p), *from = slab(b, p);
    const T own = static_cast<T>(a.scale), other = static_cast<T>(c);
    for (Index i = 0; i < kSlabRows<T> * columns_; ++i) to[i] = own * to[i] + other * from[i];
  });
  a.scale = 1;
  b = {std::move(b.values)};
}

template <class T>
double StoredEntries<T>::inner_product(Slabs& a, Slabs& b) const {
  std::vector<double> sums(static_cast<std::size_t>(slabs_));
  for_slabs([&](Index p) {
    settle(a, p, 0, columns_);
    if (&a != &b) settle(b, p, 0, columns_);
    const T *left = slab(a, p), *right = slab(b, p);
    double& sum = sums[static_cast<std::size_t>(p)];
    for (Index j = 0; j < columns_; ++j, left += kSlabRows<T>, right += kSlabRows<T>) {
      double column = 0;  // fewer roundings than one running sum
      for (Index i = 0; i < kSlabRows<T>; ++i)
        column += static_cast<double>(left[i]) * static_cast<double>(right[i]);
      sum += column;
    }
  });
  a = {std::move(a.values)};
  if (&a != &b) b = {std::move(b.values)};
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

template <class T>
void StoredEntries<T>::add(Slabs& a, const std::vector<UpdateTerm>& terms, double c) const {
  Factors f = factors(terms, c);
  a = {std::move(a.values), std::move(f.left), std::move(f.right), f.rank, a.scale};
}

template <class T>
std::shared_ptr<Slabs> StoredEntries<T>::owned(std::shared_ptr<Slabs> entries) const {
  Slabs& e = *entries;
  const bool shared = entries.use_count() > 1,
             waits = e.rank > 0 || e.scale != 1;  // shared: an older version is still needed
  std::shared_ptr<Slabs> own = shared ? uninitialised() : entries;
  if (shared || waits)
    for_slabs([&](Index p) {
      settle(e, p, 0, columns_);
      if (shared)
        std::memcpy(slab(*own, p), slab(e, p),
                    static_cast<std::size_t>(kSlabRows<T> * columns_) * sizeof(T));
    });
  e = {std::move(e.values)};
  return own;
}

template class StoredEntries<float>;
template class StoredEntries<double>;

}  // namespace tplimit::engines
