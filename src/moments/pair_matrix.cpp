#include "moments/pair_matrix.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <unordered_map>

#include "tplimit/support/check.hpp"

namespace tplimit::moments {

namespace {
constexpr int kTileRows = 256,
              kTileColumns = 8;          // the channels of a tile stay in the second cache, and the
                                         // bookkeeping of a column is spread over many rows
constexpr double kGenericError = 1e-14;  // of dual_kernel, relative to sqrt(K(a,a) K(b,b))

int padded(int size) { return (size + kTileRows - 1) / kTileRows * kTileRows; }
std::uint64_t next_serial() {
  static std::atomic<std::uint64_t> serial = 0;
  return ++serial;
}
}  // namespace

PairSide::PairSide(std::size_t size)
    : variance(static_cast<std::size_t>(padded(static_cast<int>(size))), 1.0),
      root(variance),
      error(variance.size(), 0.0) {}

PairMatrix::PairMatrix(Kind kind, int rows, int columns, bool symmetric)
    : kind_(kind), rows_(rows), columns_(columns), symmetric_(symmetric), serial_(next_serial()) {}

/// Long chains are taken apart one by one: nested destructors would overflow the stack.
PairMatrix::~PairMatrix() {
  std::vector<Pairs> left = std::move(in_);
  while (!left.empty()) {
    const Pairs x = std::move(left.back());
    left.pop_back();
    if (x && x.use_count() == 1) {
      left.insert(left.end(), std::make_move_iterator(x->in_.begin()),
                  std::make_move_iterator(x->in_.end()));
      x->in_.clear();
    }
  }
}

PairColumn PairMatrix::diagonal(const PairSide& s) {
  return {s.variance.size(),
          s.variance.data(),
          s.root.data(),
          s.error.data(),
          s.variance.data(),
          s.root.data(),
          s.error.data(),
          false,
          true};
}

/// Rows row..row + size of column j.
PairColumn PairMatrix::column(int row, int size, int j) const {
  PairColumn out;
  out.count = static_cast<std::size_t>(size);
  if (!left_ || !right_) return out;
  out.a = left_->variance.data() + row, out.root_a = left_->root.data() + row,
  out.error_a = left_->error.data() + row;
  out.b = right_->variance.data() + j, out.root_b = right_->root.data() + j,
  out.error_b = right_->error.data() + j;
  out.one_b = true;
  return out;
}

Pairs PairMatrix::dense(std::shared_ptr<const Eigen::MatrixXd> values, double error, bool symmetric,
                        std::vector<int> rows, std::vector<int> columns) {
  const int count = rows.empty() ? static_cast<int>(values->rows()) : static_cast<int>(rows.size());
  const int across =
      columns.empty() ? static_cast<int>(values->cols()) : static_cast<int>(columns.size());
  std::shared_ptr<PairMatrix> out(new PairMatrix(Kind::kDense, count, across, symmetric));
  out->values_ = std::move(values);
  out->error_ = error;
  out->row_map_ = std::move(rows);
  out->column_map_ = std::move(columns);
  out->find_sides();
  return out;
}

Pairs PairMatrix::gram(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) {
  const bool symmetric = b.size() == 0;
  const auto rows = static_cast<int>(a.rows()),
             columns = symmetric ? rows : static_cast<int>(b.rows());
  std::shared_ptr<PairMatrix> out(new PairMatrix(Kind::kGram, rows, columns, symmetric));
  out->depth_ = static_cast<std::size_t>(a.cols());
  const auto copy = [&](const Eigen::MatrixXd& from, std::vector<double>& to,
                        std::size_t& leading) {
    leading = static_cast<std::size_t>(padded(static_cast<int>(from.rows())));
    to.assign(leading * out->depth_, 0.0);
    for (Eigen::Index k = 0; k < from.cols(); ++k)
      std::copy_n(from.col(k).data(), from.rows(),
                  to.data() + static_cast<std::size_t>(k) * leading);
  };
  copy(a, out->a_, out->leading_);
  if (!symmetric) copy(b, out->b_, out->leading_b_);
  out->gapped_ = true;
  out->gap_ = {(8 + 0.5 * static_cast<double>(out->depth_)) * kEpsilon, 0, 2 * kEpsilon};
  out->find_sides();
  return out;
}

Pairs PairMatrix::outer(const Eigen::VectorXd& u, const Eigen::VectorXd& v, double error,
                        bool symmetric) {
  std::shared_ptr<PairMatrix> out(new PairMatrix(Kind::kOuter, static_cast<int>(u.size()),
                                                 static_cast<int>(v.size()), symmetric));
  out->a_.assign(static_cast<std::size_t>(padded(static_cast<int>(u.size()))), 0.0);
  out->b_.assign(static_cast<std::size_t>(padded(static_cast<int>(v.size()))), 0.0);
  std::copy_n(u.data(), u.size(), out->a_.data());
  std::copy_n(v.data(), v.size(), out->b_.data());
  out->error_ = error;
  out->gapped_ = true;
  out->find_sides();
  return out;
}

Pairs PairMatrix::scaled(const Pairs& x, double left, double right, double relative) {
  if (left == 1 && right == 1 && relative == 0) return x;
  std::shared_ptr<PairMatrix> out(
      new PairMatrix(Kind::kScaled, x->rows_, x->columns_, x->symmetric_ && left == right));
  out->in_ = {x};
  out->scale_left_ = left;
  out->scale_right_ = right;
  out->error_ = relative;
  out->gapped_ = x->gapped_;
  out->gap_ = x->gap_;
  out->find_sides();
  return out;
}

Pairs PairMatrix::multiple(const Pairs& x, double factor, double relative) {
  if (factor == 1 && relative == 0) return x;
  std::shared_ptr<PairMatrix> out(
      new PairMatrix(Kind::kScaled, x->rows_, x->columns_, x->symmetric_));
  out->in_ = {x};
  out->scale_left_ = factor;
  out->error_ = relative;
  return out;
}

Pairs PairMatrix::sum(const Pairs& x, const Pairs& y, double sign, bool symmetric) {
  std::shared_ptr<PairMatrix> out(new PairMatrix(Kind::kSum, x->rows_, x->columns_,
                                                 symmetric || (x->symmetric_ && y->symmetric_)));
  out->sign_ = sign;
  out->in_ = {x, y};
  out->gapped_ = sign == 1 && x->gapped_ && y->gapped_ && x->left_ && y->left_;
  out->gap_ = {std::max(x->gap_.relative, y->gap_.relative) + 6 * kEpsilon,
               x->gap_.absolute + y->gap_.absolute, x->gap_.sine + y->gap_.sine + 2 * kEpsilon};
  if (sign == 1 || out->symmetric_) out->find_sides();
  return out;
}

Pairs PairMatrix::product(const Pairs& x, const Pairs& y) {
  std::shared_ptr<PairMatrix> out(
      new PairMatrix(Kind::kProduct, x->rows_, x->columns_, x->symmetric_ && y->symmetric_));
  out->in_ = {x, y};
  out->gapped_ = x->gapped_ && y->gapped_;
  out->gap_ = {std::max(x->gap_.relative, y->gap_.relative) + 2 * kEpsilon,
               x->gap_.absolute + y->gap_.absolute, x->gap_.sine + y->gap_.sine};
  out->find_sides();
  return out;
}

Pairs PairMatrix::angles(const Pairs& x, bool negative) {
  auto& known = x->angles_[negative ? 1 : 0];
  if (Pairs out = known.lock()) return out;
  std::shared_ptr<PairMatrix> out(
      new PairMatrix(Kind::kAngles, x->rows_, x->columns_, x->symmetric_));
  out->in_ = {x};
  out->sign_ = negative ? -1 : 1;
  out->left_ = x->left_;
  out->right_ = x->right_;
  known = out;
  return out;
}

Pairs PairMatrix::kernel(const Pairs& x, const PairForm& form) {
  TPLIMIT_CHECK(x->left_ && x->right_, "a kernel needs variances");
  const double scale = form.scale_f * form.scale_g;
  const DualFunction* both = form.both;
  const auto* power = both ? std::get_if<ReluPower>(both) : nullptr;
  const auto* slope = both ? std::get_if<TwoSlope>(both) : nullptr;
  const auto* step = both ? std::get_if<TwoStep>(both) : nullptr;
  const auto* erf = both ? std::get_if<ScaledErf>(both) : nullptr;
  const TwoSlope relu{0, 1, 0};
  const TwoStep indicator{0, 1, 0};
  if (power && power->n == 1) slope = &relu;
  if (power && power->n == 0) step = &indicator;
  const auto* bell = both ? std::get_if<GaussBell>(both) : nullptr;
  if (form.scale_f != form.scale_g) erf = nullptr, bell = nullptr;
  if (bell && !(bell->B > 0)) bell = nullptr;
  const Kind kind = slope  ? Kind::kTwoSlope
                    : step ? Kind::kTwoStep
                    : erf  ? Kind::kErf
                    : bell ? Kind::kBell
                           : Kind::kClosed;
  std::vector<Pairs> in{x};
  if (slope || step) in.push_back(angles(x, scale < 0));
  std::shared_ptr<PairMatrix> out(
      new PairMatrix(kind, x->rows_, x->columns_, x->symmetric_ && form.symmetric));
  out->in_ = std::move(in);
  out->scale_left_ = form.scale_f;
  out->scale_right_ = form.scale_g;
  out->factor_ = form.factor;
  if (slope) {
    out->two_slope_ = *slope;
    out->gapped_ = x->gapped_ && form.symmetric;
    out->gap_ = after_two_slope(*slope, x->gap_);
  } else if (step) {
    out->two_step_ = *step;
    out->gapped_ = x->gapped_ && form.symmetric;
    out->gap_ = after_two_step(*step, x->gap_);
  } else if (erf) {
    out->erf_ = *erf;
  } else if (bell) {
    out->bell_ = *bell;
  } else {
    out->form_ = form;
  }
  if (form.symmetric) out->find_sides();
  return out;
}

Pairs PairMatrix::with_sides(const Pairs& x, std::shared_ptr<const PairSide> left,
                             std::shared_ptr<const PairSide> right) {
  std::shared_ptr<PairMatrix> out(
      new PairMatrix(Kind::kSided, x->rows_, x->columns_, x->symmetric_));
  out->in_ = {x};
  out->left_ = std::move(left);
  out->right_ = std::move(right);
  return out;
}

/// This node of chosen inputs.
Pairs PairMatrix::selected(const Selection& s, std::vector<Pairs> in) const {
  if (kind_ == Kind::kAngles) return angles(in[0], sign_ < 0);
  std::shared_ptr<PairMatrix> out(new PairMatrix(kind_, static_cast<int>(s.rows.size()),
                                                 static_cast<int>(s.columns.size()),
                                                 symmetric_ && s.rows == s.columns));
  const auto side = [](const std::shared_ptr<const PairSide>& from,
                       const std::vector<int>& index) -> std::shared_ptr<const PairSide> {
    if (!from) return nullptr;
    auto to = std::make_shared<PairSide>(index.size());
    for (std::size_t i = 0; i < index.size(); ++i) {
      const auto k = static_cast<std::size_t>(index[i]);
      to->variance[i] = from->variance[k], to->root[i] = from->root[k],
      to->error[i] = from->error[k];
    }
    return to;
  };
  out->in_ = std::move(in);
  out->left_ = side(left_, s.rows);
  out->right_ = s.rows == s.columns && left_ == right_ ? out->left_ : side(right_, s.columns);
  out->gapped_ = gapped_;
  out->gap_ = gap_;
  out->error_ = error_;
  out->scale_left_ = scale_left_, out->scale_right_ = scale_right_, out->factor_ = factor_,
  out->sign_ = sign_;
  out->two_slope_ = two_slope_, out->two_step_ = two_step_, out->erf_ = erf_, out->bell_ = bell_,
  out->form_ = form_;
  out->selection_ = std::make_shared<const Selection>(s);
  const auto composed = [](const std::vector<int>& map, const std::vector<int>& index) {
    if (map.empty()) return index;
    std::vector<int> to;
    for (const int i : index) to.push_back(map[static_cast<std::size_t>(i)]);
    return to;
  };
  if (kind_ == Kind::kDense) {
    out->values_ = values_;
    out->row_map_ = composed(row_map_, s.rows);
    out->column_map_ = composed(column_map_, s.columns);
  } else if (kind_ == Kind::kGram || kind_ == Kind::kOuter) {
    const std::size_t depth = kind_ == Kind::kOuter ? 1 : depth_;
    const auto gather = [depth](const std::vector<double>& from, std::size_t from_leading,
                                const std::vector<int>& index, std::vector<double>& to,
                                std::size_t& leading) {
      leading = static_cast<std::size_t>(padded(static_cast<int>(index.size())));
      to.assign(leading * depth, 0.0);
      for (std::size_t k = 0; k < depth; ++k)
        for (std::size_t i = 0; i < index.size(); ++i)
          to[k * leading + i] = from[k * from_leading + static_cast<std::size_t>(index[i])];
    };
    const bool own_right = kind_ == Kind::kOuter || !symmetric_;
    out->depth_ = depth_;
    gather(a_, leading_, s.rows, out->a_, out->leading_);
    if (!out->symmetric_ || kind_ == Kind::kOuter)
      gather(own_right ? b_ : a_, own_right ? leading_b_ : leading_, s.columns, out->b_,
             out->leading_b_);
  }
  return out;
}

Pairs PairMatrix::selected(const Pairs& x, std::vector<int> rows, std::vector<int> columns) {
  if (x->selection_) {
    for (int& i : rows) i = x->selection_->rows[static_cast<std::size_t>(i)];
    for (int& j : columns) j = x->selection_->columns[static_cast<std::size_t>(j)];
    return selected(x->selection_->of, std::move(rows), std::move(columns));
  }
  const auto in_order = [](const std::vector<int>& index, int size) {
    if (static_cast<int>(index.size()) != size) return false;
    for (int i = 0; i < size; ++i)
      if (index[static_cast<std::size_t>(i)] != i) return false;
    return true;
  };
  if (in_order(rows, x->rows_) && in_order(columns, x->columns_)) return x;
  // Operands first; those of an earlier selection are found again.
  Selection s{x, std::move(rows), std::move(columns)};
  std::unordered_map<const PairMatrix*, Pairs> done;
  std::vector<std::pair<Pairs, bool>> left{{x, false}};
  while (!left.empty()) {
    const auto [node, visited] = left.back();
    left.pop_back();
    Pairs& out = done[node.get()];
    if (out) continue;
    for (const auto& known : node->selections_)
      if (Pairs other = known.lock();
          other && other->selection_->rows == s.rows && other->selection_->columns == s.columns)
        out = std::move(other);
    if (out) continue;
    if (node->selection_) {
      out = selected(node, s.rows, s.columns);
      continue;
    }
    if (!visited) {
      left.emplace_back(node, true);
      for (const Pairs& in : node->in_) left.emplace_back(in, false);
      continue;
    }
    std::vector<Pairs> in;
    for (const Pairs& operand : node->in_) in.push_back(done[operand.get()]);
    s.of = node;
    const Pairs made = node->selected(s, std::move(in));
    done[node.get()] = made;
    if (!made->selection_) continue;  // angles are found with their operand
    std::erase_if(node->selections_, [](const auto& known) { return known.expired(); });
    node->selections_.push_back(made);
  }
  return done[x.get()];
}

void PairMatrix::find_sides() {
  left_ = side_of(true);
  right_ = symmetric_ ? left_ : side_of(false);
}

/// Rows first..first + 8 of x, as gram_tile takes them.
void PairMatrix::pack(const std::vector<double>& x, std::size_t leading, std::size_t first,
                      std::vector<double>& packed) const {
  packed.resize(depth_ * kPairLanes);
  for (std::size_t k = 0; k < depth_; ++k)
    std::copy_n(x.data() + first + k * leading, kPairLanes, packed.data() + k * kPairLanes);
}

/// The entries of the inputs of a side with themselves; null if they are not known.
std::shared_ptr<const PairSide> PairMatrix::side_of(bool left) const {
  const int size = left ? rows_ : columns_;
  auto out = std::make_shared<PairSide>(static_cast<std::size_t>(size));
  const std::size_t count = out->variance.size();
  std::vector<double> value(count, 1.0), error(count, 0.0), zero(count, 0.0), gap(count, 0.0);
  if (kind_ == Kind::kDense) {
    if (!symmetric_) return nullptr;
    for (int i = 0; i < size; ++i) {
      const int k = row_map_.empty() ? i : row_map_[static_cast<std::size_t>(i)];
      value[static_cast<std::size_t>(i)] = (*values_)(k, k);
      error[static_cast<std::size_t>(i)] = error_;
    }
  } else if (kind_ == Kind::kGram) {
    // By the same function, so that sums have the same bits.
    const std::vector<double>& x = left || symmetric_ ? a_ : b_;
    const std::size_t leading = left || symmetric_ ? leading_ : leading_b_;
    std::vector<double> own(kPairLanes * kPairLanes), packed;
    for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
      const std::size_t first = i / kPairLanes * kPairLanes;
      if (i == first) {
        pack(x, leading, first, packed);
        gram_tile(kPairLanes, x.data() + first, leading, packed.data(), depth_, own.data(),
                  kPairLanes);
      }
      value[i] = own[(i - first) * (kPairLanes + 1)];
      error[i] = kEpsilon * (2 + 0.5 * static_cast<double>(depth_)) * value[i];
    }
  } else if (kind_ == Kind::kOuter) {
    const std::vector<double>& u = left ? a_ : b_;
    for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
      value[i] = u[i] * u[i];
      error[i] = error_;
    }
  } else {
    std::vector<PairColumn> sides;
    std::vector<Channels> in;
    std::array<std::vector<double>, 4> angle;
    for (const Pairs& x : in_) {
      const auto& side = left ? x->left_ : x->right_;
      if (!side) return nullptr;
      sides.push_back(diagonal(*side));
      if (x->kind_ == Kind::kAngles) {
        for (auto& channel : angle) channel.assign(count, 0.0);
        pair_angles(sides.back(), 1, side->variance.data(), zero.data(), zero.data(),
                    {angle[0].data(), angle[1].data(), angle[2].data(), angle[3].data()});
        in.push_back({{angle[0].data(), angle[1].data(), angle[2].data(), angle[3].data()}});
      } else {
        // Absolute errors; the gap of a variable with itself is 0.
        auto& absolute = in.empty() ? error : gap;
        for (std::size_t i = 0; i < count; ++i) absolute[i] = side->error[i] * side->variance[i];
        in.push_back(
            {{const_cast<double*>(side->variance.data()), absolute.data(), zero.data(), nullptr}});
      }
    }
    PairMatrix own = *this;  // with equal scales on both sides
    own.in_.clear();
    const double scale = left ? scale_left_ : scale_right_;
    own.scale_left_ = own.scale_right_ = scale;
    MomentStatus status;
    std::vector<double> error_out(count, 0.0);
    own.entries(sides[0], sides, in, {{value.data(), error_out.data(), nullptr, nullptr}}, false, 0,
                0, static_cast<int>(count), nullptr, status);
    error = std::move(error_out);
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
    out->variance[i] = value[i];
    out->root[i] = std::sqrt(std::max(0.0, value[i]));
    out->error[i] = value[i] > 0 ? error[i] / value[i] : 0.0;
  }
  return out;
}

void PairMatrix::dense_entries(int row, int j, int size, const PairOutput& to) const {
  const int c = column_map_.empty() ? j : column_map_[static_cast<std::size_t>(j)],
            end = std::min(rows_, row + size);
  const double* from = values_->col(c).data();
  if (row_map_.empty())
    std::copy_n(from + row, end - row, to.value);
  else
    for (int i = row; i < end; ++i) to.value[i - row] = from[row_map_[static_cast<std::size_t>(i)]];
  std::fill(to.value + (end - row), to.value + size, 0.0);
  std::fill_n(to.error, size, error_);
}

void PairMatrix::angle_entries(const PairColumn& p, const PairInput& in, const Channels& out,
                               MomentStatus& status) const {
  std::array<double, kTileRows> found, error;
  const double* gaps = in.gap;
  const GapError& law = in_[0]->gap_;
  constexpr double kLoose = 1e-14;
  if (!in_[0]->gapped_) {
    gaps_of_values(p, in.c, in.error, found.data(), error.data(), status);
    gaps = found.data();
  } else if (law.absolute + law.sine * law.sine <= kLoose) {
    gap_errors(p.count, law, gaps, error.data());
  } else {
    // Behind jumps the law of all gaps is that of the smallest ones, which go like roots: larger
    // ones are known better by their values.
    std::array<double, kTileRows> by_law;
    gap_errors(p.count, law, gaps, by_law.data());
    gaps_of_values(p, in.c, in.error, found.data(), error.data(), status);
    for (std::size_t i = 0; i < p.count; ++i)
      if (by_law[i] < error[i]) {
        found[i] = gaps[i];
        error[i] = by_law[i];
      }
    gaps = found.data();
  }
  pair_angles(p, sign_, in.c, gaps, error.data(), {out.at[0], out.at[1], out.at[2], out.at[3]});
}

/// K = factor kernel(f^2 a, g^2 b, f g c), with the sum of what the errors of a, b and c change.
void PairMatrix::closed_entries(const PairColumn& own, const PairColumn& p, const PairInput& in,
                                const PairOutput& to, MomentStatus& status) const {
  const std::size_t count = p.count, across = p.one_b ? 1 : count;
  const double f = scale_left_ * scale_left_, g = scale_right_ * scale_right_,
               h = scale_left_ * scale_right_;
  std::vector<double> a(count), b(across), c(count), moved(count), value(count), total(count, 0.0);
  const auto root_ab = [&](std::size_t i) { return p.root_a[i] * p.root_b[p.one_b ? 0 : i]; };
  // Moved by the errors themselves: kernels of large variances bend within less than a step that
  // suits all, and near a correlation of 1 products of jumps go like the root of the distance.
  constexpr double kLeast = 4 * kEpsilon;  // smaller moves are lost in rounding
  const auto move = [&](double error) { return std::clamp(error, kLeast, 1.0); };
  const auto part_of_c = [&](std::size_t i) {
    const double root = root_ab(i);
    return root > 0 ? in.error[i] / root : 0.0;
  };
  enum class Moved { kNone, kA, kB, kC, kAll };
  const auto run = [&](Moved which, std::vector<double>& K) {
    const auto is = [&](Moved one) { return which == one || which == Moved::kAll; };
    for (std::size_t i = 0; i < count; ++i) {
      const double x = in.c[i], by_a = move(p.error_a[i]);
      a[i] = f * p.a[i] * (is(Moved::kA) ? 1 + by_a : 1);
      if (!is(Moved::kC))
        c[i] = h * x;
      else if (p.same)
        c[i] = h * x * (1 + by_a);
      else
        c[i] = h * (x - std::copysign(move(part_of_c(i)) * root_ab(i), x));
    }
    for (std::size_t i = 0; i < across; ++i)
      b[i] = g * p.b[i] * (is(Moved::kB) ? 1 + move((p.same ? p.error_a : p.error_b)[i]) : 1);
    return form_.kernel(a, b, c, K);
  };
  status.merge(run(Moved::kNone, value));
  const auto add = [&](Moved which, const auto& error) {
    (void)run(which, moved);
    for (std::size_t i = 0; i < count; ++i)
      if (const double change = std::abs(moved[i] - value[i]); change > 0)
        total[i] += change * (error(i) / move(error(i)));
  };
  const auto error_a = [&](std::size_t i) { return p.error_a[i]; };
  if (p.same) {
    add(Moved::kAll, error_a);
  } else {
    add(Moved::kA, error_a);
    add(Moved::kB, [&](std::size_t i) { return p.error_b[p.one_b ? 0 : i]; });
    add(Moved::kC, part_of_c);
  }
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(factor_ * value[i]));
  for (std::size_t i = 0; i < count; ++i) {
    to.value[i] = factor_ * value[i];
    const double natural =
        p.same  ? std::abs(to.value[i])
        : own.a ? std::max(std::abs(to.value[i]), own.root_a[i] * own.root_b[own.one_b ? 0 : i])
                : largest;
    to.error[i] = std::abs(factor_) * total[i] + kGenericError * natural;
  }
}

/// A column of a tile.  own: the variances of this node (may be missing); sides: those of its
/// operands.
void PairMatrix::entries(const PairColumn& own, std::span<const PairColumn> sides,
                         std::span<const Channels> in, const Channels& out, bool gap, int row,
                         int j, int size, const double* packed, MomentStatus& status) const {
  const auto count = static_cast<std::size_t>(size);
  const auto input = [&](std::size_t k) {
    return PairInput{in[k].at[0], in[k].at[1], in[k].at[2]};
  };
  const PairOutput to{out.at[0], out.at[1], gap ? out.at[2] : nullptr};
  switch (kind_) {
    case Kind::kDense: dense_entries(row, j, size, to); break;
    case Kind::kGram:
      gram_pairs(own, a_.data() + row, leading_, packed + j % static_cast<int>(kPairLanes), depth_,
                 to);
      break;
    case Kind::kOuter:
      for (std::size_t i = 0; i < count; ++i) {
        to.value[i] = a_[static_cast<std::size_t>(row) + i] * b_[static_cast<std::size_t>(j)];
        to.error[i] = error_;
        if (to.gap) to.gap[i] = to.value[i] == 0 ? 1 : 0;
      }
      break;
    case Kind::kScaled: {
      const double factor = scale_left_ * scale_right_, size_of = std::abs(factor);
      for (std::size_t i = 0; i < count; ++i) {
        to.value[i] = factor * in[0].at[0][i];
        to.error[i] = size_of * in[0].at[1][i] + (0.5 * kEpsilon + error_) * std::abs(to.value[i]);
      }
      if (to.gap) std::copy_n(in[0].at[2], count, to.gap);
      break;
    }
    case Kind::kSum:
      if (sign_ == 1) {
        add_pairs(sides[0], input(0), sides[1], input(1), to);
      } else {
        for (std::size_t i = 0; i < count; ++i) {
          to.value[i] = in[0].at[0][i] - in[1].at[0][i];
          to.error[i] = in[0].at[1][i] + in[1].at[1][i] + 0.5 * kEpsilon * std::abs(to.value[i]);
        }
      }
      break;
    case Kind::kProduct: multiply_pairs(count, input(0), input(1), to); break;
    case Kind::kAngles: angle_entries(sides[0], input(0), out, status); break;
    case Kind::kTwoSlope:
    case Kind::kTwoStep: {
      const PairAngles angles{in[1].at[0], in[1].at[1], in[1].at[2], in[1].at[3]};
      const double scale = scale_left_ * scale_right_;
      if (kind_ == Kind::kTwoSlope)
        two_slope_pairs(sides[0], two_slope_, factor_, scale, input(0), angles, to);
      else
        two_step_pairs(sides[0], two_step_, factor_, scale, input(0), angles, to);
      break;
    }
    case Kind::kErf: {
      PairInput x = input(0);
      if (!sides[0].same && !in_[0]->gapped_) x.gap = nullptr;
      erf_pairs(sides[0], erf_, factor_, scale_left_, x, to, status);
      break;
    }
    case Kind::kBell: {
      PairInput x = input(0);
      std::array<double, kTileRows> found, error;
      if (!sides[0].same && !in_[0]->gapped_) {
        gaps_of_values(sides[0], x.c, x.error, found.data(), error.data(), status);
        x.gap = found.data();
      }
      bell_pairs(sides[0], bell_, factor_, scale_left_, x, to);
      break;
    }
    case Kind::kClosed: closed_entries(own, sides[0], input(0), to, status); break;
    case Kind::kSided:
      std::copy_n(in[0].at[0], count, to.value);
      std::copy_n(in[0].at[1], count, to.error);
      break;
  }
}

/// The nodes behind some targets, operands first, and where in a tile's memory each one's channels
/// are.
struct PairMatrix::Plan {
  std::vector<const PairMatrix*> nodes;
  std::vector<std::vector<std::size_t>> in;
  std::vector<std::size_t> slot, target;              // target: 1 + which, 0 if none
  std::vector<std::vector<std::size_t>> same_target;  // other targets that are the same node
  std::vector<bool> gap;
  std::size_t slots = 0;

  explicit Plan(std::span<const Target> targets) {
    order(targets);
    want_gaps();
    place_targets(targets);
    share_memory();
  }

 private:
  std::unordered_map<const PairMatrix*, std::size_t> place_;

  void order(std::span<const Target> targets) {
    std::vector<const PairMatrix*> left;
    for (const Target& t : targets) left.push_back(t.pairs.get());
    while (!left.empty()) {
      const PairMatrix* x = left.back();
      left.pop_back();
      if (!place_.emplace(x, 0).second) continue;
      nodes.push_back(x);
      for (const Pairs& operand : x->in_) left.push_back(operand.get());
    }
    std::sort(nodes.begin(), nodes.end(),
              [](const auto* a, const auto* b) { return a->serial_ < b->serial_; });
    for (std::size_t k = 0; k < nodes.size(); ++k) place_[nodes[k]] = k;
    for (const PairMatrix* x : nodes) {
      in.emplace_back();
      for (const Pairs& operand : x->in_) in.back().push_back(place_[operand.get()]);
    }
  }

  /// From what takes gaps back to what they come from.
  void want_gaps() {
    gap.assign(nodes.size(), false);
    for (std::size_t k = nodes.size(); k-- > 0;) {
      const PairMatrix& x = *nodes[k];
      const bool wants = x.kind_ == Kind::kAngles || x.kind_ == Kind::kErf ||
                         x.kind_ == Kind::kBell || (gap[k] && x.gapped_);
      for (const std::size_t i : in[k])
        if (wants && nodes[i]->gapped_ && nodes[i]->kind_ != Kind::kAngles) gap[i] = true;
    }
  }

  void place_targets(std::span<const Target> targets) {
    target.assign(nodes.size(), 0);
    same_target.resize(targets.size());
    for (std::size_t t = 0; t < targets.size(); ++t) {
      std::size_t& own = target[place_[targets[t].pairs.get()]];
      if (own == 0)
        own = t + 1;
      else
        same_target[own - 1].push_back(t);
    }
  }

  /// Memory of a node is free after the last one that it is an operand of.
  void share_memory() {
    const std::size_t count = nodes.size();
    std::vector<std::size_t> last(count);
    for (std::size_t k = 0; k < count; ++k) {
      last[k] = k;
      for (const std::size_t i : in[k]) last[i] = k;
    }
    std::vector<std::vector<std::size_t>> ends(count);
    for (std::size_t k = 0; k < count; ++k) ends[last[k]].push_back(k);
    std::vector<std::size_t> free;
    slot.resize(count);
    for (std::size_t k = 0; k < count; ++k) {
      if (free.empty()) free.push_back(slots++);
      slot[k] = free.back();
      free.pop_back();
      for (const std::size_t done : ends[k]) free.push_back(slot[done]);
    }
  }
};

/// Tiles of one band of columns, all nodes one tile at a time.
class PairMatrix::Band {
 public:
  Band(const Plan& plan, std::span<const Target> targets, bool symmetric, std::uint64_t disturbance)
      : plan_(plan),
        targets_(targets),
        symmetric_(symmetric),
        disturbance_(disturbance),
        rows_(targets[0].pairs->rows_),
        memory_(std::make_unique_for_overwrite<double[]>(plan.slots * 4 * kChannel + 8)),
        largest_(targets.size(), 0.0),
        largest_error_(targets.size(), 0.0) {}

  void evaluate(int begin, int end) {
    for (int first = begin; first < end; first += kTileColumns) {
      first_ = first;
      stop_ = std::min(first + kTileColumns, end);
      for (row_ = 0; row_ < (symmetric_ ? std::min(rows_, stop_) : rows_); row_ += kTileRows) {
        constexpr int kLanes = static_cast<int>(kPairLanes);
        tall_ = std::min(kTileRows,
                         (std::min(rows_, row_ + kTileRows) - row_ + kLanes - 1) / kLanes * kLanes);
        for (std::size_t k = 0; k < plan_.nodes.size(); ++k) tile(k);
      }
    }
  }

  void merge_into(MomentStatus& status, std::span<Target> targets) const {
    status.merge(status_);
    for (std::size_t t = 0; t < targets.size(); ++t) {
      targets[t].largest = std::max(targets[t].largest, largest_[t]);
      targets[t].largest_error = std::max(targets[t].largest_error, largest_error_[t]);
    }
  }

 private:
  static constexpr std::size_t kChannel = std::size_t{kTileRows} * kTileColumns;

  [[nodiscard]] double* memory_of(std::size_t k) const {
    return memory_.get() + plan_.slot[k] * 4 * kChannel;
  }
  [[nodiscard]] Channels channels(std::size_t k, int j) const {
    double* base = memory_of(k) + static_cast<std::size_t>(j - first_) * kTileRows;
    return {{base, base + kChannel, base + 2 * kChannel, base + 3 * kChannel}};
  }

  void tile(std::size_t k) {
    const PairMatrix& x = *plan_.nodes[k];
    if (x.kind_ == Kind::kGram) {
      x.pack(x.symmetric_ ? x.a_ : x.b_, x.symmetric_ ? x.leading_ : x.leading_b_,
             static_cast<std::size_t>(first_), packed_);
      gram_tile(static_cast<std::size_t>(tall_), x.a_.data() + row_, x.leading_, packed_.data(),
                x.depth_, memory_of(k), kTileRows);
    }
    const std::size_t target = plan_.target[k];
    for (int j = first_; j < stop_; ++j) {
      const Channels out = channels(k, j);
      column(k, j, out);
      if (target != 0) hand_over(target - 1, j, out);
    }
    if (target != 0 && symmetric_) mirror(targets_[target - 1], memory_of(k));
  }

  void column(std::size_t k, int j, const Channels& out) {
    const PairMatrix& x = *plan_.nodes[k];
    in_.clear();
    sides_.clear();
    for (const std::size_t i : plan_.in[k]) {
      in_.push_back(channels(i, j));
      if (plan_.nodes[i]->kind_ != Kind::kAngles && !plan_.gap[i]) in_.back().at[2] = nullptr;
      sides_.push_back(plan_.nodes[i]->column(row_, tall_, j));
    }
    MomentStatus own;
    x.entries(x.column(row_, tall_, j), sides_, in_, out, plan_.gap[k] && x.gapped_, row_, j, tall_,
              packed_.data(), own);
    // Below the last row nothing is a covariance, and nothing is read.
    if (own.bad_index != kNoIndex && row_ + static_cast<int>(own.bad_index) >= rows_)
      own.bad_index = kNoIndex;
    status_.merge(own);
    // A variable with itself: its errors stay on the diagonal, where correlations near 1 may part.
    if (x.symmetric_ && x.left_ && x.kind_ != Kind::kAngles && j >= row_ && j < row_ + tall_) {
      const auto i = static_cast<std::size_t>(j);
      out.at[0][j - row_] = x.left_->variance[i];
      out.at[1][j - row_] = x.left_->error[i] * x.left_->variance[i];
    }
  }

  void hand_over(std::size_t t, int j, const Channels& column) {
    const int bottom =
        symmetric_ ? std::min({rows_, row_ + tall_, j + 1}) : std::min(rows_, row_ + tall_);
    if (disturbance_ != 0)
      disturb_pairs(static_cast<std::size_t>(std::max(0, bottom - row_)), disturbance_,
                    column.at[0], column.at[1]);
    for (int i = row_; i < bottom; ++i) {
      const double v = column.at[0][i - row_], e = column.at[1][i - row_];
      const auto to = static_cast<std::size_t>(j) * static_cast<std::size_t>(rows_) +
                      static_cast<std::size_t>(i);
      targets_[t].value[to] = v;
      if (targets_[t].error) targets_[t].error[to] = e;
      largest_[t] = std::max(largest_[t], std::abs(v));
      largest_error_[t] = std::max(largest_error_[t], e);
      if (!std::isfinite(v)) status_.overflow = true;
    }
  }

  /// A row of the tile at a time: its entries stand side by side.
  void mirror(const Target& t, const double* tile) const {
    for (int i = row_; i < std::min({rows_, row_ + tall_, stop_}); ++i) {
      const auto to = static_cast<std::size_t>(i) * static_cast<std::size_t>(rows_);
      for (int j = std::max(first_, i); j < stop_; ++j) {
        const std::size_t from =
            static_cast<std::size_t>(j - first_) * kTileRows + static_cast<std::size_t>(i - row_);
        t.value[to + static_cast<std::size_t>(j)] = tile[from];
        if (t.error) t.error[to + static_cast<std::size_t>(j)] = tile[from + kChannel];
      }
    }
  }

  const Plan& plan_;
  std::span<const Target> targets_;
  bool symmetric_;
  std::uint64_t disturbance_;
  int rows_;
  int first_ = 0, stop_ = 0, row_ = 0, tall_ = 0;  // of the tile: columns, first row, rows
  std::unique_ptr<double[]> memory_;
  std::vector<Channels> in_;
  std::vector<PairColumn> sides_;
  std::vector<double> packed_;
  MomentStatus status_;
  std::vector<double> largest_, largest_error_;
};

MomentStatus PairMatrix::evaluate(std::span<Target> targets, const Executor& executor,
                                  std::uint64_t disturbance) {
  const Plan plan(targets);
  const int rows = targets[0].pairs->rows_, columns = targets[0].pairs->columns_;
  const bool symmetric = std::all_of(targets.begin(), targets.end(),
                                     [](const Target& t) { return t.pairs->symmetric_; });
  constexpr int kBand = 64;  // columns of one task
  MomentStatus status;
  std::mutex mutex;
  executor.parallel((columns + kBand - 1) / kBand, [&](std::int64_t k) {
    Band band(plan, targets, symmetric, disturbance);
    band.evaluate(static_cast<int>(k) * kBand,
                  std::min<int>(columns, static_cast<int>(k + 1) * kBand));
    const std::lock_guard lock(mutex);
    band.merge_into(status, targets);
  });
  for (std::size_t t = 0; t < targets.size(); ++t)
    for (const std::size_t copy : plan.same_target[t]) {
      const auto size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
      std::copy_n(targets[t].value, size, targets[copy].value);
      if (targets[copy].error && targets[t].error)
        std::copy_n(targets[t].error, size, targets[copy].error);
      targets[copy].largest = targets[t].largest;
      targets[copy].largest_error = targets[t].largest_error;
    }
  return status;
}

}  // namespace tplimit::moments
