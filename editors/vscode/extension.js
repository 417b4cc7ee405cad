// Starts `tplimit lsp` and shows the standard library, which is a part of it and no file.
const vscode = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

async function activate(context) {
  const command = vscode.workspace.getConfiguration("tplimit").get("command");
  client = new LanguageClient(
    "tplimit",
    "tplimit",
    { command, args: ["lsp"] },
    {
      documentSelector: [
        { scheme: "file", language: "tplimit" },
        { scheme: "untitled", language: "tplimit" },
      ],
      initializationOptions: { standardLibrary: true },
    },
  );
  context.subscriptions.push(
    vscode.workspace.registerTextDocumentContentProvider("tplimit-std", {
      provideTextDocumentContent: async () =>
        (await client.sendRequest("tplimit/standardLibrary")).text,
    }),
  );
  await client.start();
}

function deactivate() {
  return client && client.stop();
}

module.exports = { activate, deactivate };
