#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "parallel/executor.hpp"
#include "tests/support/run.hpp"

// Whatever is asked to stop ends with E5207, and the same module can be evaluated again.
namespace tplimit {
namespace {

constexpr const char* kTraining =
    "width n\n"
    "data X = [[1, 0.5], [-0.3, 1]]\n"
    "data y = [1, -1]\n"
    "param U : [n, 2] ~ normal(0, 1 / 2), lr = n\n"
    "param W : [n, n] ~ normal(0, 1 / n)\n"
    "param v : [n] ~ normal(0, 1), lr = n\n"
    "model f(x) { return v @ tanh(W @ tanh(U @ x)) / n }\n"
    "for t in 0..20 { step sgd(mse(f(X), y), lr = 0.5) }\n"
    "report f(X)\n";

template <class T>
std::string code_of(const Result<T>& result) {
  return result.ok() ? "" : result.errors().at(0).code;
}

class Stop : public ::testing::Test {
 protected:
  std::atomic<bool> stop_ = false;
};

TEST_F(Stop, LoweringBeforeTheNextStatement) {
  LowerOptions options;
  options.stop = &stop_;
  EXPECT_EQ(code_of(parse(Source("test.tp", kTraining), options)), "");
  stop_ = true;
  EXPECT_EQ(code_of(parse(Source("test.tp", kTraining), options)), "E5207");
}

TEST_F(Stop, ParticlesAfterTheFirstRun) {
  const Module module = test::parsed(kTraining);
  EvaluateOptions options = test::particles(512, 6);
  const LimitResult before = test::limit_of(module, options);
  for (const int threads : {1, 2}) {
    stop_ = false;
    options.threads = threads;
    options.stop = &stop_;
    options.progress = [this](double) { stop_ = true; };
    EXPECT_EQ(code_of(evaluate(module, options)), "E5207");
    options.progress = {};
    EXPECT_EQ(code_of(evaluate(module, options)), "E5207") << "it is still asked for";
  }
  stop_ = false;
  EXPECT_EQ(test::limit_of(module, options).reports[0].value, before.reports[0].value);
}

TEST_F(Stop, Networks) {
  const Module module = test::parsed(kTraining);
  SimulateOptions options;
  options.width = 64;
  options.seeds = 5;
  options.stop = &stop_;
  for (const Matrices kind : {Matrices::kDense, Matrices::kLazy}) {
    options.matrices = kind;
    options.progress = [this](double) { stop_ = true; };
    EXPECT_EQ(code_of(simulate(module, options)), "E5207");
    stop_ = false;
  }
}

TEST_F(Stop, MomentsAndMethods) {
  const Module module = test::parsed(
      "width n\nrandom z : [n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1 / n)\n"
      "report E(tanh(W @ tanh(z))^2)\n");
  EvaluateOptions options;
  options.stop = &stop_;
  EXPECT_EQ(code_of(evaluate(module, options)), "");
  stop_ = true;
  EXPECT_EQ(code_of(evaluate(module, options)), "E5207");
  EXPECT_EQ(code_of(methods(module, options)), "E5207");
}

TEST_F(Stop, ReachesLoopsOnAllThreads) {
  for (const int threads : {1, 4}) {
    stop_ = false;
    const Executor executor(threads, single_process(), &stop_);
    std::atomic<int> done = 0;
    EXPECT_THROW(executor.parallel(100000,
                                   [&](std::int64_t) {
                                     if (++done == 50) stop_ = true;
                                   }),
                 Stopped);
    EXPECT_LT(done, 60);
    EXPECT_THROW(executor.poll(), Stopped);
  }
}

}  // namespace
}  // namespace tplimit
