#include "engines/dense_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tplimit/math/normals.hpp"
#include "tplimit/math/slab_products.hpp"

namespace tplimit::engines {
namespace {

using Index = std::int64_t;

/// Rows, or columns in a product with the transpose, that one thread handles at once: 64 kB of a
/// slab lie together.
constexpr Index kRange = 2 * kSlabColumns;
static_assert(kChunkRows % kRange == 0 && kRange % kSlabRows<float> == 0 &&
              kRange % kSlabRows<double> == 0);

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
template <class T>
void pack(const Executor& executor, const Block& x, double factor, Index block, Index offset,
          Index vectors, T* out) {
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

void save(Writer& out, const DenseEntries& entries) {
  for (const Buffer* buffer : {&entries.values, &entries.left, &entries.right}) buffer->save(out);
  out.value(entries.rank);
  out.value(entries.scale);
}

std::shared_ptr<DenseEntries> load_entries(Reader& in) {
  auto entries = std::make_shared<DenseEntries>();
  for (Buffer* buffer : {&entries->values, &entries->left, &entries->right})
    *buffer = Buffer::load(in);
  entries->rank = in.value<std::int64_t>();
  entries->scale = in.value<double>();
  return entries;
}

template <class T>
DenseMatrix<T>::DenseMatrix(const Executor& executor, Index width, std::uint64_t key)
    : executor_(executor),
      n_(width),
      slabs_((width + kSlabRows<T> - 1) / kSlabRows<T>),
      columns_(round_up(width, kColumnStep)),
      key_(key) {}

template <class T>
double DenseMatrix<T>::bytes(Index width) {
  return static_cast<double>(round_up(width, kSlabRows<T>)) *
         static_cast<double>(round_up(width, kColumnStep)) * static_cast<double>(sizeof(T));
}

template <class T>
double DenseMatrix<T>::packed_bytes(Index width, Index vectors) {
  return static_cast<double>(round_up(width, kSlabRows<T>) * round_up(vectors, kVectorStep)) *
         static_cast<double>(sizeof(T));
}

template <class T>
T* DenseMatrix<T>::slab(const DenseEntries& e, Index p) const {
  return array<T>(e.values) + p * kSlabRows<T> * columns_;
}

template <class T>
template <class F>
void DenseMatrix<T>::for_slabs(F&& f) const {
  constexpr Index group = kRange / kSlabRows<T>;
  executor_.parallel((slabs_ + group - 1) / group, [&](Index g) {
    for (Index p = g * group; p < std::min((g + 1) * group, slabs_); ++p) f(p);
  });
}

template <class T>
MatrixVersion DenseMatrix<T>::initial() {
  auto entries = std::make_shared<DenseEntries>();
  entries->values = buffer_of<T>(slabs_ * kSlabRows<T> * columns_);
  const double s = 1 / std::sqrt(static_cast<double>(n_));
  // Column j is stream j; normals are made faster by the hundred than by the slab.
  constexpr Index h = kSlabRows<T>, kGroup = kRange / h;
  executor_.parallel((slabs_ + kGroup - 1) / kGroup, [&](Index g) {
    const Index first = g * kGroup, last = std::min(first + kGroup, slabs_),
                rows = std::min(last * h, n_) - first * h;
    std::vector<double> normals(std::size_t{kRange});
    for (Index j = 0; j < columns_; ++j) {
      if (j < n_)
        plain_normals(mix_key(key_, static_cast<std::uint64_t>(j)),
                      static_cast<std::uint64_t>(first * h),
                      {normals.data(), static_cast<std::size_t>(rows)});
      else
        std::fill(normals.begin(), normals.end(), 0.0);
      for (Index p = first; p < last; ++p) {
        T* out = slab(*entries, p) + j * h;
        for (Index i = 0; i < h; ++i)
          out[i] = static_cast<T>(s * normals[static_cast<std::size_t>((p - first) * h + i)]);
      }
    }
  });
  MatrixVersion w;
  w.entries = std::move(entries);
  return w;
}

template <class T>
void DenseMatrix<T>::settle(const DenseEntries& e, Index p, Index first, Index count) const {
  constexpr Index h = kSlabRows<T>;
  T* const a = slab(e, p) + first * h;
  if (e.scale != 1)
    for (Index i = 0; i < count * h; ++i) a[i] *= static_cast<T>(e.scale);
  if (e.rank > 0)
    add_slab_update(a, count, array<T>(e.left) + p * h * e.rank, array<T>(e.right) + first * e.rank,
                    e.rank);
}

template <class T>
void DenseMatrix<T>::apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t,
                           std::uint64_t, Block& y) {
  constexpr Index h = kSlabRows<T>;
  DenseEntries& e = *w.entries;
  // Padded coordinates meet padded zeros of the matrix, padded vectors are not read: neither may
  // hold a NaN, so all is cleared.
  const Index vectors = round_up(x.columns(), transposed ? kVectorLanes<T> : kVectorStep),
              coordinates = transposed ? slabs_ * h : columns_;
  const Buffer packed = buffer_of<T>(coordinates * vectors);
  std::fill_n(array<T>(packed), coordinates * vectors, T{0});
  pack(executor_, x, 1, transposed ? 1 : kColumnBlock, 0, vectors, array<T>(packed));
  const auto write = [&](Index row, Index q, double value) {
    y.chunk(row / kChunkRows)[q * y.ld() + row % kChunkRows] = w.scale * value;
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
typename DenseMatrix<T>::Factors DenseMatrix<T>::factors(const std::vector<UpdateTerm>& terms,
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
    pack(executor_, *t.d, factor * t.c, h, offset, f.rank, array<T>(f.left));
    pack(executor_, *t.x, 1, kColumnBlock, offset, f.rank, array<T>(f.right));
    offset += t.d->columns();
  }
  return f;
}

template <class T>
MatrixVersion DenseMatrix<T>::owned(MatrixVersion w) const {
  DenseEntries& e = *w.entries;
  const bool shared = w.entries.use_count() > 1,
             waits = e.rank > 0 || e.scale != 1;  // shared: an older version is still needed
  std::shared_ptr<DenseEntries> own = w.entries;
  if (shared) {
    own = std::make_shared<DenseEntries>();
    own->values = buffer_of<T>(slabs_ * kSlabRows<T> * columns_);
  }
  if (shared || waits)
    for_slabs([&](Index p) {
      settle(e, p, 0, columns_);
      if (shared)
        std::memcpy(slab(*own, p), slab(e, p),
                    static_cast<std::size_t>(kSlabRows<T> * columns_) * sizeof(T));
    });
  e = {std::move(e.values)};
  w.entries = std::move(own);
  return w;
}

template <class T>
MatrixVersion DenseMatrix<T>::update(MatrixVersion w, const std::vector<UpdateTerm>& terms) {
  w = owned(std::move(w));
  Factors f = factors(terms, 1 / static_cast<double>(n_));
  *w.entries = {std::move(w.entries->values), std::move(f.left), std::move(f.right), f.rank,
                w.scale};
  w.scale = 1;
  return w;
}

template <class T>
MatrixVersion DenseMatrix<T>::update_entrywise(MatrixVersion w,
                                               const std::vector<UpdateTerm>& terms, double c,
                                               double epsilon) {
  constexpr Index h = kSlabRows<T>;
  w = owned(std::move(w));
  const Factors f = factors(terms, 1);
  const auto psi = [&](T g) {
    const double x = static_cast<double>(g);
    return x == 0         ? 0
           : epsilon == 0 ? std::copysign(1.0, x)
                          : x / std::sqrt(x * x + epsilon * epsilon);
  };
  for_slabs([&](Index p) {
    std::vector<T> g(static_cast<std::size_t>(kSlabColumns * h));
    for (Index k = 0; k < columns_; k += kSlabColumns) {
      const Index some = std::min(kSlabColumns, columns_ - k);
      std::fill(g.begin(), g.end(), T{0});
      add_slab_update(g.data(), some, array<T>(f.left) + p * h * f.rank,
                      array<T>(f.right) + k * f.rank, f.rank);
      T* a = slab(*w.entries, p) + k * h;
      for (Index i = 0; i < some * h; ++i)
        a[i] = static_cast<T>(w.scale * static_cast<double>(a[i]) +
                              c * psi(g[static_cast<std::size_t>(i)]));
    }
  });
  w.scale = 1;
  return w;
}

template class DenseMatrix<float>;
template class DenseMatrix<double>;

}  // namespace tplimit::engines
