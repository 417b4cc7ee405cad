#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "moments/expectations.hpp"

namespace tplimit::moments::test {

/// A store, algebra and expectations without a program.
struct Setting {
  Executor executor{1};
  RunContext context{executor};
  CovarianceStore store{context};
  FieldAlgebra algebra{context, store, 1e-12};
  Expectations expectations{context, store, algebra};

  /// Independent N(0, 1) as the columns of a field.
  Field normals(int count) { return members(store.add_family({count, -1, false, nullptr}), count); }
  /// hatZ^{Wx}, or hatZ^{W'x}.
  Field product(int matrix, bool transposed, Field x) {
    const int count = x.columns;
    return members(
        store.add_family({count, matrix, transposed, std::make_shared<const Field>(std::move(x))}),
        count);
  }
  Field members(int family, int count) {
    std::vector<int> all;
    for (int i = 0; i < count; ++i) all.push_back(i);
    return algebra.of_block(
        store.insert({count, {}, {{family, std::move(all), Eigen::VectorXd::Ones(count), {}}}}));
  }
  /// f of each column.
  Field map(ir::Map f, std::vector<Field> in) {
    return algebra.simplified(algebra.apply(f, ir::Node{}, std::move(in)));
  }
  Field map(ir::Fn f, Field x) { return map({f, 0}, {std::move(x)}); }
};

}  // namespace tplimit::moments::test
