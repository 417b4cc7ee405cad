#include "cli/manual.hpp"

#include <algorithm>
#include <array>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include "cli/shared.hpp"

namespace tplimit::cli {
namespace {

enum class Values { kNone, kWords, kPrograms, kFiles, kFilesBehindName, kFolders };

/// An option or a positional argument.
struct Argument {
  std::string name;  ///< "--engine", "FILE"
  std::string type;  ///< of its value, "FILE", "auto|exact"; empty: a flag
  std::string help;
  bool positional, many;
  Values values;
  std::string words;  ///< of kWords, between blanks
};

std::vector<Argument> arguments_of(const CLI::App& app) {
  std::vector<Argument> out;
  for (const CLI::Option* option : app.get_options()) {
    Argument own{option->get_name(true),
                 option->get_type_name(),
                 option->get_description(),
                 option->get_positional(),
                 option->get_items_expected_max() > 1,
                 Values::kNone,
                 ""};
    if (!own.positional) {
      own.name = option->get_name();
      if (option->get_items_expected_max() == 0) own.type.clear();
    }
    if (own.type.find('|') != std::string::npos) {
      own.values = Values::kWords;
      own.words = own.type;
      std::replace(own.words.begin(), own.words.end(), '|', ' ');
    } else if (own.positional) {
      own.values = Values::kPrograms;
    } else if (own.type == "FILE") {
      own.values = Values::kFiles;
    } else if (own.type == "NAME=FILE") {
      own.values = Values::kFilesBehindName;
    } else if (own.type == "FOLDER") {
      own.values = Values::kFolders;
    }
    out.push_back(std::move(own));
  }
  std::stable_partition(out.begin(), out.end(), [](const Argument& a) { return a.positional; });
  return out;
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) { return app.get_subcommands({}); }

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

// ---- man(7)

/// Text without meaning for groff.
std::string roff(const std::string& text) {
  std::string out = replaced(replaced(text, "\\", "\\e"), "-", "\\-");
  return out.starts_with('.') || out.starts_with('\'') ? "\\&" + out : out;
}

std::string page(const std::string& title, const std::string& what) {
  std::string capital = title;
  for (char& c : capital)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return fmt::format(".TH {} 1 \"\" \"tplimit {}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n",
                     roff(capital), version(), roff(title), roff(what));
}

std::string arguments_page(const std::vector<Argument>& arguments) {
  std::string out;
  for (const Argument& a : arguments) {
    if (a.positional)
      out += fmt::format(".TP\n.I {}\n{}{}\n", roff(a.name), roff(a.help),
                         a.words.empty() ? "" : ": " + roff(replaced(a.words, " ", ", ")));
    else
      out +=
          fmt::format(".TP\n.BI {}{}\n{}\n", roff(a.name),
                      a.type.empty() ? ""  // lines may end between alternatives
                                     : fmt::format(" \" {}\"", replaced(roff(a.type), "|", "|\\:")),
                      roff(a.help));
  }
  return out;
}

std::string main_page(const CLI::App& app) {
  std::string out = page("tplimit", app.get_description());
  out += ".SH SYNOPSIS\n.B tplimit\n.I COMMAND\n[options]\n.SH COMMANDS\n";
  for (const CLI::App* command : commands_of(app))
    out += fmt::format(".TP\n.B {}\n{}\n", roff(command->get_name()),
                       roff(command->get_description()));
  out += ".SH OPTIONS\n" + arguments_page(arguments_of(app)) + ".SH SEE ALSO\n";
  std::vector<std::string> pages;
  for (const CLI::App* command : commands_of(app))
    pages.push_back(fmt::format(".BR tplimit\\-{} (1)", roff(command->get_name())));
  return out + fmt::format("{}\n", fmt::join(pages, " ,\n"));
}

std::string command_page(const CLI::App& command) {
  std::string out = page("tplimit-" + command.get_name(), command.get_description());
  out += fmt::format(".SH SYNOPSIS\n.B tplimit {}\n", roff(command.get_name()));
  const std::vector<Argument> arguments = arguments_of(command);
  for (const CLI::Option* option : command.get_options())
    if (option->get_positional())
      out += fmt::format("{0}\\fI{2}\\fR{3}{1}\n", option->get_required() ? "" : "[",
                         option->get_required() ? "" : "]", roff(option->get_name(true)),
                         option->get_items_expected_max() > 1 ? " .." : "");
  return out + "[options]\n.SH OPTIONS\n" + arguments_page(arguments) +
         ".SH SEE ALSO\n.BR tplimit (1)\n";
}

// ---- completions

/// For the shells: between single quotes.
std::string quoted(const std::string& text, std::string_view quote) {
  return '\'' + replaced(text, "'", quote) + '\'';
}
constexpr std::string_view kPosixQuote = "'\\''";

std::string names_of(const std::vector<const CLI::App*>& commands) {
  std::string out;
  for (const CLI::App* command : commands) out += command->get_name() + " ";
  return out;
}

std::string bash_values(Values values, const std::string& words) {
  switch (values) {
    case Values::kWords: return "_tplimit_words " + quoted(words, kPosixQuote);
    case Values::kPrograms: return "_tplimit_files -o plusdirs -f -X '!*.tp'";
    case Values::kFiles:
    case Values::kFilesBehindName: return "_tplimit_files -f";
    case Values::kFolders: return "_tplimit_files -d";
    case Values::kNone: return ":";
  }
  return ":";
}

std::string bash(const CLI::App& app) {
  const auto commands = commands_of(app);
  const auto options_of = [](const std::vector<Argument>& arguments) {
    std::string out;
    for (const Argument& a : arguments)
      if (!a.positional) out += a.name + " ";
    return out;
  };
  std::string out = R"(_tplimit_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current"); }
_tplimit_files() {
  compopt -o filenames 2> /dev/null
  mapfile -t COMPREPLY < <(compgen "$@" -- "$current")
}
_tplimit() {
  local current=${COMP_WORDS[COMP_CWORD]} equals='' at=$((COMP_CWORD - 1))
  # Bash makes three words of --engine=exact and of X=FILE.
  if [[ $current == = ]]; then current='' equals==; fi
  if [[ ${COMP_WORDS[at]} == = ]]; then equals== at=$((at - 1)); fi
  local option=${COMP_WORDS[at]}
  if [[ $equals && $option != --* ]]; then option=${COMP_WORDS[at - 1]}=; fi
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
)";
  out += fmt::format("    _tplimit_words '{}{}'\n    return\n  fi\n  case ${{COMP_WORDS[1]}} in\n",
                     names_of(commands), options_of(arguments_of(app)));
  for (const CLI::App* command : commands) {
    const std::vector<Argument> arguments = arguments_of(*command);
    out += fmt::format("    {})\n      case $option in\n", command->get_name());
    std::string others = ":";
    for (const Argument& a : arguments) {
      const auto take = [&](const std::string& pattern, Values values) {
        out += fmt::format("        {}) {} ;;\n", pattern, bash_values(values, a.words));
      };
      const bool behind = a.values == Values::kFilesBehindName;
      if (a.positional)
        others = bash_values(a.values, a.words);
      else if (!a.type.empty())
        take(a.name, behind ? Values::kNone : a.values);
      if (a.type.find('=') != std::string::npos) take(a.name + "=", a.values);
    }
    out += fmt::format(
        "        *) if [[ $current == -* ]]; then _tplimit_words '{}'; else {}; fi ;;\n"
        "      esac ;;\n",
        options_of(arguments), others);
  }
  return out + "  esac\n}\ncomplete -F _tplimit tplimit\n";
}

std::string zsh_values(const Argument& a) {
  switch (a.values) {
    case Values::kWords: return fmt::format("({})", a.words);
    case Values::kPrograms: return "_files -g \"*.tp\"";
    case Values::kFiles: return "_files";
    case Values::kFilesBehindName: return "{ compset -P \"*=\" && _files }";
    case Values::kFolders: return "_files -/";
    case Values::kNone: return " ";
  }
  return " ";
}

std::string zsh(const CLI::App& app) {
  const auto commands = commands_of(app);
  const auto specifications = [](const CLI::App& own) {
    std::string out = "_arguments -s";
    for (const Argument& a : arguments_of(own)) {
      const std::string help = replaced(replaced(a.help, "[", "\\["), "]", "\\]");
      std::string spec = a.many ? "*" : "";
      if (!a.positional) spec += a.name + (a.type.empty() ? "" : "=") + "[" + help + "]";
      if (a.positional || !a.type.empty())
        spec += fmt::format(":{}:{}", a.positional ? a.name : a.type, zsh_values(a));
      out += " \\\n        " + quoted(spec, kPosixQuote);
    }
    return out;
  };
  std::string out = "_tplimit() {\n  local -a commands=(\n";
  for (const CLI::App* command : commands)
    out += fmt::format("    {}\n",
                       quoted(command->get_name() + ":" + command->get_description(), kPosixQuote));
  out += fmt::format(
      "  )\n  if (( CURRENT == 2 )); then\n    if [[ $PREFIX == -* ]]; then\n      {}\n    else\n"
      "      _describe command commands\n    fi\n    return\n  fi\n"
      "  shift words\n  (( CURRENT-- ))\n  case $words[1] in\n",
      specifications(app));
  for (const CLI::App* command : commands)
    out += fmt::format("    {})\n      {} ;;\n", command->get_name(), specifications(*command));
  return out +
         "  esac\n}\n"
         "if [[ $funcstack[1] == _tplimit ]]; then _tplimit \"$@\"; else compdef _tplimit tplimit; "
         "fi\n";
}

std::string fish_values(const Argument& a) {
  switch (a.values) {
    case Values::kWords: return fmt::format(" -x -a '{}'", a.words);
    case Values::kPrograms: return " -k -a '(__fish_complete_suffix .tp)'";
    case Values::kFiles:
    case Values::kFilesBehindName:  // fish completes behind '='
      return " -r -F";
    case Values::kFolders: return " -x -a '(__fish_complete_directories)'";
    case Values::kNone: return a.type.empty() ? "" : " -x";
  }
  return "";
}

std::string fish(const CLI::App& app) {
  std::string out = "complete -c tplimit -f\n";
  const auto add = [&](const std::string& when, const CLI::App& own) {
    for (const Argument& a : arguments_of(own))
      out += fmt::format("complete -c tplimit -n '{}'{}{} -d {}\n", when,
                         a.positional ? "" : " -l " + a.name.substr(2), fish_values(a),
                         quoted(replaced(a.help, "\\", "\\\\"), "\\'"));
  };
  for (const CLI::App* command : commands_of(app))
    out += fmt::format("complete -c tplimit -n __fish_use_subcommand -a {} -d {}\n",
                       command->get_name(), quoted(command->get_description(), "\\'"));
  add("__fish_use_subcommand", app);
  for (const CLI::App* command : commands_of(app))
    add("__fish_seen_subcommand_from " + command->get_name(), *command);
  return out;
}

struct Shell {
  const char* name;
  std::string (*completions)(const CLI::App&);
  const char* first_line;  ///< which it wants
};
constexpr std::array kShells{Shell{"bash", bash, ""}, Shell{"zsh", zsh, "#compdef tplimit\n"},
                             Shell{"fish", fish, ""}};

}  // namespace

std::vector<std::string> shells() {
  std::vector<std::string> out;
  for (const Shell& shell : kShells) out.emplace_back(shell.name);
  return out;
}

int manual(const Options& options) {
  std::vector<std::pair<std::string, std::string>> pages{{"tplimit", main_page(*options.app)}};
  for (const CLI::App* command : commands_of(*options.app))
    pages.emplace_back("tplimit-" + command->get_name(), command_page(*command));
  if (options.folder.empty()) {
    const std::string name =
        options.files.empty() ? "tplimit" : fmt::format("tplimit-{}", options.files[0]);
    const auto at = std::find_if(pages.begin(), pages.end(),
                                 [&](const auto& own) { return own.first == name; });
    if (at == pages.end())
      return complain(fmt::format("there is no command '{}': there are {}", options.files[0],
                                  names_of(commands_of(*options.app))));
    fmt::print("{}", at->second);
    return kDone;
  }
  std::error_code failed;
  std::filesystem::create_directories(options.folder, failed);
  for (const auto& [name, text] : pages)
    if (const std::string failure =
            write_file(std::filesystem::path(options.folder) / (name + ".1"), text);
        !failure.empty())
      return complain(failure);
  return kDone;
}

int completions(const Options& options) {
  for (const Shell& shell : kShells)
    if (options.files.at(0) == shell.name) {
      fmt::print("{}# Of tplimit {}, printed by: tplimit completions {}\n{}", shell.first_line,
                 version(), shell.name, shell.completions(*options.app));
      return kDone;
    }
  return complain(fmt::format("there are completions for {}, not for '{}'",
                              fmt::join(shells(), ", "), options.files.at(0)));
}

}  // namespace tplimit::cli
