#include "tplimit/passes/powers.hpp"

#include <algorithm>
#include <bit>

#include "tplimit/ir/functions.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit {

MaybeExponent larger(MaybeExponent a, MaybeExponent b) {
  return !a ? b : !b ? a : std::max(*a, *b);
}

Exponent rms_of_spikes(Exponent dropped, Exponent spike) { return spike + half(dropped - spike); }

using namespace ir;

namespace {

Parity product(Parity a, Parity b) {
  const std::uint64_t mixed = a.mixed | b.mixed;
  return {(a.odd ^ b.odd) & ~mixed, mixed};
}
/// Of a sum.
Parity joint(Parity a, Parity b) {
  const std::uint64_t mixed = a.mixed | b.mixed | (a.odd ^ b.odd);
  return {a.odd & ~mixed, mixed};
}
Parity even_only(Parity a) { return {0, a.mixed | a.odd}; }

Part product(const Part& a, const Part& b) {
  return {a.order + b.order, a.causes | b.causes, product(a.scalar, b.scalar),
          product(a.vector, b.vector)};
}

/// phi^(derivative) of a sum with this parity.
Parity through(Parity x, FunctionTraits::Parity phi, int derivative) {
  if (phi == FunctionTraits::Parity::kNone) return even_only(x);
  const bool odd = (phi == FunctionTraits::Parity::kOdd) == (derivative % 2 == 0);
  return odd ? x : Parity{0, x.mixed};
}

std::vector<Part> without_causes(const std::vector<Part>& x) {
  std::vector<Part> out;
  std::copy_if(x.begin(), x.end(), std::back_inserter(out),
               [](const Part& p) { return p.causes == 0; });
  return out;
}

std::optional<Exponent> largest(const std::vector<Part>& x) {
  std::optional<Exponent> out;
  for (const Part& p : x) out = out ? std::max(*out, p.order) : p.order;
  return out;
}

/// The joint parity of the scalar and vector factors of several parts, kept apart while they agree
/// on the scalar.
struct Background {
  Parity scalar, vector;
  std::uint64_t causes = 0;
  bool empty = true;
  void add(const Part& p) {
    if (empty) {
      scalar = p.scalar;
      vector = p.vector;
    } else if (p.scalar == scalar) {
      vector = joint(vector, p.vector);
    } else {
      // Different random scalars: as a function of the coordinates' randomness nothing is known but
      // what holds for each.
      vector = joint(joint(vector, p.vector), Parity{0, 0});
      scalar = joint(scalar, p.scalar);
    }
    causes |= p.causes;
    empty = false;
  }
  /// phi^(derivative) of it: a random scalar of definite sign stays apart only through odd and even
  /// functions.
  [[nodiscard]] Part image(FunctionTraits::Parity phi, int derivative, Exponent order) const {
    return {order, causes, through(scalar, phi, derivative), through(vector, phi, derivative)};
  }
};

}  // namespace

std::optional<Exponent> PartSums::size(Id id) const { return largest(sums_[id]); }

std::optional<Exponent> PartSums::size_caused_by(Id a, std::uint64_t cause, bool alone) const {
  std::optional<Exponent> out;
  for (const Part& p : sums_[a])
    if (alone ? p.causes == cause : (p.causes & cause) != 0)
      out = out ? std::max(*out, p.order) : p.order;
  return out;
}

/// Covered: of the same causes, no larger, and with symmetries that the other has as well, so that
/// no operation makes more of it.
PartSums::Id PartSums::intern(std::vector<Part> parts) {
  const auto larger = [](Exponent a, Exponent b) {  // of small fractions: rational's own is slow
    return a.numerator() * b.denominator() > b.numerator() * a.denominator();
  };
  const auto covers = [](Parity big, Parity small) {
    return (small.mixed & ~big.mixed) == 0 && ((big.odd ^ small.odd) & ~big.mixed) == 0;
  };
  const auto makes_needless = [&](const Part& big, const Part& small) {
    return big.causes == small.causes && covers(big.scalar, small.scalar) &&
           covers(big.vector, small.vector) && !larger(small.order, big.order);
  };
  // Few of a product's parts are left: they are found before anything is sorted.
  std::size_t left = 0;
  for (std::size_t k = 0; k < parts.size(); ++k) {
    Part p = parts[k];
    if (p.causes & kWatched) p.causes = kWatched;
    const auto end = parts.begin() + static_cast<std::ptrdiff_t>(left);
    if (std::any_of(parts.begin(), end, [&](const Part& q) { return makes_needless(q, p); }))
      continue;
    const auto rest =
        std::remove_if(parts.begin(), end, [&](const Part& q) { return makes_needless(p, q); });
    left = static_cast<std::size_t>(rest - parts.begin());
    parts[left++] = p;
  }
  parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(left), parts.end());
  // Largest first, so that a part is met after all that may cover it.
  std::sort(parts.begin(), parts.end(), [&](const Part& a, const Part& b) {
    return a.order != b.order
               ? larger(a.order, b.order)
               : std::tie(a.causes, a.scalar, a.vector) < std::tie(b.causes, b.scalar, b.vector);
  });
  // So many parts stay apart.  Others lose the symmetries in which they differ from the part that
  // is nearest, which bounds them from above.
  std::vector<Part> kept;
  for (const Part& p : parts) {
    if (std::any_of(kept.begin(), kept.end(), [&](const Part& q) {
          return q.causes == p.causes && covers(q.scalar, p.scalar) && covers(q.vector, p.vector);
        }))
      continue;
    std::size_t sizes = 0, alike = 0;
    std::optional<Exponent> last;
    Part* nearest = nullptr;
    int least = 0;
    for (Part& q : kept) {
      if (q.causes != p.causes) continue;
      if (!last || q.order != *last) {
        last = q.order;
        ++sizes;
        nearest = nullptr;
        alike = 0;
      }
      ++alike;
      const int lost = std::popcount(joint(q.scalar, p.scalar).mixed & ~q.scalar.mixed) +
                       std::popcount(joint(q.vector, p.vector).mixed & ~q.vector.mixed);
      if (!nearest || lost < least) {
        nearest = &q;
        least = lost;
      }
    }
    if (sizes > limits_.sizes || (nearest && nearest->order == p.order && alike >= limits_.alike)) {
      nearest->scalar = joint(nearest->scalar, p.scalar);
      nearest->vector = joint(nearest->vector, p.vector);
    } else {
      kept.push_back(p);
    }
  }
  std::vector<std::tuple<std::uint64_t, Parity, Parity, std::int64_t, std::int64_t>> key;
  for (const Part& p : kept)
    key.emplace_back(p.causes, p.scalar, p.vector, p.order.numerator(), p.order.denominator());
  const auto [it, fresh] = ids_.try_emplace(std::move(key), static_cast<Id>(sums_.size()));
  if (fresh) sums_.push_back(std::move(kept));
  return it->second;
}

template <class Key, class Memo, class Make>
PartSums::Id PartSums::once(Memo& memo, const Key& key, Make make) {
  if (const auto it = memo.find(key); it != memo.end()) return it->second;
  const Id id = intern(make());
  memo.emplace(key, id);
  return id;
}

namespace {
enum Binary { kPlus, kTimes, kInverse, kAverage, kComparison, kNoParity, kInitial, kChanged };
}

PartSums::Id PartSums::one(Parity vector, Exponent order) {
  return intern({{order, 0, {}, vector}});
}

Part PartSums::image(const Map& map, const Part& at, int derivative, Exponent order) {
  Background ground;
  ground.add(at);
  return ground.image(traits_of(map).parity, derivative, order);
}

PartSums::Id PartSums::plus(Id a, Id b) {
  if (a == 0 || b == 0 || a == b) return a == 0 ? b : a;
  return once(binary_, std::tuple<int, Id, Id>(kPlus, std::min(a, b), std::max(a, b)), [&] {
    std::vector<Part> out = sums_[a];
    out.insert(out.end(), sums_[b].begin(), sums_[b].end());
    return out;
  });
}

PartSums::Id PartSums::times(Id a, Id b) {
  if (a == 0 || b == 0) return 0;
  return once(binary_, std::tuple<int, Id, Id>(kTimes, std::min(a, b), std::max(a, b)), [&] {
    std::vector<Part> out;
    for (const Part& p : sums_[a])
      for (const Part& q : sums_[b]) out.push_back(product(p, q));
    return out;
  });
}

PartSums::Id PartSums::shifted(Id a, Exponent power) {
  if (a == 0 || power == 0) return a;
  return once(shifts_,
              std::tuple<Id, std::int64_t, std::int64_t>(a, power.numerator(), power.denominator()),
              [&] {
                std::vector<Part> out = sums_[a];
                for (Part& p : out) p.order += power;
                return out;
              });
}

PartSums::Id PartSums::at_most(Id a, Exponent order) {
  std::vector<Part> out = sums_[a];
  for (Part& p : out) p.order = std::min(p.order, order);
  return intern(std::move(out));
}

PartSums::Id PartSums::inverse(Id a) {
  return once(binary_, std::tuple<int, Id, Id>(kInverse, a, 0), [&] {
    return homogeneous(Map{Fn::kPower, -1}, -1, sums_[a]);
  });
}

PartSums::Id PartSums::average(Id a) {
  return once(binary_, std::tuple<int, Id, Id>(kAverage, a, 0), [&] {
    std::vector<Part> out;
    for (const Part& p : sums_[a]) {
      if (p.vector.odd == 0) out.push_back({p.order, p.causes, p.scalar, {}});
      out.push_back({p.order - Exponent(1, 2), p.causes, product(p.scalar, p.vector), {}});
    }
    return out;
  });
}

PartSums::Id PartSums::without_parity(Id a) {
  return once(binary_, std::tuple<int, Id, Id>(kNoParity, a, 0), [&] {
    std::vector<Part> out = sums_[a];
    for (Part& p : out) {
      p.scalar = even_only(p.scalar);
      p.vector = even_only(p.vector);
    }
    return out;
  });
}

PartSums::Id PartSums::general(const std::vector<Id>& in) {
  Id out = 0;
  for (const Id id : in) out = plus(out, without_parity(id));
  return out;
}

PartSums::Id PartSums::comparison(Id a, Id b) {
  return once(binary_, std::tuple<int, Id, Id>(kComparison, a, b), [&] {
    return homogeneous(Map{Fn::kStep, 0}, 0, sums_[plus(a, b)]);
  });
}

PartSums::Id PartSums::caused_by(Id a, std::uint64_t causes) {
  std::vector<Part> out = sums_[a];
  for (Part& p : out) p.causes = causes;
  return intern(std::move(out));
}

PartSums::Id PartSums::leading(Id a) {
  const auto top = size(a);
  std::vector<Part> out;
  for (Part p : sums_[a])
    if (p.order == *top) {
      p.order = 0;
      out.push_back(p);
    }
  return intern(std::move(out));
}

PartSums::Id PartSums::initial(Id a) {
  return once(binary_, std::tuple<int, Id, Id>(kInitial, a, 0),
              [&] { return without_causes(sums_[a]); });
}

PartSums::Id PartSums::changed(Id a) {
  return once(binary_, std::tuple<int, Id, Id>(kChanged, a, 0), [&] {
    std::vector<Part> out;
    std::copy_if(sums_[a].begin(), sums_[a].end(), std::back_inserter(out),
                 [](const Part& p) { return p.causes != 0; });
    return out;
  });
}

PartSums::Id PartSums::flipped(Id a, std::uint32_t family) {
  if (family >= 64) return without_parity(a);  // nobody follows it
  std::vector<Part> out = sums_[a];
  for (Part& p : out) p.vector = product(p.vector, Parity{std::uint64_t{1} << family, 0});
  return intern(std::move(out));
}

PartSums::Id PartSums::map(const Map& map, Id a) {
  return once(maps_, std::tuple<int, double, Id>(static_cast<int>(map.fn), map.parameter, a), [&] {
    const FunctionTraits traits = traits_of(map);
    return traits.degree ? homogeneous(map, *traits.degree, sums_[a]) : smooth(map, sums_[a]);
  });
}

/// phi(c x) = c^k phi(x): the largest part decides, a smaller one moves it by n^(its order - the
/// largest).
std::vector<Part> PartSums::homogeneous(const Map& map, Exponent degree,
                                        const std::vector<Part>& x) const {
  const auto parity = traits_of(map).parity;
  std::vector<Part> out;
  const std::vector<Part> start = without_causes(x);
  const auto first = largest(start);
  Background ground, initial_ground;
  const auto top = largest(x);
  for (const Part& p : x) {
    if (p.order == *top) ground.add(p);
    if (p.causes == 0 && p.order == *first) initial_ground.add(p);
  }
  if (first)
    out.push_back(initial_ground.image(parity, 0, degree * *first));
  else if (degree == 0)
    out.push_back({0, 0, {}, {}});  // a constant, at an argument that is 0
  for (const Part& p : x) {
    // Beside the initial value ..
    if (first && p.order < *first) {
      out.push_back(product(initial_ground.image(parity, 1, degree * *first - *first), p));
    } else if (p.causes != 0) {
      // Its causes make all parts that need no others: the largest of these decides.
      Background made;
      Exponent most = p.order;
      for (const Part& q : x)
        if ((q.causes & ~p.causes) == 0) most = std::max(most, q.order);
      for (const Part& q : x)
        if ((q.causes & ~p.causes) == 0 && q.order == most) made.add(q);
      if (most > p.order) {
        out.push_back(product(made.image(parity, 1, degree * most - most), p));
      } else {
        Background both = initial_ground;
        if (!first || *first < p.order) both = {};
        both.add(p);
        out.push_back(both.image(parity, 0, degree * p.order));
      }
    }
    // .. and beside the whole.
    if (p.order < *top) out.push_back(product(ground.image(parity, 1, degree * *top - *top), p));
  }
  if (ground.causes) out.push_back(ground.image(parity, 0, degree * *top));
  return out;
}

/// A function that is smooth, or at least has derivatives almost everywhere: around what has size
/// 1, else around 0.
std::vector<Part> PartSums::smooth(const Map& map, std::vector<Part> x) {
  const FunctionTraits traits = traits_of(map);
  const auto parity = traits.parity;
  std::vector<Part> out;
  // Beyond size 1 the theory ends: bounded functions saturate, the others grow at most linearly as
  // far as counting goes.
  std::vector<Part> large, small;
  for (const Part& p : x) (p.order < 0 ? small : large).push_back(p);
  const auto image_order = [&](Exponent order) {
    return traits.bounded ? Exponent(0) : std::max(order, Exponent(0));
  };

  Background start, all;
  for (const Part& p : large) {
    if (p.causes == 0) start.add(p);
    all.add(p);
  }
  Exponent start_order = 0, all_order = 0;
  for (const Part& p : large) {
    all_order = std::max(all_order, p.order);
    if (p.causes == 0) start_order = std::max(start_order, p.order);
  }

  /// phi(0) + phi'(0) x + phi''(0)/2 x^2 + .. of small parts.
  const auto at_zero = [&](const std::vector<Part>& parts, bool changes_only) {
    if (traits.at_zero != 0 && !changes_only) out.push_back({0, 0, {}, {}});
    const Id linear = intern(parts), square = times(linear, linear);
    const auto add = [&](Id power) {
      std::copy_if(sums_[power].begin(), sums_[power].end(), std::back_inserter(out),
                   [&](const Part& p) { return !changes_only || p.causes; });
    };
    if (traits.slope_at_zero != 0) add(linear);
    if (parity != FunctionTraits::Parity::kOdd) add(square);
    // Where the second derivative jumps at 0, as of softsign, the next term is x |x|.
    else if (traits.first_delta)
      add(without_parity(square));
    if (parity != FunctionTraits::Parity::kEven) add(times(square, linear));
  };
  const std::vector<Part> small_start = without_causes(small);
  /// phi'(ground) x + phi''(ground)/2 x^2 of small parts beside a background of size 1.
  const auto around = [&](const Background& ground, Exponent order) {
    const Id linear = intern(small), square = times(linear, linear);
    const Part slope = ground.image(parity, 1, image_order(order)),
               curvature = ground.image(parity, 2, image_order(order));
    for (const Part& p : sums_[linear]) out.push_back(product(slope, p));
    for (const Part& p : sums_[square]) out.push_back(product(curvature, p));
  };

  if (large.empty()) {
    at_zero(small, false);
    return out;
  }
  // The initial value ..
  if (start.empty)
    at_zero(small_start, false);
  else {
    out.push_back(start.image(parity, 0, image_order(start_order)));
    around(start, start_order);  // and small changes of it
  }
  // .. each large change beside it ..
  for (const Part& p : large) {
    if (p.causes == 0) continue;
    Background both = start;
    both.add(p);
    out.push_back(both.image(parity, 0, image_order(std::max(start_order, p.order))));
  }
  // .. all of them together, which have the symmetries of no more than any few ..
  if (all.causes) out.push_back(all.image(parity, 0, image_order(all_order)));
  // .. and small parts beside all of it.
  if (all.causes) around(all, all_order);
  if (start.empty) at_zero(small, true);
  return out;
}

}  // namespace tplimit
