// Shows what a run has to say although it goes on: the texts that a node gives as "contextanyone_note" beside its
// outputs. ComfyUI sends them to the page that queued the prompt only. They are shown as messages of the page and not
// at a node, for another workflow may be open by now; they stay until they are closed or the next run starts.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const KEY = "contextanyone_note";
const shown = new Map();

function show(text) {
  if (shown.has(text)) return;
  const message = { severity: "warn", summary: "ContextAnyone", detail: text };
  shown.set(text, message);
  app.extensionManager.toast.add(message);
}

function forget() {
  for (const message of shown.values()) app.extensionManager.toast.remove(message);
  shown.clear();
}

app.registerExtension({
  name: "ContextAnyone.Notes",
  setup() {
    api.addEventListener("execution_start", forget);
    api.addEventListener("executed", ({ detail }) => (detail.output?.[KEY] ?? []).forEach(show));
  },
});
