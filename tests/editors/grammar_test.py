"""The TextMate grammar knows the words that tplimit knows, and every token of every program has a scope.

Run: grammar_test.py TPLIMIT ROOT
"""
import json
import pathlib
import re
import sys

from client import Client

tplimit, root = sys.argv[1], pathlib.Path(sys.argv[2])
grammar = json.loads((root / "editors/vscode/syntaxes/tplimit.tmLanguage.json").read_text())
repository = grammar["repository"]
failures = []


def expect(condition, text):
    if not condition:
        failures.append(text)


# ---- the same words

def alternatives(*entries, group=r"\(\?:"):
    """The words of \\b(?:a|b|c)\\b."""
    words = []
    for entry in entries:
        # "depth" is a keyword before a name only.
        match = re.sub(r"\(\?=[^()]*\)", "", repository[entry]["match"])
        words += re.search(group + r"([^()]*)\)\\b$", match).group(1).split("|")
    return sorted(words)


client = Client(tplimit)
client.open("untitled:words", "\nstep \n")


def offered(kind, line, character):
    items = client.at("completion", "untitled:words", line, character)
    return sorted(item["label"] for item in items if item["data"] == kind)


lexer = (root / "src/syntax/lexer.cpp").read_text()
spellings = re.search(r"kSpellings = .*?\}\);", lexer, re.S).group(0)
keywords = sorted(w for w in re.findall(r'"(\w+)"', spellings[spellings.index('"width"'):]))
for what, in_grammar, in_tplimit in [
    ("keywords", alternatives("keyword_declaration", "keyword_control", "keyword_constant"), keywords),
    ("functions", sorted(alternatives("function") + ["step"]), sorted(set(offered("builtin", 0, 0)) | {"step"})),
    ("library functions", alternatives("library_function"), offered("library", 0, 0)),
    ("constants", alternatives("constant"), offered("constant", 0, 0)),
    ("optimisers", alternatives("optimiser", group=r"\("), offered("optimiser", 1, 5)),
]:
    expect(len(in_tplimit) >= 2, f"tplimit names no {what}")
    expect(in_grammar == in_tplimit, f"{what}: only in the grammar {set(in_grammar) - set(in_tplimit)}, "
                                     f"only in tplimit {set(in_tplimit) - set(in_grammar)}")
expect(sorted(offered("keyword", 0, 0)) == keywords, "completion offers other keywords than the lexer has")
expect(client.leave() == 0, "the server did not exit with 0")

# ---- every token has a scope: the part of TextMate's rules that this grammar uses

patterns = []
for entry in grammar["patterns"]:
    rule = repository[entry["include"].removeprefix("#")]
    expect(set(rule) <= {"name", "match", "captures"}, f"{entry}: the matcher here knows match, name and captures only")
    patterns.append((re.compile(rule["match"]), rule))


def scopes_of(line):
    """A scope or None for each character."""
    out = [None] * len(line)
    at = 0
    while at < len(line):
        found = [(m.start(), k, m, rule) for k, (p, rule) in enumerate(patterns) if (m := p.search(line, at))]
        if not found:
            break
        _, _, match, rule = min(found, key=lambda f: f[:2])  # the leftmost, of these the first in order
        assert match.end() > match.start(), rule
        for k in range(match.start(), match.end()):
            out[k] = rule.get("name")
        for group, capture in rule.get("captures", {}).items():
            if match.group(int(group)) is not None:
                for k in range(*match.span(int(group))):
                    out[k] = capture["name"]
        at = match.end()
    return out


programs = sorted((root / "programs").rglob("*.tp")) + [root / "lib/std.tp"]
expect(len(programs) > 20, "the programs are not where they were")
for program in programs:
    for number, line in enumerate(program.read_text().splitlines(), 1):
        scopes = scopes_of(line)
        for column, (c, scope) in enumerate(zip(line, scopes), 1):
            expect(c.isspace() or scope, f"{program.name}:{number}:{column}: '{c}' has no scope")

# ---- some scopes by name

for line, token, scope in [
    ("param U : [n, 2] ~ normal(0, 1 / 2), lr = n", "param", "storage.type"),
    ("depth L = 8", "depth", "storage.type"),
    ("depth = 8", "depth", "variable.other"),
    ("a = 1e-5  # step", "# step", "comment"),
    ("a = b[0..2]", "0", "constant.numeric"),
    ("a = b[0..2]", "..", "keyword.operator"),
    ("a = step(x)", "step", "support.function"),
    ("step sgd(loss, lr = 1)", "step", "keyword.control"),
    ("step sgd(loss, lr = 1)", "sgd", "support.function.optimiser"),
    ("y = blocks.step(x)", "blocks.step", "variable.other"),
    ("a = stepper + intent", "stepper", "variable.other"),
    ('import "a.tp" as b', "as", "keyword.control"),
    ('data X = csv("a # b")', '"a # b"', "string"),
    ("fn phi(z) = z", "phi", "entity.name.function"),
    ("h = rmsnorm(x)", "rmsnorm", "support.function.library"),
]:
    begin = line.index(token)
    got = set(scopes_of(line)[begin:begin + len(token)])
    expect(len(got) == 1 and str(min(got, key=str)).startswith(scope), f"'{token}' in '{line}': {got}, not {scope}")
expect(scopes_of("a = b ? c")[6] is None, "what is no token has a scope all the same")

print("\n".join(failures) or f"{len(programs)} programs")
sys.exit(1 if failures else 0)
