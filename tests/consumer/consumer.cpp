// tplimit as an installed library: parse, evaluate, simulate.
#include <cmath>
#include <cstdio>

#include <tplimit/driver/driver.hpp>

int main() {
  const auto module = tplimit::parse(tplimit::Source("inline.tp",
                                                     "width n\n"
                                                     "random W : [n, n] ~ normal(0, 1/n)\n"
                                                     "random x : [n] ~ normal(0, 1)\n"
                                                     "report E((W' @ tanh(W @ x)) * x)\n"));
  if (!module) {
    std::fputs(tplimit::render(module.errors(), tplimit::Source()).c_str(), stderr);
    return 1;
  }
  tplimit::EvaluateOptions options;
  options.particles = 4096;
  const auto limit = tplimit::evaluate(*module, options);
  tplimit::SimulateOptions networks;
  networks.width = 256;
  networks.seeds = 16;
  const auto finite = tplimit::simulate(*module, networks);
  if (!limit || !finite) return 1;
  const double a = limit->reports[0].value[0], b = finite->reports[0].value[0];
  std::printf("limit %.4f, networks of width 256 %.4f\n", a, b);
  return std::abs(a - b) < 0.1 ? 0 : 1;
}
