#include "engines/entry_sweep.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "engines/width_matrix.hpp"
#include "tplimit/math/slab_products.hpp"

namespace tplimit::engines {

using namespace ir;
using Index = std::int64_t;
using Where = Plan::Place::Where;

namespace {

/// Columns of a slab in one piece: 2,048 numbers, so that ten scratch columns stay in the second
/// cache.
template <class T>
constexpr Index kPieceColumns = 2048 / kSlabRows<T>;

/// An operation, with all that is the same for every piece.
template <class T>
struct Prepared {
  Node node;                                   ///< an operation on entries as one on vectors
  std::vector<const Type*> types;              ///< of its operands
  std::vector<double> numbers;                 ///< operands without entries
  typename StoredEntries<T>::Factors factors;  ///< of an outer sum
  Slabs* matrix = nullptr;                     ///< to which entries are added
  double factor = 0;
};

template <class T>
Prepared<T> prepared(const StoredEntries<T>& arrays, const Program& program,
                     const Plan::Sweep::Operation& operation, const EntrySweepOperands& operands) {
  static const Type kEntry{false, true, {}}, kNumber{};
  const Node& node = program[operation.node];
  Prepared<T> out{{node.op, kEntry, node.in, node.span, node.context}, {}, {}, {}, nullptr, 0};
  if (std::holds_alternative<OuterSum>(node.op)) {
    std::vector<UpdateTerm> terms;
    for (std::size_t k = 0; k < node.in.size(); k += 3)
      terms.push_back({operands.number(node.in[k]), &operands.block(node.in[k + 1]),
                       &operands.block(node.in[k + 2]), 0, 0, 0, 0});
    out.factors = arrays.factors(terms, 1);
  } else if (std::holds_alternative<AddEntries>(node.op)) {
    out.matrix = &operands.entries(operation.node);
    out.factor = operands.number(node.in[1]) / static_cast<double>(arrays.rows());
  }
  for (std::size_t k = 0; k < node.in.size(); ++k) {
    const bool entries = program[node.in[k]].type.entries;
    out.types.push_back(entries ? &kEntry : &kNumber);
    out.numbers.push_back(operation.in[k].where == Where::kFinite ? operands.number(node.in[k])
                                                                  : 0.0);
  }
  return out;
}

}  // namespace

template <class T>
void sweep_entries(const Executor& executor, const StoredEntries<T>& arrays, const Program& program,
                   const Plan::EntrySweep& plan, const EntrySweepOperands& operands) {
  constexpr Index h = kSlabRows<T>, kPiece = h * kPieceColumns<T>;
  const Index n = arrays.rows(), columns = arrays.columns();
  std::vector<Prepared<T>> all;
  for (const auto& operation : plan.operations) {
    all.push_back(prepared(arrays, program, operation, operands));
    executor.count(static_cast<double>(n) * static_cast<double>(n) *
                   static_cast<double>(1 + 2 * all.back().factors.rank));
  }
  std::vector<Slabs*> loaded, stored;
  for (const auto& load : plan.loads) loaded.push_back(&operands.entries(load.node));
  for (const auto& store : plan.stores) stored.push_back(&operands.entries(store.node));
  std::atomic<bool> finite = true;

  arrays.for_slab_groups([&](Index first, Index last) {
    const Buffer scratch(plan.scratch_columns * kPiece);
    std::vector<T> outer(static_cast<std::size_t>(kPiece));
    std::vector<View> in;
    const auto column = [&](Index k) { return scratch.data() + k * kPiece; };
    for (Index p = first; p < last; ++p)
      for (Index j = 0; j < columns; j += kPieceColumns<T>) {
        const Index some = std::min(kPieceColumns<T>, columns - j), size = some * h;
        for (std::size_t k = 0; k < loaded.size(); ++k)
          std::copy_n(arrays.slab(*loaded[k], p) + j * h, size, column(plan.loads[k].column));
        for (std::size_t o = 0; o < all.size(); ++o) {
          const Prepared<T>& own = all[o];
          const auto& places = plan.operations[o].in;
          double* out = column(plan.operations[o].out.offset);
          in.clear();
          for (std::size_t k = 0; k < places.size(); ++k)
            in.push_back(places[k].where == Where::kFinite
                             ? View{&own.numbers[k], 1, 1}
                             : View{column(places[k].offset), size, size});
          if (own.matrix) {
            T* a = arrays.slab(*own.matrix, p) + j * h;
            const bool number = places[2].where == Where::kFinite;
            double most = 0;
            for (Index c = 0; c < std::min(some, n - j); ++c)
              for (Index i = 0; i < std::min(h, n - p * h); ++i) {
                const double x = own.factor * (number ? own.numbers[2] : in[2].data[c * h + i]);
                most = std::max(most, std::abs(x) < INFINITY ? 0.0 : 1.0);
                a[c * h + i] =
                    static_cast<T>(own.matrix->scale * static_cast<double>(a[c * h + i]) + x);
              }
            if (most > 0) finite = false;
          } else if (own.factors.rank > 0) {
            std::fill_n(outer.data(), size, T{0});
            arrays.add(own.factors, p, j, some, outer.data());
            std::copy_n(outer.data(), size, out);
          } else {
            evaluate_rows(own.node, own.types, in, {out, size, size});
          }
        }
        for (std::size_t k = 0; k < stored.size(); ++k) {
          const double* from = column(plan.stores[k].column);
          std::transform(from, from + size, arrays.slab(*stored[k], p) + j * h,
                         [](double x) { return static_cast<T>(x); });
        }
      }
  });
  for (const Prepared<T>& own : all)
    if (own.matrix) own.matrix->scale = 1;
  if (!finite) throw not_finite();
}

template void sweep_entries(const Executor&, const StoredEntries<float>&, const Program&,
                            const Plan::EntrySweep&, const EntrySweepOperands&);
template void sweep_entries(const Executor&, const StoredEntries<double>&, const Program&,
                            const Plan::EntrySweep&, const EntrySweepOperands&);

}  // namespace tplimit::engines
