/** Begins Swagger UI on this service's own document, in the browser's colours. Nothing is asked of other machines.
 *
 * Its files are unchanged, so what they lack for keyboards and screen readers is added to what they have drawn.
 */

SwaggerUIBundle({ url: "openapi.json", dom_id: "#interface", deepLinking: true, validatorUrl: null });

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

const root = document.getElementById("interface");
const each = (selector, change) => root.querySelectorAll(selector).forEach(change);
const name = (element, text) => {
  if (!element.hasAttribute("aria-label")) element.setAttribute("aria-label", text);
};

/** "POST /predict" of the operation around an element. */
function operation(element) {
  const block = element.closest(".opblock");
  const parts = [".opblock-summary-method", ".opblock-summary-path"];
  return parts.map((part) => block?.querySelector(part)?.textContent.replaceAll("\u200b", "") ?? "").join(" ").trim();
}

/** What a field is for: its parameter's name, or the kind of text that a list chooses. */
function purpose(field) {
  const row = field.closest("tr[data-param-name]");
  if (row) return row.dataset.paramName;
  if (field.id === "servers") return "Server";
  return field.tagName === "SELECT" ? "Media type" : "Request body";
}

function amend() {
  each(".opblock-summary-control a[href]", (link) => link.removeAttribute("href")); // a link within a button; the button acts
  each("pre:not([tabindex]), .highlight-code > *:not([tabindex])", (text) => { text.tabIndex = 0; });
  each("select, textarea, input:not([type=hidden])", (field) => {
    if (!field.labels?.length || field.id === "servers") name(field, purpose(field));
  });
  each(".responses-table[role=region]", (table) => name(table, `Responses of ${operation(table)}`));
  each("h3.opblock-tag, section.models > h4", (heading) => heading.setAttribute("aria-level", "2"));
  each("h4.opblock-title", (heading) => heading.setAttribute("aria-level", "3"));
  each(".information-container, .schemes-server-container", (part) => {
    part.setAttribute("role", "region");
    name(part, part.matches(".information-container") ? "About this service" : "Server");
  });
}

new MutationObserver(amend).observe(root, { childList: true, subtree: true });
