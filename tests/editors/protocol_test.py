"""The language server as a process: programs of the gallery, what is no message, how it ends.

Run: protocol_test.py TPLIMIT ROOT [--times]; --times prints how long each program takes, and tests bench too.
"""
import pathlib
import sys
import time

from client import Client

tplimit, root, *options = sys.argv[1:]
root = pathlib.Path(root)
folders = ["programs", "bench"] if options else ["programs"]
programs = sorted(p for folder in folders for p in (root / folder).rglob("*.tp"))
assert len(programs) > 20, "the programs are not where they were"


def timed(what):
    begin = time.monotonic()
    return what(), time.monotonic() - begin


# Every program is right, has symbols, and each of its lines can be asked about.
client = Client(tplimit)
for program in programs:
    uri, text = program.resolve().as_uri(), program.read_text()
    client.open(uri, text)
    found, opened = timed(lambda: client.diagnostics(uri))
    errors = [d for d in found if d["severity"] == 1]
    if not options:  # what bench needs may be lacking
        assert not errors, (program, errors)
    symbols = client.request("textDocument/documentSymbol", {"textDocument": {"uri": uri}})
    assert any(s["detail"] == "width" for s in symbols) or "import" in text, program
    _, hovered = timed(lambda: [client.at("hover", uri, s["selectionRange"]["start"]["line"],
                                          s["selectionRange"]["start"]["character"]) for s in symbols])
    _, completed = timed(lambda: client.at("completion", uri, text.count("\n"), 0))
    if options:
        print(f"{opened * 1e3:7.1f} ms open {hovered * 1e3:7.1f} ms {len(symbols)} hovers {completed * 1e3:6.1f} ms completion"
              f"  {program.relative_to(root)} {[d['code'] for d in found]}")
    for line, code in enumerate(text.splitlines()):
        if not options and code:
            client.at("hover", uri, line, len(code) - len(code.lstrip()))
    client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})

# Typing: an error comes and goes.
uri = "untitled:typing"
client.open(uri, "width n\nreport q\n")
assert [d["code"] for d in client.diagnostics(uri)] == ["E2103"]
client.notify("textDocument/didChange", {"textDocument": {"uri": uri, "version": 2}, "contentChanges": [{"text": "width n\nreport 1\n"}]})
assert client.diagnostics(uri) == []

# What is no message.
client.send_bytes(b"{ no JSON")
assert client.read()["error"]["code"] == -32700
assert client.call("textDocument/flight", {})["error"]["code"] == -32601
assert client.leave() == 0

# Without a shutdown, and hung up.
client = Client(tplimit)
client.notify("exit", None)
assert client.process.wait(timeout=30) == 1
client = Client(tplimit)
client.process.stdin.close()
assert client.process.wait(timeout=30) == 1
print(f"{len(programs)} programs")
