#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

using MaybeExponent = std::optional<Exponent>;
/// None is smaller than any.
[[nodiscard]] MaybeExponent larger(MaybeExponent a, MaybeExponent b);
/// n^.. of (E rest^2)^(1/2), for a rest of mean size n^dropped that is n^spike where it is not 0:
/// what is left out where a function jumps is large on few coordinates, E|rest|^k = n^(dropped + (k
/// - 1) spike).
[[nodiscard]] Exponent rms_of_spikes(Exponent dropped, Exponent spike);

/// How a value behaves under flipping the sign of one Gaussian family at a time (the first 64).
struct Parity {
  std::uint64_t odd = 0;    ///< changes sign
  std::uint64_t mixed = 0;  ///< neither even nor odd; `odd` is then 0
  friend auto operator<=>(const Parity&, const Parity&) = default;
};

/// One summand of a value: its coordinates are of size n^order.  It is a random scalar times a
/// vector, whose parities are followed apart: an average sees the vector's only.
struct Part {
  Exponent order;
  std::uint64_t causes = 0;  ///< groups of variables whose updates it needs, a bit each.  Parts
                             ///< without causes make up the initial value
  Parity scalar, vector;
  friend bool operator==(const Part&, const Part&) = default;
};

/// Sums of parts and what programs do with them, by value: equal sums have one id, and each
/// operation is computed once. Of parts with the same causes and parities the largest is kept.  0
/// is the empty sum, the value zero.
class PartSums {
 public:
  using Id = std::uint32_t;
  static constexpr std::uint64_t kWatched =
      1;  ///< parts with this cause are not told apart by their other causes
  /// How many parts of the same causes and size are kept apart, and at how many sizes below the
  /// largest.
  struct Limits {
    std::size_t alike = 24, sizes = 4;
  };
  PartSums() : PartSums(Limits{}) {}
  explicit PartSums(Limits limits) : limits_(limits) { (void)intern({}); }

  [[nodiscard]] const std::vector<Part>& operator[](Id id) const { return sums_[id]; }
  /// Largest order; empty for zero.
  [[nodiscard]] std::optional<Exponent> size(Id id) const;

  Id one(Parity vector = {}, Exponent order = 0);
  Id one(const Part& part) { return intern({part}); }
  /// phi^(derivative) at one part, of the given order.
  [[nodiscard]] static Part image(const ir::Map& map, const Part& at, int derivative,
                                  Exponent order);
  Id plus(Id a, Id b);
  Id times(Id a, Id b);
  Id shifted(Id a, Exponent power);
  Id at_most(Id a, Exponent order);  ///< of what is bounded by n^order
  /// n^power a inverse: the leading part decides, smaller ones change it relatively.
  Id inverse(Id a);
  /// Mean over coordinates: a vector odd under a flip averages to n^(-1/2) of its size, a random
  /// scalar.
  Id average(Id a);
  Id map(const ir::Map& map, Id a);
  /// A function of several arguments about which nothing more is known: of the size of the largest.
  Id general(const std::vector<Id>& in);
  /// 1 or 0 from comparing: of size 1, changes relative to what is compared.
  Id comparison(Id a, Id b);
  Id without_parity(Id a);
  /// Its largest parts, of size 1: what a function of degree 0 keeps.
  Id leading(Id a);
  /// The same with causes only {variable}.
  Id caused_by(Id a, std::uint64_t causes);
  /// Parts that need no update, or only those that do.
  Id initial(Id a);
  Id changed(Id a);
  /// Largest order among the parts whose causes include `cause`, or are exactly it.
  [[nodiscard]] std::optional<Exponent> size_caused_by(Id a, std::uint64_t cause, bool alone) const;
  /// W x: what changes sign with W beside what x does.
  Id flipped(Id a, std::uint32_t family);

 private:
  Id intern(std::vector<Part> parts);
  [[nodiscard]] std::vector<Part> smooth(const ir::Map& map, std::vector<Part> x);
  [[nodiscard]] std::vector<Part> homogeneous(const ir::Map& map, Exponent degree,
                                              const std::vector<Part>& x) const;
  template <class Key, class Memo, class Make>
  Id once(Memo& memo, const Key& key, Make make);

  Limits limits_;
  std::vector<std::vector<Part>> sums_;
  std::map<std::vector<std::tuple<std::uint64_t, Parity, Parity, std::int64_t, std::int64_t>>, Id>
      ids_;
  struct Operands {
    std::size_t operator()(const std::tuple<int, Id, Id>& key) const {
      const auto& [operation, a, b] = key;
      return ((std::uint64_t{a} << 32 | b) + static_cast<std::uint64_t>(operation)) *
                 0x9e3779b97f4a7c15ULL >>
             16;
    }
  };
  std::unordered_map<std::tuple<int, Id, Id>, Id, Operands> binary_;
  std::map<std::tuple<int, double, Id>, Id> maps_;
  std::map<std::tuple<Id, std::int64_t, std::int64_t>, Id> shifts_;
};

}  // namespace tplimit
