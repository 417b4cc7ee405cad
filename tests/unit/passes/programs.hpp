#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <Eigen/Core>

#include "driver/error_budget.hpp"
#include "tests/support/run.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

/// Small programs for tests of passes: from text or by a Builder, and what they compute.
namespace tplimit::test {

/// A program as lowered, with Stop, Parameter and Change nodes in place.
inline ir::Program lowered(const std::string& text) { return *parsed(text).written; }
/// As the limit passes get it.
inline ir::Program cleaned(const std::string& text) { return parsed(text).program; }

inline void add_report(ir::Program& program, const std::string& name, ir::NodeId value) {
  program.reports.push_back({name, {}, {{{}, value}}, {}, false});
}

/// One network of width n, every value in memory.  Gaussians are drawn by the names of their
/// sources: programs before and after a pass are the same network.
class Network {
 public:
  Network(const ir::Program& program, std::int64_t n, std::uint64_t seed = 0)
      : program_(at_width(program, static_cast<double>(n))), n_(n), seed_(seed) {
    values_.resize(program_.size());
    matrices_.resize(program_.size());
    for (std::uint32_t k = 0; k < program_.size(); ++k) evaluate(k);
  }
  /// Row-major over the finite axes; a width axis varies fastest.
  [[nodiscard]] const std::vector<double>& operator[](ir::NodeId id) const {
    return values_[id.value];
  }
  [[nodiscard]] std::vector<std::vector<double>> reports() const {
    std::vector<std::vector<double>> out;
    for (const ir::Report& report : program_.reports)
      for (const auto& entry : report.entries) out.push_back((*this)[entry.value]);
    return out;
  }

 private:
  using Matrix = Eigen::MatrixXd;
  Eigen::Map<const Matrix> columns(ir::NodeId id) const {
    return {values_[id.value].data(), n_,
            static_cast<Eigen::Index>(ir::size_of(program_[id].type.dims))};
  }
  std::uint64_t key_of(ir::SourceId source) const {
    return mix_key(seed_, std::hash<std::string>{}(program_.sources[source.value].name));
  }
  void evaluate(std::uint32_t k) {
    const ir::Node& node = program_.nodes[k];
    const std::int64_t rows = node.type.width ? n_ : 1;
    std::vector<double>& out = values_[k];
    if (!node.type.matrix) out.resize(static_cast<std::size_t>(rows * ir::size_of(node.type.dims)));
    std::vector<ir::View> in;
    std::vector<const ir::Type*> types;
    for (const ir::NodeId id : node.in) {
      const std::int64_t own = program_[id].type.width ? n_ : 1;
      in.push_back({values_[id.value].data(), own, own});
      types.push_back(&program_[id].type);
    }
    const auto identity = [&] {
      out = values_[node.in[0].value];
      matrices_[k] = matrices_[node.in[0].value];
    };
    const auto other = [&] {
      if (ir::is_average(node.op)) {
        ir::accumulate_average(node, types, in, out.data());
        for (double& v : out) v /= static_cast<double>(n_);
      } else if (ir::is_rowwise(node.op)) {
        ir::evaluate_rows(node, types, in, {out.data(), rows, rows});
      } else {
        throw std::runtime_error(std::string("no program of these tests has ") +
                                 ir::op_name(node.op));
      }
    };
    std::visit(
        overloaded{
            [&](const ir::Constant& c) { out = *c.values; },
            [&](const ir::Stop&) { identity(); },
            [&](const ir::Parameter&) { identity(); },
            [&](const ir::Change&) { identity(); },
            [&](const ir::StandardNormal& s) {
              plain_normals(key_of(s.source), 0, {out.data(), out.size()});
            },
            [&](const ir::GaussianMatrix& g) {
              matrices_[k].resize(n_, n_);
              plain_normals(key_of(g.source), 0,
                            {matrices_[k].data(), static_cast<std::size_t>(matrices_[k].size())});
              matrices_[k] /= std::sqrt(static_cast<double>(n_));
            },
            [&](const ir::ScaleMatrix&) {
              matrices_[k] = values_[node.in[1].value][0] * matrices_[node.in[0].value];
            },
            [&](const ir::AddVersion&) {
              matrices_[k] = matrices_[node.in[0].value] +
                             values_[node.in[1].value][0] * matrices_[node.in[2].value];
            },
            [&](const ir::InnerProduct&) {
              out = {matrices_[node.in[0].value].cwiseProduct(matrices_[node.in[1].value]).sum() /
                     static_cast<double>(n_)};
            },
            [](const ir::OuterSum&) { throw std::runtime_error("no entrywise updates here"); },
            [](const ir::AddEntries&) { throw std::runtime_error("no entrywise updates here"); },
            [&](const ir::UpdateMatrix&) {
              matrices_[k] = matrices_[node.in[0].value];
              for (std::size_t t = 1; t + 2 < node.in.size(); t += 3)
                matrices_[k] += values_[node.in[t].value][0] / static_cast<double>(n_) *
                                columns(node.in[t + 1]) * columns(node.in[t + 2]).transpose();
            },
            [&](const ir::MatMul& m) {
              const Matrix& w = matrices_[node.in[0].value];
              Eigen::Map<Matrix>(out.data(), n_, columns(node.in[1]).cols()) =
                  m.transposed ? Matrix(w.transpose() * columns(node.in[1]))
                               : Matrix(w * columns(node.in[1]));
            },
            [&](const auto&) { other(); },
        },
        node.op);
  }

  ir::Program program_;
  std::int64_t n_;
  std::uint64_t seed_;
  std::vector<std::vector<double>> values_;
  std::vector<Matrix> matrices_;
};

/// The same reports in networks of some widths, but for rounding.
inline void expect_same_networks(const ir::Program& a, const ir::Program& b) {
  for (const std::int64_t n : {1, 7, 32}) {
    const auto before = Network(a, n).reports(), after = Network(b, n).reports();
    ASSERT_EQ(before.size(), after.size());
    for (std::size_t r = 0; r < before.size(); ++r) {
      ASSERT_EQ(before[r].size(), after[r].size());
      for (std::size_t k = 0; k < before[r].size(); ++k)
        EXPECT_NEAR(before[r][k], after[r][k], 1e-12 * (1 + std::abs(before[r][k])))
            << "width " << n << ", report " << r << ", entry " << k;
    }
  }
}

/// Reports of a limit, without sampling: to twelve digits.
inline std::vector<std::vector<double>> limits_of(const LeadingOrder& limit) {
  EvaluateOptions options;
  options.engine = Engine::kMoments;
  const auto result = within_tolerance(limit, options);
  if (!result) throw std::runtime_error(result.errors()[0].message);
  std::vector<std::vector<double>> out;
  for (const ReportResult& report : result->reports) out.push_back(report.value);
  return out;
}
inline std::vector<std::vector<double>> limits_of(const ir::Program& program) {
  const auto limit = leading_order(program);
  if (!limit) throw std::runtime_error(limit.errors()[0].message);
  return limits_of(*limit);
}

}  // namespace tplimit::test
