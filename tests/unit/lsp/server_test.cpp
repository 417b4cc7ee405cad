/// The language server by its messages, without a process.

#include "tplimit/lsp/server.hpp"

#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <semaphore>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "lsp/names.hpp"
#include "lsp/positions.hpp"
#include "lsp/reference.hpp"
#include "tplimit/lower/language.hpp"
#include "tplimit/lower/lower.hpp"
#include "tplimit/lsp/worker.hpp"
#include "tplimit/syntax/editing.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lsp {
namespace {

using Json = nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const std::string kUri = "untitled:test.tp";

const std::string kProgram = R"(width n
const eta = 0.2
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param v : [n] ~ normal(0, 1), lr = n
# Half of the square.
fn half(z, of = 2) = z^2 / of
model f(x) {
  h = U @ x
  return v @ tanh(h) / n, h
}
for t in 0..2 {
  out, h = f(X)
  report out, s = half(out, of = 2)
  step sgd(mse(out, y), lr = eta)
}
)";

class Session {
 public:
  explicit Session(const Json& how = {{"capabilities", Json::object()}}, Later later = at_once)
      : server(std::move(later)) {
    (void)call("initialize", how);
  }
  explicit Session(Later later) : Session({{"capabilities", Json::object()}}, std::move(later)) {}
  explicit Session(const std::string& text) : Session() { open(kUri, text); }
  explicit Session(const char* text) : Session(std::string(text)) {}

  Json call(const std::string& method, const Json& params) {
    const auto out = server.receive(
        Json{{"jsonrpc", "2.0"}, {"id", ++last_}, {"method", method}, {"params", params}}.dump());
    EXPECT_EQ(out.size(), 1u);
    Json answer = Json::parse(out.at(0));
    EXPECT_EQ(answer.at("id"), last_);
    return answer;
  }
  void notify(const std::string& method, const Json& params) {
    const auto out =
        server.receive(Json{{"jsonrpc", "2.0"}, {"method", method}, {"params", params}}.dump());
    EXPECT_TRUE(out.empty());
  }
  void open(const std::string& uri, const std::string& text) {
    texts_[uri] = text;
    notify("textDocument/didOpen",
           {{"textDocument",
             {{"uri", uri}, {"languageId", "tplimit"}, {"version", 1}, {"text", text}}}});
  }
  void change(const std::string& text) {
    texts_[kUri] = text;
    notify("textDocument/didChange", {{"textDocument", {{"uri", kUri}, {"version", 2}}},
                                      {"contentChanges", Json::array({Json{{"text", text}}})}});
  }
  /// Where `mark` stands in the text, `ahead` characters further.
  Json at(const std::string& mark, std::size_t ahead = 0, const std::string& uri = kUri) {
    const std::string& text = texts_.at(uri);
    const std::size_t offset = text.find(mark);
    EXPECT_NE(offset, std::string::npos) << mark;
    const Position p = Positions(text).position(offset + ahead);
    return {{"textDocument", {{"uri", uri}}},
            {"position", {{"line", p.line}, {"character", p.character}}}};
  }
  std::string hover(const std::string& mark, std::size_t ahead = 0) {
    const Json result = call("textDocument/hover", at(mark, ahead)).at("result");
    return result.is_null() ? "" : result.at("contents").at("value").get<std::string>();
  }
  /// "line:character" of a definition.
  std::string definition(const std::string& mark, std::size_t ahead = 0) {
    const Json result = call("textDocument/definition", at(mark, ahead)).at("result");
    return result.is_null() ? "" : place(result.at("range"));
  }
  static std::string place(const Json& range) {
    return fmt::format("{}:{}", range.at("start").at("line").get<int>(),
                       range.at("start").at("character").get<int>());
  }
  std::vector<std::string> complete(const std::string& mark, std::size_t ahead = 0,
                                    const std::string& of = "") {
    std::vector<std::string> out;
    const Json result = call("textDocument/completion", at(mark, ahead)).at("result");
    for (const Json& item : result)
      if (of.empty() || item.at("data") == of) out.push_back(item.at("label"));
    return out;
  }
  /// The text after a rename, or why there is none.
  std::string rename(const std::string& mark, const std::string& name, std::size_t ahead = 0,
                     const std::string& uri = kUri) {
    Json params = at(mark, ahead, uri);
    params["newName"] = name;
    const Json answer = call("textDocument/rename", params);
    if (answer.contains("error")) return answer.at("error").at("message");
    return edited(texts_.at(uri), answer.at("result").at("changes").at(uri));
  }
  static std::string edited(std::string text, Json edits) {
    const Positions positions(text);
    std::vector<std::tuple<std::size_t, std::size_t, std::string>> all;
    for (const Json& e : edits) {
      const auto offset = [&](const char* end) {
        const Json& p = e.at("range").at(end);
        return positions.offset({p.at("line"), p.at("character")});
      };
      all.emplace_back(offset("start"), offset("end"), e.at("newText"));
    }
    std::sort(all.rbegin(), all.rend());
    std::string out = text;
    for (const auto& [begin, end, with] : all) out.replace(begin, end - begin, with);
    return out;
  }
  /// Of each file: "code line:character severity".
  std::map<std::string, std::vector<std::string>> settle() { return told(server.settle()); }
  std::map<std::string, std::vector<std::string>> settle_for_now() {
    return told(server.settle_for_now());
  }
  static std::map<std::string, std::vector<std::string>> told(
      const std::vector<std::string>& messages) {
    std::map<std::string, std::vector<std::string>> out;
    for (const std::string& text : messages) {
      const Json message = Json::parse(text);
      EXPECT_EQ(message.at("method"), "textDocument/publishDiagnostics") << text;
      auto& all = out[message.at("params").at("uri")];
      for (const Json& d : message.at("params").at("diagnostics"))
        all.push_back(fmt::format("{} {} {}", d.value("code", d.at("message")),
                                  place(d.at("range")), d.at("severity").get<int>()));
    }
    return out;
  }

  Server server;

 private:
  int last_ = 0;
  std::map<std::string, std::string> texts_;
};

// ---- the protocol

TEST(Protocol, AnswersWhatItDoesNotKnow) {
  Session s;
  EXPECT_EQ(s.call("textDocument/flight", Json::object()).at("error").at("code"), -32601);
  EXPECT_EQ(s.call("textDocument/hover", Json::object()).at("error").at("code"), -32602);
  EXPECT_EQ(s.call("textDocument/hover", Json::array({1})).at("error").at("code"), -32602);
  s.notify("$/flight", Json::object());
}

TEST(Protocol, SurvivesWhatIsNoMessage) {
  Server server;
  for (const auto& [text, code] :
       std::vector<std::pair<std::string, int>>{{"{\"id\": 1,", -32700},
                                                {"", -32700},
                                                {"\xff", -32700},
                                                {"[]", -32600},
                                                {"1", -32600},
                                                {"{\"id\": 1}", -32600},
                                                {"{\"id\": 1, \"method\": 2}", -32600}}) {
    const auto out = server.receive(text);
    ASSERT_EQ(out.size(), 1u) << text;
    EXPECT_EQ(Json::parse(out[0]).at("error").at("code"), code) << text;
  }
  EXPECT_TRUE(server.receive(R"({"id": 1, "result": null})").empty());
  const auto out = server.receive(R"({"id": 7, "method": "initialize", "params": {}})");
  EXPECT_EQ(Json::parse(out.at(0)).at("id"), 7);
}

TEST(Protocol, BeginsAndEnds) {
  Server server;
  const auto code_of = [&](const std::string& method) {
    const Json answer = Json::parse(
        server.receive(Json{{"id", 1}, {"method", method}, {"params", nullptr}}.dump()).at(0));
    return answer.contains("error") ? answer.at("error").at("code").get<int>() : 0;
  };
  EXPECT_EQ(code_of("textDocument/hover"), -32002);
  EXPECT_EQ(code_of("initialize"), 0);
  EXPECT_EQ(code_of("initialize"), -32600);
  EXPECT_EQ(code_of("shutdown"), 0);
  EXPECT_EQ(code_of("textDocument/hover"), -32600);
  EXPECT_FALSE(server.exit_code());
  (void)server.receive(R"({"method": "exit"})");
  EXPECT_EQ(server.exit_code(), 0);
  Server other;
  (void)other.receive(R"({"method": "exit"})");
  EXPECT_EQ(other.exit_code(), 1);
}

TEST(Protocol, FindsMessagesInBytes) {
  Frames frames;
  const std::string both = framed("{}") + framed("[\"\xC3\xA9\"]");
  std::vector<std::string> got;
  for (const char c : both) {
    frames.add({&c, 1});
    while (auto message = frames.next()) got.push_back(*message);
  }
  EXPECT_THAT(got, ElementsAre("{}", "[\"\xC3\xA9\"]"));
  frames.add("Content-Type: x\r\n\r\ncontent-length:2\r\n\r\n{}");
  EXPECT_EQ(frames.next(), "");  // a header without a length
  EXPECT_EQ(frames.next(), "{}");
  EXPECT_FALSE(frames.next());
}

TEST(Positions, CountUtf16) {
  const std::string text = "a\u00e9\U0001F600b\r\nc";
  const Positions p(text);
  EXPECT_EQ(p.position(text.find('b')).character, 4u);  // 1 + 1 + 2
  EXPECT_EQ(p.offset({0, 4}), text.find('b'));
  EXPECT_EQ(p.offset({0, 99}), text.find('\r'));
  EXPECT_EQ(p.position(text.find('c')).line, 1u);
  EXPECT_EQ(p.offset({9, 0}), text.size());
  for (std::size_t k = 0; k <= text.size(); ++k)
    if ((static_cast<unsigned char>(text[k]) & 0xC0) != 0x80 && text[k] != '\n') {
      EXPECT_EQ(p.offset(p.position(k)), k);
    }
}

// ---- diagnostics

TEST(Diagnostics, FollowTheText) {
  Session s(kProgram);
  EXPECT_TRUE(s.settle().at(kUri).empty());
  EXPECT_TRUE(s.settle().empty()) << "nothing has changed";
  s.change("width n\nreport E(q)\n");
  EXPECT_THAT(s.settle().at(kUri), ElementsAre(testing::StartsWith("E2103 1:9 1")));
  s.change("width n\nparam U : [n] ~ normal(0, 1)\nreport \"\u00e9\U0001F600\" + E(U) q\n");
  EXPECT_THAT(s.settle().at(kUri), ElementsAre("E1012 2:20 1"));
  s.change("width n\n");
  EXPECT_THAT(s.settle().at(kUri), ElementsAre("E2601 0:0 3")) << "not finished, not wrong";
  s.notify("textDocument/didClose", {{"textDocument", {{"uri", kUri}}}});
  EXPECT_TRUE(s.settle().at(kUri).empty());
}

TEST(Diagnostics, LongProgramsAreNotUnrolledToTheEnd) {
  Session s(
      "width n\nparam u : [n] ~ normal(0, 1)\nx = u\nfor t in 0..1000000 { x = tanh(x + t) "
      "}\nreport E(x^2)\n");
  EXPECT_THAT(s.settle().at(kUri), ElementsAre(testing::EndsWith(" 3")));
}

// ---- what takes longer

/// Runs tasks when a test says so.
struct Tasks {
  std::deque<std::function<void()>> waiting;
  Later later() {
    return [this](std::function<void()> task) { waiting.push_back(std::move(task)); };
  }
  void run() {
    for (; !waiting.empty(); waiting.pop_front()) waiting.front()();
  }
};

TEST(Tasks, DiagnosticsComeWhenTheyHaveEnded) {
  Tasks tasks;
  Session s(tasks.later());
  s.open(kUri, "width n\nreport E(q)\n");
  EXPECT_TRUE(tasks.waiting.empty()) << "a keystroke may follow";
  EXPECT_TRUE(s.settle().empty());
  EXPECT_TRUE(s.server.unsettled());
  EXPECT_THAT(s.settle_for_now().at(kUri), ElementsAre("still being checked 0:0 3"));
  EXPECT_FALSE(s.server.unsettled());
  EXPECT_TRUE(s.settle_for_now().empty()) << "said already";
  tasks.run();
  EXPECT_THAT(s.settle().at(kUri), ElementsAre(testing::StartsWith("E2103 1:9 1")));
  EXPECT_TRUE(s.settle().empty());
}

TEST(Tasks, AreNotNeededForErrorsOfSyntax) {
  Tasks tasks;
  Session s(tasks.later());
  s.open(kUri, "width n\nreport (\n");
  EXPECT_THAT(s.settle().at(kUri), ElementsAre(testing::StartsWith("E1")));
  EXPECT_TRUE(tasks.waiting.empty());
}

TEST(Tasks, OfATextThatHasChangedAreNotHeardOf) {
  Tasks tasks;
  Session s(tasks.later());
  s.open(kUri, "width n\nreport E(q)\n");
  (void)s.settle();
  s.change("width n\nreport E(1)\nreport E(r)\n");
  tasks.run();
  EXPECT_TRUE(s.settle().empty());
  tasks.run();
  EXPECT_THAT(s.settle().at(kUri), ElementsAre(testing::StartsWith("E2103 2:9 1")));
}

TEST(Tasks, WhatCanBeReadFromTheTextDoesNotWait) {
  Tasks tasks;
  Session s(tasks.later());
  s.open(kUri, kProgram);
  EXPECT_EQ(s.definition("eta)"), "1:6");
  EXPECT_THAT(s.complete("report out"), Contains("half"));
  EXPECT_THAT(s.rename("eta =", "rate"), HasSubstr("lr = rate)"));
  EXPECT_TRUE(tasks.waiting.empty());
  EXPECT_THAT(s.hover("U @ x"),
              AllOf(HasSubstr("param U : [n, 2] ~ normal(0, 1 / 2), lr = n"),
                    HasSubstr("still being looked at"), Not(HasSubstr("shape ["))));
  tasks.run();
  EXPECT_THAT(s.hover("U @ x"), AllOf(HasSubstr("shape [n, 2]"), HasSubstr("moved by 1"),
                                      Not(HasSubstr("still being looked at"))));
}

TEST(Worker, ServesAServer) {
  std::counting_semaphore<> ended(0);
  Worker worker([&] { ended.release(); });
  Session s([&](std::function<void()> task) { worker.add(std::move(task)); });
  s.open(kUri, kProgram);
  for (int k = 0; k < 20; ++k) {
    (void)s.settle();
    s.change(kProgram + fmt::format("report E(q{})\n", k));
  }
  for (;;) {
    const auto told = s.settle();
    if (const auto it = told.find(kUri); it != told.end()) {
      EXPECT_THAT(it->second, ElementsAre(testing::StartsWith("E2103 17:9 1")));
      return;
    }
    ended.acquire();
  }
}

// ---- hover

TEST(Hover, SaysWhatNamesStandFor) {
  Session s(kProgram);
  EXPECT_THAT(s.hover("U @ x"), HasSubstr("param U : [n, 2] ~ normal(0, 1 / 2), lr = n"));
  EXPECT_THAT(s.hover("U @ x"), HasSubstr("shape [n, 2]"));
  EXPECT_THAT(s.hover("U @ x"),
              HasSubstr("in `U @ x`: order 1, moved by 1 by its updates (maximal)"));
  EXPECT_THAT(s.hover("tanh(h)", 5), HasSubstr("value of `f`: a value of shape [2, n]"));
  EXPECT_THAT(s.hover("tanh(h)", 5), HasSubstr("order of `h`: 1 at first, changed by 1"));
  EXPECT_THAT(s.hover("lr = eta", 5), HasSubstr("const eta = 0.2"));
  EXPECT_THAT(s.hover("half(out"), HasSubstr("fn half(z, of = 2)\n```\nHalf of the square."));
  EXPECT_THAT(s.hover("of = 2) =", 0), HasSubstr("argument of `half`"));
  EXPECT_THAT(s.hover("t in"), HasSubstr("at first the number 0"));
  EXPECT_THAT(s.hover("X)"), HasSubstr("shape [2, 2]"));
  EXPECT_EQ(s.hover("Half"), "") << "in a comment";
}

TEST(Hover, ExplainsTheLanguage) {
  Session s(kProgram + "report rmsnorm(out), mean(out, axis = 0)\n");
  EXPECT_THAT(s.hover("mean("), HasSubstr("mean(x) or mean(x, axis = k)"));
  EXPECT_THAT(s.hover("mean("), HasSubstr("over one finite axis"));
  EXPECT_THAT(s.hover("sgd("), HasSubstr("options: lr, momentum"));
  EXPECT_THAT(s.hover("rmsnorm("), HasSubstr("fn rmsnorm(x, eps = 1e-6)"));
  EXPECT_THAT(s.hover("width"), HasSubstr("the symbol that goes to infinity"));
  EXPECT_THAT(s.hover("normal("), HasSubstr("normal(mean, variance)"));
}

TEST(Hover, EveryWordIsDocumented) {
  for (const LanguageWord& word : language_words())
    if (word.kind == LanguageWord::Kind::kFunction || word.kind == LanguageWord::Kind::kOptimiser) {
      EXPECT_FALSE(rows_about(word.name).empty()) << word.name;
    }
  // 'true' and the like stand inside other rows.
  for (const std::string_view keyword : keywords())
    if (!std::set<std::string_view>{"in", "true", "false", "within", "by", "else", "return"}
             .contains(keyword)) {
      EXPECT_FALSE(rows_about(keyword).empty()) << keyword;
    }
}

TEST(Hover, WordsAreThoseOfTheLanguage) {
  // Those that no table of the front end lists: each in a program that is accepted.
  for (const LanguageWord& word : language_words()) {
    std::string text = "width n\n";
    if (word.kind == LanguageWord::Kind::kLaw)
      text += fmt::format("random z : [n] ~ {}({})\nreport E(z)\n", word.name,
                          word.name == "sign" ? "" : "0, 1");
    else if (word.kind == LanguageWord::Kind::kConstant && word.name != "None")
      text += fmt::format("report 1 / {}\n", word.name);
    else if (word.kind == LanguageWord::Kind::kParametrization)
      text +=
          fmt::format("{}\nrandom z : [n] ~ normal(0, 1)\nreport E(z)\n",
                      word.name.starts_with("abc") ? "parametrization " + word.form : word.form);
    else
      continue;
    const Source source("test.tp", text);
    const auto program = parse_syntax(source);
    ASSERT_TRUE(program.ok()) << text;
    const auto lowered = lower(*program, source, {});
    EXPECT_TRUE(lowered.ok()) << text << render(lowered.errors(), source);
  }
}

// ---- places

TEST(Definition, IsWhereTheValueWasBoundLast) {
  Session s(kProgram);
  EXPECT_EQ(s.definition("U @ x"), "4:6");
  EXPECT_EQ(s.definition("U @ x", 4), "8:8");
  EXPECT_EQ(s.definition("tanh(h)", 5), "9:2");
  EXPECT_EQ(s.definition("half(out", 1), "7:3");
  EXPECT_EQ(s.definition("half(out", 5), "13:2");
  EXPECT_EQ(s.definition("tanh"), "") << "of the language";
  Session twice("width n\nx = 1\nx = x + 1\nreport x\n");
  EXPECT_EQ(twice.definition("x + 1"), "1:0");
  EXPECT_EQ(twice.definition("report x", 7), "2:0");
}

TEST(Definition, OfTheStandardLibraryIsATextOfItsOwn) {
  const std::string uri = "untitled:other";
  Session plain, shows(Json{{"initializationOptions", {{"standardLibrary", true}}}});
  for (Session* s : {&plain, &shows}) s->open(uri, "report rmsnorm(1)\n");
  const auto found = [&](Session& s) {
    return s.call("textDocument/definition", s.at("rmsnorm", 0, uri)).at("result");
  };
  EXPECT_TRUE(found(plain).is_null());
  EXPECT_EQ(found(shows).at("uri"), "tplimit-std:/std.tp");
  EXPECT_GT(found(shows).at("range").at("start").at("line"), 0);
}

TEST(Symbols, AreThoseOfTheText) {
  Session s(kProgram);
  const Json result = s.call("textDocument/documentSymbol", s.at("width")).at("result");
  std::vector<std::string> names;
  for (const Json& symbol : result) names.push_back(symbol.at("name"));
  EXPECT_THAT(names, ElementsAre("n", "eta", "X", "y", "U", "v", "half", "f", "t", "out", "h"));
  EXPECT_EQ(result.at(7).at("children").size(), 2u) << "x and h of f";
}

TEST(References, BelongToOneScope) {
  Session s(kProgram);
  const auto count = [&](const std::string& mark, std::size_t ahead = 0) {
    return s.call("textDocument/references", s.at(mark, ahead)).at("result").size();
  };
  EXPECT_EQ(count("h = U"), 3u);
  EXPECT_EQ(count("out, h = f", 5), 1u);
  EXPECT_EQ(count("of = 2) ="), 3u) << "with the name in the call";
  EXPECT_EQ(count("eta"), 2u);
}

// ---- renaming

TEST(Rename, ChangesAllOccurrencesOfItsScope) {
  Session s(kProgram);
  const auto replaced = [](std::string text, const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  EXPECT_EQ(s.rename("h = U", "hidden"), replaced(replaced(kProgram, "h = U", "hidden = U"),
                                                  "tanh(h) / n, h", "tanh(hidden) / n, hidden"));
  EXPECT_EQ(s.rename("eta", "rate"),
            replaced(replaced(kProgram, "eta =", "rate ="), "= eta", "= rate"));
  EXPECT_EQ(s.rename("of = 2) =", "over"),
            replaced(replaced(kProgram, "of = 2) = z^2 / of", "over = 2) = z^2 / over"), "of = 2)",
                     "over = 2)"));
}

TEST(Rename, IsRefusedWhereItWouldChangeTheProgram) {
  Session s(kProgram);
  EXPECT_THAT(s.rename("h = U", "x"), HasSubstr("named so already"));
  EXPECT_THAT(s.rename("h = U", "v"), HasSubstr("named so already"));
  EXPECT_THAT(s.rename("eta", "h"), HasSubstr("named so already"));
  EXPECT_THAT(s.rename("eta", "report"), HasSubstr("is no name"));
  EXPECT_THAT(s.rename("eta", "a b"), HasSubstr("is no name"));
  EXPECT_THAT(s.rename("eta", "gram"), HasSubstr("word of the language"));
  EXPECT_THAT(s.rename("tanh", "relu"), HasSubstr("no name of the program"));
}

TEST(Rename, KnowsOptionsFromNames) {
  const std::string text =
      "width n\nconst lr = 0.1\nparam W : [n] ~ normal(0, 1), lr = n\n"
      "loss = E(W^2)\nstep sgd(loss, lr = lr, groups = {W: {lr: lr}})\nreport loss\n";
  Session s(text);
  EXPECT_EQ(s.rename("lr = 0.1", "rate"),
            "width n\nconst rate = 0.1\nparam W : [n] ~ normal(0, 1), lr = n\n"
            "loss = E(W^2)\nstep sgd(loss, lr = rate, groups = {W: {lr: rate}})\nreport loss\n");
}

// ---- imports

class Imports : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              fmt::format("tplimit lsp {}", testing::UnitTest::GetInstance()->random_seed() +
                                                static_cast<int>(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string uri(const std::string& name) const {
    std::string path = (folder_ / name).string();
    for (std::size_t k = 0; (k = path.find(' ', k)) != std::string::npos;)
      path.replace(k, 1, "%20");
    return "file://" + path;
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
  }
  std::filesystem::path folder_;
};

TEST_F(Imports, HaveTheirOwnDiagnosticsAndNames) {
  const std::string blocks = "# Twice.\nfn twice(z) = 2 * z\nfn wrong(z) = nothing * z\n",
                    program =
                        "width n\nimport \"blocks.tp\" as b\nrandom z : [n] ~ normal(0, 1)\n"
                        "report E(b.twice(z)), E(b.wrong(z))\n";
  write("blocks.tp", blocks);
  Session s;
  s.open(uri("main.tp"), program);
  auto found = s.settle();
  EXPECT_TRUE(found.at(uri("main.tp")).empty());
  EXPECT_THAT(found.at(uri("blocks.tp")), ElementsAre("E2103 2:14 1"));
  const Json definition =
      s.call("textDocument/definition", s.at("b.twice", 3, uri("main.tp"))).at("result");
  EXPECT_EQ(definition.at("uri"), uri("blocks.tp"));
  EXPECT_EQ(Session::place(definition.at("range")), "1:3");
  EXPECT_THAT(s.call("textDocument/hover", s.at("b.twice", 3, uri("main.tp"))).dump(),
              HasSubstr("Twice."));
  EXPECT_THAT(s.rename("b.twice", "double_", 2, uri("main.tp")), HasSubstr("E(b.double_(z))"));
  // From the file that is imported, in both.
  s.open(uri("blocks.tp"), blocks);
  EXPECT_THAT(s.settle().at(uri("blocks.tp")), ElementsAre("E2103 2:14 1")) << "said once";
  Json params = s.at("twice", 0, uri("blocks.tp"));
  params["newName"] = "double_";
  const Json changes = s.call("textDocument/rename", params).at("result").at("changes");
  EXPECT_EQ(changes.at(uri("blocks.tp")).size(), 1u);
  EXPECT_EQ(changes.at(uri("main.tp")).size(), 1u);
}

// ---- completion

TEST(Completion, KnowsWhereItStands) {
  Session s(kProgram);
  const auto at_end = s.complete("h = U", 0);
  for (const char* word :
       {"for", "report", "tanh", "gram", "eta", "U", "h", "x", "half", "rmsnorm"})
    EXPECT_THAT(at_end, Contains(word));
  EXPECT_THAT(at_end, Not(Contains("sgd")));
  EXPECT_THAT(at_end, Not(Contains("t0")));
  EXPECT_THAT(s.complete("sgd(", 1), Contains("adamw"));
  EXPECT_THAT(s.complete("lr = eta", 0), Contains("weight_decay"));
  EXPECT_TRUE(s.complete("Half", 2).empty()) << "in a comment";
  EXPECT_THAT(s.complete("of = 2)\n", 0, "option"), ElementsAre("z", "of"));
}

TEST(Completion, WorksWhileTheTextIsNoProgram) {
  Session s(
      "width n\nparam weights : [n] ~ normal(0, 1)\nmodel f(x) {\n  hidden = weights * x\n"
      "  return wei\n");
  EXPECT_THAT(s.complete("return wei", 10), Contains("weights"));
  EXPECT_THAT(s.complete("return wei", 10), Contains("hidden"));
  EXPECT_THAT(s.complete("~ normal", 2, "law"), ElementsAre("normal", "sign", "uniform"));
}

// ---- the rest

TEST(Formatting, IsThatOfFmt) {
  Session s("width   n\nreport 1+2\n");
  const Json edits =
      s.call("textDocument/formatting", {{"textDocument", {{"uri", kUri}}}, {"options", {}}})
          .at("result");
  EXPECT_EQ(Session::edited("width   n\nreport 1+2\n", edits), "width n\nreport 1 + 2\n");
  s.change("width (\n");
  EXPECT_TRUE(
      s.call("textDocument/formatting", {{"textDocument", {{"uri", kUri}}}, {"options", {}}})
          .contains("error"));
}

TEST(SemanticTokens, StandInOrder) {
  Session s(kProgram);
  const Json data =
      s.call("textDocument/semanticTokens/full", s.at("width")).at("result").at("data");
  ASSERT_EQ(data.size() % 5, 0u);
  EXPECT_GT(data.size(), 5 * 30u);
  EXPECT_EQ(Json(std::vector<Json>(data.begin(), data.begin() + 5)), Json({0, 6, 1, 4, 1}));
  for (std::size_t k = 0; k < data.size(); k += 5)
    EXPECT_TRUE(data[k] > 0 || data[k + 1] > 0) << k / 5;
}

TEST(Robustness, AnyPrefixOfAProgramIsAnswered) {
  Session s("");
  for (std::size_t k = 0; k <= kProgram.size(); k += 7) {
    s.change(kProgram.substr(0, k));
    (void)s.settle();
    const Position p = Positions(kProgram).position(k);
    const Json at{{"textDocument", {{"uri", kUri}}},
                  {"position", {{"line", p.line}, {"character", p.character}}}};
    for (const char* method : {"hover", "completion", "definition", "documentSymbol"})
      EXPECT_TRUE(s.call(std::string("textDocument/") + method, at).contains("result")) << k;
  }
}

}  // namespace
}  // namespace tplimit::lsp
