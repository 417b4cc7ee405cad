"""A client of `tplimit lsp` for tests: standard library only."""
import json
import subprocess


class Client:
    def __init__(self, program):
        self.process = subprocess.Popen([program, "lsp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.last = 0
        self.notices = []
        self.request("initialize", {"capabilities": {}, "initializationOptions": {"standardLibrary": True}})
        self.notify("initialized", {})

    def send_bytes(self, body):
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def read(self):
        length = None
        while (line := self.process.stdout.readline().strip()):
            name, value = line.split(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length is None:
            raise EOFError("the server has hung up")
        return json.loads(self.process.stdout.read(length))

    def notify(self, method, params):
        self.send_bytes(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def call(self, method, params):
        """The whole answer."""
        self.last += 1
        self.send_bytes(json.dumps({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params}).encode())
        while (message := self.read()).get("id") != self.last:
            self.notices.append(message)
        return message

    def request(self, method, params):
        answer = self.call(method, params)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, uri, text):
        self.notify("textDocument/didOpen", {"textDocument": {"uri": uri, "languageId": "tplimit", "version": 1, "text": text}})

    def first_diagnostics(self, uri):
        """The next ones of this file."""
        while True:
            for k, message in enumerate(self.notices):
                if message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == uri:
                    del self.notices[k]
                    return message["params"]["diagnostics"]
            self.notices.append(self.read())

    def diagnostics(self, uri):
        """The next ones of this file once it has been checked."""
        found = self.first_diagnostics(uri)
        while any(d["message"] == "still being checked" for d in found):
            found = self.first_diagnostics(uri)
        return found

    def at(self, method, uri, line, character, **more):
        place = {"textDocument": {"uri": uri}, "position": {"line": line, "character": character}}
        return self.request("textDocument/" + method, {**place, **more})

    def leave(self):
        """Shuts the server down; its exit code."""
        self.request("shutdown", None)
        self.notify("exit", None)
        return self.process.wait(timeout=30)
