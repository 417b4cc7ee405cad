// The tree-sitter grammar reads what tplimit reads: every program, the standard library, and some
// forms by their trees.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <tree_sitter/api.h>

#include "syntax/lexer.hpp"

extern "C" const TSLanguage* tree_sitter_tplimit();

namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Tree {
  std::string words;  ///< as an S-expression
  bool faulty;
};

Tree parsed(const std::string& text) {
  const std::unique_ptr<TSParser, decltype(&ts_parser_delete)> parser(ts_parser_new(),
                                                                      ts_parser_delete);
  EXPECT_TRUE(ts_parser_set_language(parser.get(), tree_sitter_tplimit()));
  const std::unique_ptr<TSTree, decltype(&ts_tree_delete)> tree(
      ts_parser_parse_string(parser.get(), nullptr, text.data(),
                             static_cast<std::uint32_t>(text.size())),
      ts_tree_delete);
  const TSNode root = ts_tree_root_node(tree.get());
  const std::unique_ptr<char, decltype(&std::free)> words(ts_node_string(root), std::free);
  return {words.get(), ts_node_has_error(root)};
}

TEST(TreeSitter, ReadsEveryProgram) {
  const fs::path root = TPLIMIT_SOURCE_DIR;
  int programs = 0;
  for (const char* folder : {"programs", "lib", "bench", "tests/golden/cli", "python/tests/graphs"})
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder))
      if (entry.path().extension() == ".tp") {
        ++programs;
        EXPECT_FALSE(parsed(text_of(entry.path())).faulty) << entry.path();
      }
  EXPECT_GE(programs, 60);
}

TEST(TreeSitter, HasTheKeywordsOfTheLexer) {
  using tplimit::syntax::TokenKind;
  std::set<std::string> words, keywords{"as"};
  for (auto k = static_cast<int>(TokenKind::kWidth); k <= static_cast<int>(TokenKind::kFalse); ++k)
    keywords.emplace(tplimit::syntax::spelling(static_cast<TokenKind>(k)));
  const TSLanguage* language = tree_sitter_tplimit();
  for (std::uint32_t k = 0; k < ts_language_symbol_count(language); ++k) {
    const std::string name = ts_language_symbol_name(language, static_cast<TSSymbol>(k));
    const bool token =
        ts_language_symbol_type(language, static_cast<TSSymbol>(k)) == TSSymbolTypeAnonymous;
    if (token && std::isalpha(static_cast<unsigned char>(name[0])) != 0) words.insert(name);
  }
  EXPECT_EQ(words, keywords);
}

TEST(TreeSitter, LinesEndStatements) {
  for (const char* text :
       {"a = 1\nb = 2", "a = 1; b = 2\n\n# end\n", "a = f(1,\n  2)\n[b]\n", "a,\n  b = c,\n  d",
        "if a { b = 1 }\n# no\nelse if c { d = 1 }\nelse { e = 1 }\nf = 1",
        "fn f(x) {\r\n  return x\r\n}\r\n", "step = 1"})
    EXPECT_EQ(parsed(text).faulty,
              std::string(text).find("[b]") != std::string::npos || std::string(text) == "step = 1")
        << text;
}

TEST(TreeSitter, TreesOfStatements) {
  using testing::HasSubstr;
  EXPECT_THAT(parsed("depth L = 8").words, HasSubstr("(depth name: (identifier)"));
  EXPECT_THAT(parsed("depth = 8").words, HasSubstr("(assignment name: (identifier)"));
  EXPECT_THAT(parsed("a = step(x)").words, HasSubstr("(call function: (identifier)"));
  EXPECT_THAT(parsed("W[0] += outer(a, b) / n").words, HasSubstr("(update target: (index"));
  EXPECT_THAT(parsed("a = -b @ c^2").words,
              HasSubstr("(sign (binary left: (identifier) right: (binary left: (identifier)"));
  EXPECT_THAT(parsed("a = x[.. by -1, 1.., ..2, 3]").words, HasSubstr("(open_range"));
  EXPECT_THAT(parsed("step sgd(loss, scale = {W: n^2}), sgd(b)").words,
              HasSubstr("(map (entry key:"));
  EXPECT_THAT(parsed("width n, m = 2 n, k").words, HasSubstr("(width_item name:"));
  EXPECT_THAT(parsed("import \"a.tp\" as b\nc = b.f(1)").words, HasSubstr("name: (identifier)"));
}

}  // namespace
