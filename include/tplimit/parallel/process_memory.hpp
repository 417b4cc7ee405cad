#pragma once

#include <string>

#include "tplimit/parallel/communicator.hpp"

/// Memory of processes.
namespace tplimit {

/// Largest resident memory of this process so far, in bytes.
double peak_memory();
/// Resident bytes of the first rank: what all decide by.
double current_memory(const Communicator& ranks);
/// Bytes that may be used: what was asked for, or, if that is 0, 80 % of a rank's share of the
/// machine's memory.
double memory_limit(double asked, const Communicator& ranks);
/// "1.5 GB".
std::string bytes_text(double bytes);

}  // namespace tplimit
