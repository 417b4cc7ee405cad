#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "parallel/session.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

void require(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw InternalError(
      fmt::format("{}: {}", what, std::string_view(text, static_cast<std::size_t>(length))));
}

/// Messages are sent from process to process, not by MPI's own reductions: their order of addition
/// is the library's choice, and nothing promises the same bits on all ranks
/// (docs/decisions/0010-mpi.md).
class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    require(MPI_Comm_dup(MPI_COMM_WORLD, &all_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(all_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(all_, &rank_);
    MPI_Comm_size(all_, &size_);
    MPI_Comm node;
    int here = 1;
    require(MPI_Comm_split_type(all_, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
            "MPI_Comm_split_type");
    MPI_Comm_size(node, &here);
    MPI_Comm_free(&node);
    // mpirun may have bound this process to some cores; ranks of one machine that are not bound
    // share all of them.
    int cores = std::max(1, single_process().threads() / here);
    cpu_set_t bound;
    if (sched_getaffinity(0, sizeof bound, &bound) == 0) cores = std::min(cores, CPU_COUNT(&bound));
    threads_ = static_cast<int>(smallest(cores));
    memory_ = smallest(single_process().memory() / here);
  }
  ~MpiCommunicator() override { MPI_Comm_free(&all_); }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] int threads() const override { return threads_; }
  [[nodiscard]] double memory() const override { return memory_; }
  [[nodiscard]] Traffic traffic() const override { return traffic_; }

  void sum(std::span<double> values) const override {
    ++traffic_.sums;
    traffic_.bytes += static_cast<std::int64_t>(values.size_bytes());
    combine('+', values, std::plus<>());
  }

  void broadcast(std::span<std::byte> bytes, int root) const override {
    if (rank_ != root) std::fill(bytes.begin(), bytes.end(), std::byte{0});
    combine('=', bytes, std::bit_or<>());
  }

 private:
  /// What every message begins with: ranks that do not make the same calls must not add each
  /// other's numbers.
  struct Header {
    std::uint64_t call, kind, bytes;
    bool operator==(const Header&) const = default;
  };

  /// Combines the values of all ranks, the same way on each, with an operation for which a . b has
  /// the bits of b . a.
  ///
  /// All pairs of a power of two of ranks exchange and combine; what is beyond the power of two
  /// gives its values to a neighbour first.  Every call sends the same messages whatever it is for:
  /// ranks that do not make the same calls meet in the first of them that differs, and never wait
  /// for ever.
  template <class T, class Operation>
  void combine(char kind, std::span<T> values, Operation operation) const {
    begin(kind, values.size_bytes());
    std::vector<T> other(values.size());
    const std::span<std::byte> own = std::as_writable_bytes(values),
                               theirs = std::as_writable_bytes(std::span(other));
    const auto add = [&] {
      std::transform(values.begin(), values.end(), other.begin(), values.begin(), operation);
    };
    const int paired = static_cast<int>(std::bit_floor(static_cast<unsigned>(size_))),
              rest = size_ - paired;
    const bool doubled = rank_ < 2 * rest;
    if (doubled && rank_ % 2 == 0) {
      send(own, rank_ + 1);
      receive(own, rank_ + 1);
      return;
    }
    if (doubled) {
      receive(theirs, rank_ - 1);
      add();
    }
    const int place = doubled ? rank_ / 2 : rank_ - rest;
    for (int step = 1; step < paired; step *= 2) {
      const int partner = place ^ step;
      exchange(own, theirs, partner < rest ? 2 * partner + 1 : partner + rest);
      add();
    }
    if (doubled) send(own, rank_ - 1);
  }

  [[nodiscard]] double smallest(double own) const {
    double least = own;
    for (int root = 0; root < size_; ++root) {
      double value = own;
      broadcast(std::as_writable_bytes(std::span(&value, 1)), root);
      least = std::min(least, value);
    }
    return least;
  }

  void begin(char kind, std::size_t bytes) const {
    header_ = {header_.call + 1, static_cast<std::uint64_t>(kind), bytes};
    outgoing_.resize(sizeof(Header) + bytes);
    incoming_.resize(sizeof(Header) + bytes);
    TPLIMIT_CHECK(outgoing_.size() <= 0x7fffffff, "a message of {} bytes is too long for MPI",
                  outgoing_.size());
  }
  void pack(std::span<const std::byte> bytes) const {
    std::memcpy(outgoing_.data(), &header_, sizeof(Header));
    std::copy(bytes.begin(), bytes.end(), outgoing_.begin() + sizeof(Header));
  }
  void unpack(std::span<std::byte> bytes, int code, const MPI_Status& status, int from) const {
    Header theirs{};
    int length = 0;
    if (code == MPI_SUCCESS) {
      MPI_Get_count(&status, MPI_BYTE, &length);
      if (static_cast<std::size_t>(length) >= sizeof(Header))
        std::memcpy(&theirs, incoming_.data(), sizeof(Header));
    } else {
      int kind = code;
      MPI_Error_class(code, &kind);
      if (kind != MPI_ERR_TRUNCATE)
        require(code, "receiving");  // a longer message comes from another call
    }
    if (theirs != header_)
      throw InternalError(
          fmt::format("out of step with rank {} at message {}: do all ranks run one build of "
                      "tplimit, on processors of one kind?",
                      from, header_.call));
    std::copy_n(incoming_.begin() + sizeof(Header), bytes.size(), bytes.begin());
  }
  void send(std::span<const std::byte> bytes, int to) const {
    pack(bytes);
    require(MPI_Send(outgoing_.data(), static_cast<int>(outgoing_.size()), MPI_BYTE, to, 0, all_),
            "sending");
  }
  void receive(std::span<std::byte> bytes, int from) const {
    MPI_Status status;
    const int code = MPI_Recv(incoming_.data(), static_cast<int>(incoming_.size()), MPI_BYTE, from,
                              0, all_, &status);
    unpack(bytes, code, status, from);
  }
  void exchange(std::span<const std::byte> own, std::span<std::byte> other, int with) const {
    pack(own);
    MPI_Status status;
    const int code = MPI_Sendrecv(outgoing_.data(), static_cast<int>(outgoing_.size()), MPI_BYTE,
                                  with, 0, incoming_.data(), static_cast<int>(incoming_.size()),
                                  MPI_BYTE, with, 0, all_, &status);
    unpack(other, code, status, with);
  }

  MPI_Comm all_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, threads_ = 1;
  double memory_ = 0;
  mutable Traffic traffic_;
  mutable Header header_{};
  mutable std::vector<std::byte> outgoing_, incoming_;
};

// MPI is started and ended once in a process, so its session is the process's.
std::optional<MpiCommunicator> communicator;
std::FILE* heard = nullptr;  // standard error, also of ranks that are silent

}  // namespace

Session::Session(int* argc, char*** argv) {
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
  heard = ::fdopen(::dup(STDERR_FILENO), "w");
  communicator.emplace();
  if (communicator->rank() == 0) return;
  if (!std::freopen("/dev/null", "w", stdout) || !std::freopen("/dev/null", "w", stderr))
    std::abort();
}

Session::~Session() {
  communicator.reset();
  MPI_Finalize();
}

const Communicator& Session::ranks() const {
  if (communicator->size() == 1) return single_process();
  return *communicator;
}

int Session::finish(int code) {
  communicator->broadcast(std::as_writable_bytes(std::span(&code, 1)), 0);
  return code;
}

int Session::abandon(int code, std::string_view why) {
  if (communicator->size() == 1) {
    fmt::print(stderr, "tplimit: {}\n", why);
    return code;
  }
  fmt::print(heard, "tplimit: rank {} of {}: {}\n", communicator->rank(), communicator->size(),
             why);
  std::fflush(heard);
  MPI_Abort(MPI_COMM_WORLD, code);
  std::abort();
}

}  // namespace tplimit
