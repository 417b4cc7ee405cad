#pragma once

namespace tplimit {

/// Joins lambdas into one visitor; a missing alternative does not compile.
template <class... Ts>
struct overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
overloaded(Ts...) -> overloaded<Ts...>;

}  // namespace tplimit
