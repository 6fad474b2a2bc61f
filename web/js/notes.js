// Shows what a run has to say although it goes on: the texts that a node gives beside its outputs, warnings as
// "contextanyone_note" and others as "contextanyone_said". ComfyUI sends them to the page that queued the prompt only. They are shown as messages of the page and not
// at a node, for another workflow may be open by now; they stay until they are closed or the next run starts.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const KEYS = { contextanyone_note: ["warning", "warn"], contextanyone_said: ["info", "info"] };
const shown = new Map();

// The page's messages; newer pages (seen in 1.58) have dismiss in the place of remove. Gives what closes the message.
function open(text, [method, severity]) {
  const { toast } = app.extensionManager;
  if (toast.dismiss) {
    const id = toast[method]("ContextAnyone", { description: text });
    return () => toast.dismiss(id);
  }
  const message = { severity, summary: "ContextAnyone", detail: text };
  toast.add(message);
  return () => toast.remove(message);
}

function show(text, kind) {
  if (!shown.has(text)) shown.set(text, open(text, kind));
}

function forget() {
  for (const close of shown.values()) close();
  shown.clear();
}

app.registerExtension({
  name: "ContextAnyone.Notes",
  setup() {
    api.addEventListener("execution_start", forget);
    api.addEventListener("executed", ({ detail }) => {
      for (const [key, kind] of Object.entries(KEYS)) (detail.output?.[key] ?? []).forEach((text) => show(text, kind));
    });
  },
});
