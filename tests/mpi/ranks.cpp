#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "parallel/session.hpp"
#include "tplimit/support/check.hpp"

/// What each rank does in tests of the communicator: `ranks sums`, `ranks lengths`, `ranks calls`,
/// `ranks leaves`.
namespace {

using tplimit::Communicator;

/// Numbers whose sum depends on the order of addition.
double number(int rank, std::size_t k) { return 1.0 / (1 + rank) + static_cast<double>(k) / 3; }

/// The sum in the promised order: what is beyond a power of two of ranks joins a neighbour first,
/// then pairs of pairs.
double expected(int size, std::size_t k) {
  int paired = 1;
  while (2 * paired <= size) paired *= 2;
  std::vector<double> parts;
  for (int rank = 0, rest = size - paired; rank < size; ++rank) {
    parts.push_back(number(rank, k));
    if (rank < 2 * rest) parts.back() += number(++rank, k);
  }
  for (; parts.size() > 1; parts.resize(parts.size() / 2))
    for (std::size_t j = 0; j < parts.size() / 2; ++j) parts[j] = parts[2 * j] + parts[2 * j + 1];
  return parts[0];
}

int sums(const Communicator& ranks) {
  for (const std::size_t count :
       {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{200'000}}) {
    std::vector<double> values(count);
    for (std::size_t k = 0; k < count; ++k) values[k] = number(ranks.rank(), k);
    ranks.sum(values);
    for (std::size_t k = 0; k < count; ++k)
      TPLIMIT_CHECK(values[k] == expected(ranks.size(), k), "entry {} of {}", k, count);
  }
  for (int root = 0; root < ranks.size(); ++root) {
    std::vector<int> values(1000, ranks.rank());
    ranks.broadcast(std::as_writable_bytes(std::span(values)), root);
    TPLIMIT_CHECK(values == std::vector<int>(1000, root), "from {}", root);
  }
  const bool same = as_on_first_rank(ranks, "a text"),
             different =
                 as_on_first_rank(ranks, std::string(static_cast<std::size_t>(ranks.rank()), 'x'));
  TPLIMIT_CHECK(same && different == (ranks.rank() == 0), "texts");
  TPLIMIT_CHECK(ranks.traffic().sums == 4 && ranks.traffic().bytes == 8 * 200'008, "counted");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  tplimit::Session session(&argc, &argv);
  const Communicator& ranks = session.ranks();
  const std::string what = argc > 1 ? argv[1] : "";
  const bool odd = ranks.rank() == ranks.size() - 1;
  try {
    std::vector<double> values(odd && what == "lengths" ? 5 : 4);
    if (what == "sums") return session.finish(sums(ranks));
    if (odd && what == "leaves") return session.finish(3);
    if (odd && what == "calls") ranks.broadcast(std::as_writable_bytes(std::span(values)), 0);
    ranks.sum(values);
    return session.finish(0);
  } catch (const std::exception& error) {
    return session.abandon(70, error.what());
  }
}
