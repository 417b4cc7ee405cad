"""How long the language server takes to answer, over every .tp of the repository.

Run: editor_times.py TPLIMIT [--tries 3] [--above MS]
Prints the worst answer of each kind as a table of Markdown; --above MS also every program that takes longer.
A time is from sending to the whole answer, the least of all tries: the machine may be shared.
"""
import argparse
import collections
import pathlib
import sys
import time

root = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / "tests/editors"))
from client import Client  # noqa: E402

ALL = "all diagnostics"
KINDS = ["first diagnostics after opening", "first diagnostics after a character", "hover while it is checked", "hover", "definition",
         "references", "rename", "completion", "symbols", "semantic tokens", "formatting", ALL]


def timed(times, kind, what):
    begin = time.perf_counter()
    answer = what()
    times[kind] = max(times[kind], time.perf_counter() - begin)  # the slowest place of this text
    return answer


def measure(client, uri, text):
    """Seconds of each kind of request, once."""
    times = collections.defaultdict(float)
    of = {"textDocument": {"uri": uri}}

    def change(to):
        client.notify("textDocument/didChange", {"textDocument": {"uri": uri, "version": 2}, "contentChanges": [{"text": to}]})

    def diagnostics_after(kind, act):
        begin = time.perf_counter()
        act()
        found = timed(times, kind, lambda: client.first_diagnostics(uri))
        if any(d["message"] == "still being checked" for d in found):
            client.diagnostics(uri)
        times[ALL] = max(times[ALL], time.perf_counter() - begin)

    diagnostics_after(KINDS[0], lambda: client.open(uri, text))
    diagnostics_after(KINDS[1], lambda: change(text + "#"))
    diagnostics_after(KINDS[1], lambda: change(text + "\n("))
    change(text)
    symbols = timed(times, "symbols", lambda: client.request("textDocument/documentSymbol", of))
    values = [s for s in symbols if s["detail"] not in ("function", "model")]
    if values:
        place = {**of, "position": values[-1]["selectionRange"]["start"]}
        timed(times, KINDS[2], lambda: client.call("textDocument/hover", place))
    client.diagnostics(uri)
    timed(times, "semantic tokens", lambda: client.request("textDocument/semanticTokens/full", of))
    timed(times, "formatting", lambda: client.call("textDocument/formatting", {**of, "options": {}}))
    for symbol in symbols + [child for s in symbols for child in s.get("children", [])]:
        at = symbol["selectionRange"]["start"]
        place = {**of, "position": at}
        for kind in ("hover", "definition", "completion"):
            timed(times, kind, lambda: client.call("textDocument/" + kind, place))
        timed(times, "references", lambda: client.call("textDocument/references", {**place, "context": {"includeDeclaration": True}}))
        timed(times, "rename", lambda: client.call("textDocument/rename", {**place, "newName": "quite_new"}))
    client.notify("textDocument/didClose", of)
    client.first_diagnostics(uri)
    return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tplimit")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--above", type=float, metavar="MS")
    options = parser.parse_args()
    programs = sorted(p for folder in ("bench", "lib", "programs", "python", "tests") for p in (root / folder).rglob("*.tp"))
    assert len(programs) > 300, "the programs are not where they were"
    client = Client(options.tplimit)
    best = {}
    for program in programs:
        text = program.read_bytes().decode(errors="replace")
        tries = [measure(client, program.as_uri(), text) for _ in range(options.tries)]
        best[program] = {kind: min(times[kind] for times in tries) * 1e3 for kind in KINDS}
        if options.above is not None and max(best[program].values()) > options.above:
            slow = ", ".join(f"{kind} {ms:.1f}" for kind, ms in best[program].items() if ms > options.above)
            print(f"{program.relative_to(root)}: {slow}", flush=True)
    assert client.leave() == 0
    print(f"{len(programs)} programs, least of {options.tries} tries\n")
    print("| request | median | worst | of |\n|---|---|---|---|")
    for kind in KINDS:
        order = sorted(programs, key=lambda p: best[p][kind])
        median, worst = order[len(order) // 2], order[-1]
        print(f"| {kind} | {best[median][kind]:.1f} ms | {best[worst][kind]:.1f} ms | `{worst.relative_to(root)}` |")


main()
