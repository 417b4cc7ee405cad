#include "tplimit/lsp/server.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <exception>
#include <map>
#include <stdexcept>

#include <fmt/format.h>

#include "lsp/features.hpp"
#include "lsp/reference.hpp"
#include "tplimit/lower/library.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lsp {
namespace {

namespace fs = std::filesystem;

/// Codes of JSON-RPC and of the protocol.
enum ErrorCode {
  kParseError = -32700,
  kInvalidRequest = -32600,
  kMethodNotFound = -32601,
  kInvalidParams = -32602,
  kInternalError = -32603,
  kNotInitialized = -32002,
  kRequestFailed = -32803,
};

struct Failure : std::runtime_error {
  Failure(ErrorCode reason, const std::string& what) : std::runtime_error(what), code(reason) {}
  ErrorCode code;
};

constexpr std::string_view kFile = "file://";
constexpr std::string_view kLibraryUri = "tplimit-std:/std.tp";

/// Of a file: URI; of others (texts without a file) nothing.
std::optional<std::string> path_of(std::string_view uri) {
  if (!uri.starts_with(kFile)) return std::nullopt;
  uri.remove_prefix(std::min(uri.find('/', kFile.size()), uri.size()));
  std::string out;
  for (std::size_t k = 0; k < uri.size(); ++k) {
    unsigned byte = 0;
    if (uri[k] == '%' && k + 2 < uri.size() &&
        std::from_chars(uri.data() + k + 1, uri.data() + k + 3, byte, 16).ptr ==
            uri.data() + k + 3) {
      out += static_cast<char>(byte);
      k += 2;
    } else {
      out += uri[k];
    }
  }
  return out;
}

std::string uri_of(const std::string& path) {
  std::string out(kFile);
  for (const char c : path) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0 ||
        std::string_view("/-._~").find(c) != std::string_view::npos)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

std::string written(const Json& message) {
  return message.dump(-1, ' ', false, Json::error_handler_t::replace);
}

struct Document {
  std::string uri, text;
  std::optional<std::string> path;
  const Later* later;
  std::unique_ptr<Analysis> known{};
  enum class Said { kNothing, kSyntax, kAll } said = Said::kNothing;  ///< as diagnostics

  Analysis& analysis() {
    if (!known) {
      const fs::path file = path ? fs::path(*path) : fs::path();
      known = std::make_unique<Analysis>(path ? file.lexically_normal().string() : uri, text,
                                         file.parent_path(), *later);
    }
    return *known;
  }
  /// As if it were new.
  void forget() {
    known = nullptr;
    said = Said::kNothing;
  }
};

}  // namespace

struct Server::State {
  Later later;
  bool initialized = false, shut_down = false, shows_library = false;
  std::optional<int> exit;
  std::map<std::string, Document> documents;                     // by URI
  std::map<std::string, std::map<std::string, Json>> published;  // by document, by the file's URI

  // ---- places

  Document& document(const Json& params) {
    const std::string uri = params.at("textDocument").at("uri");
    const auto it = documents.find(uri);
    if (it == documents.end()) throw Failure(kInvalidParams, fmt::format("'{}' is not open", uri));
    return it->second;
  }
  static std::size_t offset_in(Document& doc, const Json& params) {
    const Json& at = params.at("position");
    return doc.analysis()
        .positions(doc.analysis().source().parts()[0])
        .offset({at.at("line").get<std::size_t>(), at.at("character").get<std::size_t>()});
  }
  static std::string uri_of_part(const Document& doc, const Source& source,
                                 const Source::Part& part) {
    return &part == source.parts().data() ? doc.uri : uri_of(fs::absolute(part.name).string());
  }
  static Json location(Document& doc, Span span) {
    const Source& source = doc.analysis().source();
    const Source::Part& part = source.part_at(span.begin);
    return {{"uri", uri_of_part(doc, source, part)},
            {"range", json_of(doc.analysis().positions(part), span, part.begin)}};
  }

  // ---- requests

  static Json capabilities() {
    Json types = Json::array(), modifiers = Json::array();
    for (const char* type : kTokenTypes) types.push_back(type);
    for (const char* modifier : kTokenModifiers) modifiers.push_back(modifier);
    return {
        {"capabilities",
         {{"textDocumentSync", {{"openClose", true}, {"change", 1}, {"save", true}}},
          {"hoverProvider", true},
          {"definitionProvider", true},
          {"referencesProvider", true},
          {"documentSymbolProvider", true},
          {"documentFormattingProvider", true},
          {"renameProvider", {{"prepareProvider", true}}},
          {"completionProvider", {{"triggerCharacters", {"."}}}},
          {"semanticTokensProvider",
           {{"legend", {{"tokenTypes", types}, {"tokenModifiers", modifiers}}}, {"full", true}}}}},
        {"serverInfo", {{"name", "tplimit"}, {"version", version()}}}};
  }

  Json initialize(const Json& params) {
    if (initialized) throw Failure(kInvalidRequest, "the server is initialized already");
    initialized = true;
    if (const auto options = params.find("initializationOptions");
        options != params.end() && options->is_object())
      shows_library = options->value("standardLibrary", false);
    return capabilities();
  }

  Json definition(Document& doc, std::size_t offset) {
    Analysis& analysis = doc.analysis();
    const Source& source = analysis.source();
    if (const Occurrence* at = analysis.names().at(offset)) return location(doc, at->definition);
    for (const ast::Stmt& stmt : analysis.program().statements)
      if (const auto* import = std::get_if<ast::Import>(&stmt.node))
        if (import->path_span.begin <= offset && offset <= import->path_span.end) {
          const auto it = source.parts()[0].imports.find(import->path.value);
          if (it == source.parts()[0].imports.end()) return nullptr;
          const auto begin = static_cast<std::uint32_t>(source.parts()[it->second].begin);
          return location(doc, {begin, begin});
        }
    const std::string word(word_at(source.text(source.parts()[0]), offset));
    const LibraryFunction* f = shows_library ? library_function(word) : nullptr;
    if (!f) return nullptr;
    const auto begin = static_cast<std::uint32_t>(f->offset);
    return {{"uri", kLibraryUri},
            {"range", json_of(Positions(standard_library()),
                              {begin, begin + static_cast<std::uint32_t>(word.size())})}};
  }

  static Json references(Document& doc, std::size_t offset, bool declaration) {
    const Names& names = doc.analysis().names();
    const Occurrence* at = names.at(offset);
    if (!at) return nullptr;
    Json out = Json::array();
    for (const Occurrence& o : names.occurrences)
      if (o.symbol == at->symbol && (declaration || !o.binds)) out.push_back(location(doc, o.name));
    return out;
  }

  static const Occurrence& named_at(Document& doc, std::size_t offset) {
    const Occurrence* at = doc.analysis().names().at(offset);
    if (!at || offset < at->name.begin)
      throw Failure(kRequestFailed, "there is no name of the program here");
    return *at;
  }

  /// The same name in a program that imports the text.
  void rename_in(Document& doc, std::size_t offset, const std::string& name,
                 std::map<std::string, std::map<std::size_t, Json>>& edits) {
    Analysis& analysis = doc.analysis();
    const std::size_t symbol = named_at(doc, offset).symbol;
    if (const std::string fault = rename_fault(analysis, symbol, name); !fault.empty())
      throw Failure(kRequestFailed, fault);
    for (const Occurrence& o : analysis.names().occurrences) {
      if (o.symbol != symbol) continue;
      const Source::Part& part = analysis.source().part_at(o.name.begin);
      const std::string uri = uri_of_part(doc, analysis.source(), part);
      if (const auto open = documents.find(uri);
          open != documents.end() && open->second.text != analysis.source().text(part))
        throw Failure(kRequestFailed, fmt::format("save '{}' first", part.name));
      edits[uri][o.name.begin - part.begin] = {
          {"range", json_of(analysis.positions(part), o.name, part.begin)}, {"newText", name}};
    }
  }

  Json rename(Document& doc, std::size_t offset, const std::string& name) {
    std::map<std::string, std::map<std::size_t, Json>> edits;
    rename_in(doc, offset, name, edits);
    const std::string own = doc.analysis().source().name();
    for (auto& [uri, other] : documents) {
      if (&other == &doc) continue;
      const Source& source = other.analysis().source();
      for (std::size_t k = 1; k < source.parts().size(); ++k) {
        const Source::Part& part = source.parts()[k];
        if (fs::absolute(part.name) != fs::absolute(own)) continue;
        if (source.text(part) != doc.text)
          throw Failure(kRequestFailed, fmt::format("save '{}' first", own));
        if (other.analysis().names().at(part.begin + offset))
          rename_in(other, part.begin + offset, name, edits);
      }
    }
    Json changes = Json::object();
    for (const auto& [uri, in_file] : edits)
      for (const auto& [at, edit] : in_file) changes[uri].push_back(edit);
    return {{"changes", std::move(changes)}};
  }

  static Json format(Document& doc) {
    const Result<std::string> formatted = format_source(Source(doc.uri, doc.text));
    if (!formatted) throw Failure(kRequestFailed, "a text with errors is not formatted");
    if (*formatted == doc.text) return Json::array();
    const Span all{0, static_cast<std::uint32_t>(doc.text.size())};
    return Json::array({{{"range", json_of(Positions(doc.text), all)}, {"newText", *formatted}}});
  }

  Json answer(const std::string& method, const Json& params) {
    if (method == "initialize") return initialize(params);
    if (!initialized) throw Failure(kNotInitialized, "the server is not initialized");
    if (shut_down) throw Failure(kInvalidRequest, "the server is shut down");
    if (method == "shutdown") {
      shut_down = true;
      return nullptr;
    }
    if (method == "tplimit/standardLibrary") return {{"text", standard_library()}};
    const auto at = [&](auto&& how) {
      Document& doc = document(params);
      return how(doc, offset_in(doc, params));
    };
    if (method == "textDocument/hover")
      return at([](Document& doc, std::size_t o) {
        doc.analysis().begin();
        return hover(doc.analysis(), o);
      });
    if (method == "textDocument/completion")
      return at([](Document& doc, std::size_t o) { return completions(doc.analysis(), o); });
    if (method == "textDocument/definition")
      return at([&](Document& doc, std::size_t o) { return definition(doc, o); });
    if (method == "textDocument/references")
      return at([&](Document& doc, std::size_t o) {
        const auto context = params.find("context");
        return references(doc, o,
                          context == params.end() || context->value("includeDeclaration", true));
      });
    if (method == "textDocument/prepareRename")
      return at([](Document& doc, std::size_t o) {
        const Span name = named_at(doc, o).name;
        return json_of(doc.analysis().positions(doc.analysis().source().parts()[0]), name);
      });
    if (method == "textDocument/rename")
      return at([&](Document& doc, std::size_t o) {
        return rename(doc, o, params.at("newName").get<std::string>());
      });
    if (method == "textDocument/documentSymbol")
      return document_symbols(document(params).analysis());
    if (method == "textDocument/semanticTokens/full")
      return semantic_tokens(document(params).analysis());
    if (method == "textDocument/formatting") return format(document(params));
    throw Failure(kMethodNotFound, fmt::format("'{}' is not known here", method));
  }

  // ---- notifications

  void change(Document& doc, std::string text) {
    doc.text = std::move(text);
    doc.forget();
  }

  void notice(const std::string& method, const Json& params) {
    if (method == "exit") {
      exit = shut_down ? 0 : 1;
    } else if (!initialized || shut_down) {
      return;
    } else if (method == "textDocument/didOpen") {
      const Json& opened = params.at("textDocument");
      const std::string uri = opened.at("uri"), text = opened.at("text");
      documents[uri] = {uri, text, path_of(uri), &later};
      refresh_others(uri);
    } else if (method == "textDocument/didChange") {
      // Full texts: the last one counts.
      const Json& changes = params.at("contentChanges");
      if (!changes.empty()) change(document(params), changes.back().at("text"));
    } else if (method == "textDocument/didSave") {
      refresh_others(document(params).uri);
    } else if (method == "textDocument/didClose") {
      const std::string uri = document(params).uri;
      documents.erase(uri);
      refresh_others(uri);
    }
  }

  /// Programs that may import the file of `uri`.
  void refresh_others(const std::string& uri) {
    for (auto& [other, doc] : documents) {
      if (other != uri) doc.forget();
    }
  }

  // ---- diagnostics

  static Json json_of_diagnostic(Document& doc, const Diagnostic& d) {
    std::string message = d.message;
    if (!d.label.empty()) message += "\n" + d.label;
    if (!d.help.empty()) message += "\nhelp: " + d.help;
    Json related = Json::array();
    for (const Diagnostic::Note& note : d.notes)
      if (note.span != Span{})
        related.push_back({{"location", location(doc, note.span)}, {"message", note.message}});
      else
        message += "\n" + note.message;
    int severity = d.severity == Severity::kError ? 1 : d.severity == Severity::kWarning ? 2 : 3;
    // Not wrong, only not finished, or longer than is looked at here.
    if (d.code == "E2601") severity = 3;
    if (d.code == "E4202") {
      severity = 3;
      message = "the unrolled program is too long to be checked while it is edited: tplimit check";
    }
    Json out{{"range", location(doc, d.located ? d.span : Span{})["range"]},
             {"severity", severity},
             {"code", d.code},
             {"source", "tplimit"},
             {"message", message}};
    if (!related.empty()) out["relatedInformation"] = std::move(related);
    return out;
  }

  /// What a document says about each file.  Of a text that an open program imports, that program
  /// says whether its names and shapes are right; by itself it may lack a width.
  std::map<std::string, Json> found_in(Document& doc) {
    std::map<std::string, Json> out{{doc.uri, Json::array()}};
    const bool imported = std::ranges::any_of(documents, [&](auto& other) {
      const Source& source = other.second.analysis().source();
      return std::any_of(source.parts().begin() + 1, source.parts().end(),
                         [&](const Source::Part& part) {
                           return doc.path && uri_of_part(other.second, source, part) == doc.uri;
                         });
    });
    const Source& source = doc.analysis().source();
    for (const Diagnostic& d : doc.analysis().diagnostics()) {
      if (imported && !d.code.starts_with("E1")) continue;
      const Source::Part& part = source.part_at(d.located ? d.span.begin : 0);
      Json& all = out.try_emplace(uri_of_part(doc, source, part), Json::array()).first->second;
      all.push_back(json_of_diagnostic(doc, d));
    }
    // No errors yet is not: no errors.
    if (!doc.analysis().checked())
      out[doc.uri].push_back({{"range", location(doc, Span{})["range"]},
                              {"severity", 3},
                              {"source", "tplimit"},
                              {"message", "still being checked"}});
    return out;
  }

  /// `for_now`: also of texts of which only that they can be read is known.
  std::vector<std::string> settle(bool for_now) {
    std::map<std::string, Json> touched;  // by file
    const auto touch = [&](const std::map<std::string, Json>& files) {
      for (const auto& [uri, none] : files) touched[uri] = Json::array();
    };
    for (auto it = published.begin(); it != published.end();) {
      if (documents.contains(it->first)) {
        ++it;
        continue;
      }
      touch(it->second);
      it = published.erase(it);
    }
    std::vector<std::string> out;
    for (auto& [uri, doc] : documents) {
      using enum Document::Said;
      if (doc.said == kAll) continue;
      std::map<std::string, Json> found;
      try {
        doc.analysis().begin();
        const bool all = doc.analysis().checked();
        if (!all && (!for_now || doc.said == kSyntax)) continue;
        doc.said = all ? kAll : kSyntax;
        found = found_in(doc);
      } catch (const std::exception& error) {
        doc.said = kAll;
        out.push_back(notification(
            "window/logMessage",
            {{"type", 1},
             {"message", fmt::format("internal error in '{}': {}", uri, error.what())}}));
      }
      touch(published[uri]);
      touch(found);
      published[uri] = std::move(found);
    }
    // Several programs may say the same of a file that they import.
    for (auto& [file, all] : touched) {
      for (const auto& [uri, files] : published)
        if (const auto it = files.find(file); it != files.end())
          for (const Json& d : it->second)
            if (std::ranges::find(all, d) == all.end()) all.push_back(d);
      out.push_back(
          notification("textDocument/publishDiagnostics", {{"uri", file}, {"diagnostics", all}}));
    }
    return out;
  }

  static std::string notification(const char* method, const Json& params) {
    return written({{"jsonrpc", "2.0"}, {"method", method}, {"params", params}});
  }
};

namespace {

std::string reply(const Json& id, const char* key, const Json& value) {
  return written({{"jsonrpc", "2.0"}, {"id", id}, {key, value}});
}
std::string error_reply(const Json& id, ErrorCode code, const std::string& message) {
  return reply(id, "error", {{"code", static_cast<int>(code)}, {"message", message}});
}

}  // namespace

Server::Server(Later later) : state_(std::make_unique<State>(State{std::move(later)})) {}
Server::~Server() = default;
Server::Server(Server&&) noexcept = default;
Server& Server::operator=(Server&&) noexcept = default;

std::vector<std::string> Server::receive(std::string_view message) {
  const Json json = Json::parse(message, nullptr, false);
  if (json.is_discarded()) return {error_reply(nullptr, kParseError, "this is no JSON")};
  const bool object = json.is_object();
  const auto id = object ? json.find("id") : json.end();
  const bool request = object && id != json.end();
  const Json own_id = request ? *id : Json(nullptr);
  const auto method = object ? json.find("method") : json.end();
  if (!object || method == json.end() || !method->is_string()) {
    // Answers to requests of ours have no method; there are none.
    if (object && (json.contains("result") || json.contains("error"))) return {};
    return {error_reply(own_id, kInvalidRequest, "this is no request")};
  }
  const Json params = json.value("params", Json::object());
  try {
    if (request) return {reply(own_id, "result", state_->answer(*method, params))};
    state_->notice(*method, params);
    return {};
  } catch (const Failure& failure) {
    if (request) return {error_reply(own_id, failure.code, failure.what())};
  } catch (const Json::exception& error) {
    if (request) return {error_reply(own_id, kInvalidParams, error.what())};
  } catch (const std::exception& error) {
    if (request) return {error_reply(own_id, kInternalError, error.what())};
  }
  return {};
}

std::vector<std::string> Server::settle() { return state_->settle(false); }

std::vector<std::string> Server::settle_for_now() { return state_->settle(true); }

bool Server::unsettled() const {
  return std::ranges::any_of(state_->documents, [](const auto& entry) {
    return entry.second.said == Document::Said::kNothing;
  });
}

std::optional<int> Server::exit_code() const { return state_->exit; }

std::optional<std::string> Frames::next() {
  const std::size_t blank = buffer_.find("\r\n\r\n");
  if (blank == std::string::npos) return std::nullopt;
  std::string header = buffer_.substr(0, blank);
  std::ranges::transform(header, header.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::string_view kLength = "content-length:";
  const std::size_t body = blank + 4;
  std::size_t length = 0;
  bool known = false;
  if (const std::size_t at = header.find(kLength); at != std::string::npos) {
    const std::size_t digits = header.find_first_not_of(' ', at + kLength.size());
    if (digits != std::string::npos)
      known = std::from_chars(header.data() + digits, header.data() + header.size(), length).ec ==
              std::errc();
  }
  if (!known) {
    buffer_.erase(0, body);
    return "";
  }
  if (buffer_.size() - body < length) return std::nullopt;
  std::string out = buffer_.substr(body, length);
  buffer_.erase(0, body + length);
  return out;
}

std::string framed(std::string_view message) {
  return fmt::format("Content-Length: {}\r\n\r\n{}", message.size(), message);
}

}  // namespace tplimit::lsp
