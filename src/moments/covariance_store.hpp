#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "moments/context.hpp"
#include "moments/fields.hpp"

namespace tplimit::moments {

/// E x_i y_j of fields: what the covariances of the families hatZ^{Wx} are made of.
class CrossMoments {
 public:
  virtual ~CrossMoments() = default;
  /// lazy: the moment may come as pairs.
  virtual Moment cross(const Field& x, const Field& y, bool lazy) = 0;
};

/// The joint law of all Gaussian variables: families, blocks over them, and their covariances,
///   Cov(g, h) = sum_{k,l} L_k Cov(G_k, H_l) M_l',   g = sum_k L_k G_k, h = sum_l M_l H_l,
/// where Cov(hatZ^{Wx}, hatZ^{Wy}) = E x y, and families of different matrices, or of a matrix and
/// its transpose, are independent (docs/theory.md, "The limit of a Tensor Program").  Covariances
/// are computed when they are asked for, and kept until their blocks are collected.
class CovarianceStore {
 public:
  explicit CovarianceStore(RunContext& context)
      : context_(context), functions_(context.functions) {}
  CovarianceStore(const CovarianceStore&) = delete;
  CovarianceStore& operator=(const CovarianceStore&) = delete;
  /// Who evaluates E x y; must be set before the covariance of a family hatZ^{Wx} is asked for.
  void set_cross_moments(CrossMoments& moments) { moments_ = &moments; }

  // ---- families and blocks, by numbers
  int add_family(GaussianFamily family);
  [[nodiscard]] const GaussianFamily& family(int f) const { return families_[at(f)]; }
  [[nodiscard]] int families() const { return static_cast<int>(families_.size()); }
  int insert(GaussianBlock block);
  [[nodiscard]] const GaussianBlock& block(int p) const { return *blocks_[at(p)]; }
  /// False once it was collected.
  [[nodiscard]] bool contains(int p) const { return blocks_[at(p)] != nullptr; }
  /// Whether so many blocks are there that collect() is worth its time.
  [[nodiscard]] bool crowded() const { return live_ >= sweep_at_; }
  /// Drops blocks and covariances that none of these fields (null: none) and no family needs.
  void collect(const std::vector<const Field*>& fields);
  /// Blocks so far, and dropping those that came later.
  [[nodiscard]] int blocks() const { return static_cast<int>(blocks_.size()); }
  void drop_blocks_from(int first);
  /// Equal forms have equal numbers.
  int add_form(QuadraticForm form);
  [[nodiscard]] const QuadraticForm& form(int q) const { return *forms_[at(q)]; }

  // ---- covariances
  const Covariance& covariance(int p, int q);
  /// One that `covariance` was asked for before; safe on several threads.
  [[nodiscard]] const Covariance& known_covariance(int p, int q) const {
    return covariances_.at({p, q});
  }
  /// Frees the numbers of a covariance that is not needed again soon.
  void forget_covariance(int p, int q) { covariances_.erase({p, q}); }
  /// The diagonal of covariance(p, p).
  const Variances& variances(int p);
  /// The covariances behind two factors as pairs, with the variances of both sides.
  PairCovariance pairs_of(const Factor& s, int rows, const Factor& t, int columns);
  /// A moment as pairs; one row or column stands for all.  same: of the same variables on both
  /// sides.
  [[nodiscard]] Pairs as_pairs(const Moment& m, int rows, int columns, bool same) const;
  /// A moment as numbers.
  Moment settled(Moment m);

  // ---- independence and constants
  [[nodiscard]] bool related(int p, int q) const;
  /// Whether some s_i and some t_j are correlated: of jointly Gaussian variables, those that are
  /// not are independent.
  bool dependent(const Factor& s, int rows, const Factor& t, int columns);
  /// Whether s_i and t_i are correlated; somewhere: for some i.
  bool dependent_at(const Factor& s, const Factor& t, int i);
  bool dependent_somewhere(const Factor& s, const Factor& t, int rows);
  /// Whether the Gaussian behind column i has variance 0.  What holds almost everywhere need not
  /// hold at one point.
  bool is_constant(const Factor& f, int i);
  [[nodiscard]] double value_at_mean(const Factor& f, int i) const;

 private:
  Covariance& family_covariance(int f, int g);
  const Covariance& settled(Covariance& c);
  const PairCovariance& pair_covariance(int p, int q);
  std::shared_ptr<const PairSide> side(int f);
  static Matrix times_covariance(const LinearPart& a, const Covariance& c, int rows, int size);
  [[nodiscard]] bool related_families(int f, int g) const;

  RunContext& context_;
  const FunctionTable& functions_;
  CrossMoments* moments_ = nullptr;
  std::vector<GaussianFamily> families_;
  std::vector<std::shared_ptr<const GaussianBlock>> blocks_;  ///< references to blocks stay good
  std::map<QuadraticForm, int> form_numbers_;
  std::vector<const QuadraticForm*> forms_;  ///< in form_numbers_
  std::map<std::pair<int, int>, Covariance> covariances_, family_covariances_;
  std::map<std::pair<int, int>, PairCovariance> pair_covariances_;
  std::map<int, Variances> variances_;
  std::size_t live_ = 0, sweep_at_ = 256;  ///< blocks not known to be dead; how many start a sweep
};

}  // namespace tplimit::moments
