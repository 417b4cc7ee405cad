#include <cstdio>
#include <fmt/format.h>
#include "tplimit/driver/driver.hpp"
using namespace tplimit;
int main(int argc, char** argv) {
  LowerOptions lo; EvaluateOptions eo; SimulateOptions so; bool sim=false;
  for (int i = 2; i + 1 < argc; i += 2) { std::string k = argv[i], v = argv[i+1];
    if (k=="-m") eo.particles=std::stol(v); if (k=="-r") eo.randomisations=std::stoi(v); if (k=="-s") lo.constants.push_back({v.substr(0,v.find('=')), v.substr(v.find('=')+1)});
    if (k=="-t") eo.threads=so.threads=std::stoi(v); if (k=="-w") {sim=true; so.width=std::stol(v);} if (k=="-n") so.seeds=std::stoi(v); if (k=="-x") so.matrices = v=="lazy"?Matrices::kLazy:v=="dense"?Matrices::kDense:Matrices::kAuto; if(k=="--seed") eo.seed=so.seed=std::stoul(v);}
  auto m = parse_file(argv[1], lo);
  Source src = m ? m->source : [&]{ FILE* f=fopen(argv[1],"rb"); std::string s; char b[4096]; size_t n; while((n=fread(b,1,4096,f))>0) s.append(b,n); return Source(argv[1], s);}();
  if (!m) { fmt::print("{}", render(m.errors(), src)); return 1; }
  if (sim) { auto r = simulate(*m, so); if (!r) { fmt::print("{}", render(r.errors(), src)); return 1;}
    for (auto& rep : r->reports) { fmt::print("{}:", rep.name); for (size_t j=0;j<rep.value.size();++j) fmt::print(" {:.6g}({:.2g})", rep.value[j], rep.error.empty()?0:rep.error[j]); fmt::print("\n"); } fmt::print("time {} dense {}\n", r->time_s, r->dense); return 0; }
  auto r = evaluate(*m, eo);
  if (!r) { fmt::print("{}", render(r.errors(), src)); return 1; }
  for (auto& w : r->warnings) fmt::print("{}", render(w, src));
  for (auto& rep : r->reports) { fmt::print("{} [{}]:", rep.name, to_string(rep.method)); for (size_t j=0;j<rep.value.size();++j) fmt::print(" {:.10g}({:.2g})", rep.value[j], rep.error.empty()?0:rep.error[j]); fmt::print("\n"); }
  for (auto& e : r->expectations) fmt::print("expect {}: {} vs {} +- {} tol {}\n", e.status==ExpectStatus::kPassed?"pass":e.status==ExpectStatus::kFailed?"FAIL":"undecided", e.left, e.right, e.error, e.tolerance);
  fmt::print("time {:.2f} mem {:.0f} MB rank {}\n", r->time_s, r->peak_memory_bytes/1e6, r->engine.largest_rank);
}
