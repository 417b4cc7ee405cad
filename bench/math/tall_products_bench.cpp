// Products of tall, narrow panels beside Eigen and OpenBLAS, one core.  A panel of r directions
// lies in chunks of 256 rows, as the engine lays it out, and comes from main memory; an iteration
// takes one chunk, each time the next.

#include <cmath>
#include <type_traits>

#include <cblas.h>
#include <fmt/format.h>
#include <Eigen/Core>

#include "bench/bench.hpp"
#include "tplimit/math/tall_products.hpp"

namespace tplimit::bench {
namespace {

constexpr std::int64_t kRows = 256;

template <class T>
using Map = Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>>;
template <class T>
using ConstMap = Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>>;

/// out += a' x (r x P, x: 256 x P) or out += a x (256 x P, x: r x P), for a chunk a (256 x r) of a
/// panel.
template <class T, class X>
using Kernel = void (*)(std::int64_t r, std::int64_t P, const T* a, const X* x, X* out);

enum class Operation { kInner, kProduct };

template <Operation operation, class T>
void own(std::int64_t r, std::int64_t P, const T* a, const double* x, double* out) {
  if constexpr (operation == Operation::kInner)
    add_inner_products(kRows, a, kRows, r, x, kRows, P, out, r);
  else
    add_product(kRows, a, kRows, r, x, r, P, out, kRows);
}

template <Operation operation, class T>
void eigen(std::int64_t r, std::int64_t P, const T* a, const T* x, T* out) {
  if constexpr (operation == Operation::kInner)
    Map<T>(out, r, P).noalias() += ConstMap<T>(a, kRows, r).transpose() * ConstMap<T>(x, kRows, P);
  else
    Map<T>(out, kRows, P).noalias() += ConstMap<T>(a, kRows, r) * ConstMap<T>(x, r, P);
}

template <Operation operation, class T>
void openblas(std::int64_t r, std::int64_t P, const T* a, const T* x, T* out) {
  const auto rows = static_cast<blasint>(kRows), m = static_cast<blasint>(r),
             n = static_cast<blasint>(P);
  if constexpr (operation == Operation::kInner) {
    if constexpr (std::is_same_v<T, double>)
      cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, m, n, rows, 1, a, rows, x, rows, 1, out,
                  m);
    else
      cblas_sgemm(CblasColMajor, CblasTrans, CblasNoTrans, m, n, rows, 1, a, rows, x, rows, 1, out,
                  m);
  } else {
    if constexpr (std::is_same_v<T, double>)
      cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, n, m, 1, a, rows, x, m, 1, out,
                  rows);
    else
      cblas_sgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, n, m, 1, a, rows, x, m, 1, out,
                  rows);
  }
}

/// The same by its definition, in double.
template <Operation operation, class T, class X>
Eigen::MatrixXd reference(std::int64_t r, std::int64_t P, const T* a, const X* x) {
  const Eigen::MatrixXd left = ConstMap<T>(a, kRows, r).template cast<double>();
  if constexpr (operation == Operation::kInner)
    return left.transpose().lazyProduct(ConstMap<X>(x, kRows, P).template cast<double>());
  else
    return left.lazyProduct(ConstMap<X>(x, r, P).template cast<double>());
}

/// Memory for results that go to main memory.
template <class X>
std::span<X> results() {
  static std::vector<X> memory(kMainMemory / sizeof(X));
  return memory;
}

/// Frobenius norms; a product of single-precision numbers is off by about 1e-7.
template <class T>
constexpr double kTolerance = std::is_same_v<T, double> ? 1e-13 : 1e-6;

template <Operation operation, class T, class X>
void tall_product(benchmark::State& state, std::int64_t r, std::int64_t P, Kernel<T, X> kernel) {
  const std::span<const T> panel = main_memory_operands<T>();
  const std::span<const X> vectors = main_memory_operands<X>();
  const std::int64_t chunks = static_cast<std::int64_t>(panel.size()) / (kRows * r),
                     tall_chunks = static_cast<std::int64_t>(vectors.size()) / (kRows * P);
  // The tall one of x and out passes by like the panel (x from the far end, so that it is not read
  // as part of the panel just before).
  const auto call = [&](std::int64_t c, X* small_out) {
    const T* a = panel.data() + c % chunks * kRows * r;
    if constexpr (operation == Operation::kInner)
      kernel(r, P, a, vectors.data() + (tall_chunks - 1 - c % tall_chunks) * kRows * P, small_out);
    else
      kernel(r, P, a, vectors.data(), results<X>().data() + c % tall_chunks * kRows * P);
  };
  std::vector<X> inner(static_cast<std::size_t>(r * P));
  const Eigen::Index out_rows = operation == Operation::kInner ? r : kRows;
  X* first_out = operation == Operation::kInner ? inner.data() : results<X>().data();
  Map<X>(first_out, out_rows, P).setZero();
  call(0, inner.data());
  const Eigen::MatrixXd expected = reference<operation>(
      r, P, panel.data(),
      operation == Operation::kInner ? vectors.data() + (tall_chunks - 1) * kRows * P
                                     : vectors.data());
  if (!((ConstMap<X>(first_out, out_rows, P).template cast<double>() - expected).norm() <=
        kTolerance<T> * expected.norm()))
    return state.SkipWithError("wrong answer");
  std::int64_t c = 0;
  for (auto _ : state) {
    call(c++, inner.data());
    benchmark::ClobberMemory();
  }
  set_rate(state, "flops", 2.0 * static_cast<double>(kRows * r * P));
  // Read from memory: the panel and x, or the panel and out, which is written as well.
  set_rate(state, "bytes",
           static_cast<double>(kRows) *
               static_cast<double>(r * std::int64_t{sizeof(T)} +
                                   P * std::int64_t{sizeof(X)} *
                                       (operation == Operation::kInner ? 1 : 2)));
}

template <Operation operation, class T>
void register_all(const char* name, const char* type) {
  for (const std::int64_t r : {40, 320, 1600})
    for (const std::int64_t P : {4, 16, 32}) {
      const auto title = [&](const char* who) {
        return fmt::format("BM_{}/{}/r:{}/P:{}/{}", name, type, r, P, who);
      };
      benchmark::RegisterBenchmark(title("tplimit").c_str(), tall_product<operation, T, double>, r,
                                   P, &own<operation, T>);
      benchmark::RegisterBenchmark(title("eigen").c_str(), tall_product<operation, T, T>, r, P,
                                   &eigen<operation, T>);
      benchmark::RegisterBenchmark(title("openblas").c_str(), tall_product<operation, T, T>, r, P,
                                   &openblas<operation, T>);
    }
}

/// Gram matrix X'X / n of P vectors, such as gram(z): the vectors are both operands.
void gram(benchmark::State& state, std::int64_t P, Kernel<double, double> kernel) {
  const std::span<const double> x = main_memory_operands<double>();
  const std::int64_t chunks = static_cast<std::int64_t>(x.size()) / (kRows * P);
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(P, P);
  kernel(P, P, x.data(), x.data(), out.data());
  if (!out.isApprox(reference<Operation::kInner>(P, P, x.data(), x.data()), 1e-13))
    return state.SkipWithError("wrong answer");
  std::int64_t c = 0;
  for (auto _ : state) {
    const double* chunk = x.data() + c++ % chunks * kRows * P;
    kernel(P, P, chunk, chunk, out.data());
    benchmark::ClobberMemory();
  }
  set_rate(state, "flops", 2.0 * static_cast<double>(kRows * P * P));
  set_rate(state, "bytes", static_cast<double>(kRows * P * 8));
}

const bool registered = [] {
  register_all<Operation::kInner, double>("InnerProducts", "double");
  register_all<Operation::kProduct, double>("Product", "double");
  register_all<Operation::kInner, float>("InnerProducts", "float");
  register_all<Operation::kProduct, float>("Product", "float");
  for (const std::int64_t P : {8, 32}) {
    benchmark::RegisterBenchmark(fmt::format("BM_Gram/double/P:{}/tplimit", P).c_str(), gram, P,
                                 &own<Operation::kInner, double>);
    benchmark::RegisterBenchmark(fmt::format("BM_Gram/double/P:{}/eigen", P).c_str(), gram, P,
                                 &eigen<Operation::kInner, double>);
    benchmark::RegisterBenchmark(fmt::format("BM_Gram/double/P:{}/openblas", P).c_str(), gram, P,
                                 &openblas<Operation::kInner, double>);
  }
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
