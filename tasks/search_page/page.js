"use strict";
// Texts reach the page as textContent alone: ids and captions are untrusted.
const $ = (id) => document.getElementById(id);
const state = { like: null, latest: 0, timer: 0 };

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function say(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is `paraclip ui` still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || response.statusText);
  return answer;
}

async function search() {
  const query = $("query").value.trim();
  const number = ++state.latest;
  remember();
  $("like").hidden = state.like === null;
  if (!query && state.like === null) {
    $("sides").replaceChildren();
    say("Type a query. Add a paraphrase in the second box to see how far both rankings agree.");
    return;
  }
  $("sides").classList.add("waiting");
  try {
    const answer = await ask("search", {
      query, paraphrased_query: $("paraphrased_query").value.trim(), like: state.like, alpha: Number($("alpha").value),
    });
    // A later request may have been answered first.
    if (number === state.latest) show(answer);
  } catch (error) {
    if (number === state.latest) say(error.message, true);
  }
  if (number === state.latest) $("sides").classList.remove("waiting");
}

function show(answer) {
  const names = Object.keys(answer);
  $("sides").replaceChildren(...names.map((name) => side(names.length === 1 ? "results" : name, answer[name])));
  say("");
}

function side(name, answer) {
  const heading = element("h2", {}, name);
  if (answer.ao !== undefined) {
    heading.append(element("span", {}, `AO@${answer.depth} `, element("b", { textContent: answer.ao.toFixed(0) }),
      ` JS@${answer.depth} `, element("b", { textContent: answer.js.toFixed(0) })));
  }
  const shared = new Set(answer.shared);
  const section = element("section", {}, heading);
  section.setAttribute("aria-label", name);
  const list = grid(answer.hits, shared, name);
  section.append(!answer.paraphrased_hits ? list : element("div", { className: "query-lists" },
    element("div", {}, element("h3", { textContent: $("query").value }), list),
    element("div", {}, element("h3", { textContent: $("paraphrased_query").value }), grid(answer.paraphrased_hits, shared, `${name}, paraphrased`))));
  return section;
}

function grid(hits, shared, name) {
  const list = element("ol", { className: "grid" }, ...hits.map((hit) => item(hit, shared.has(hit.row))));
  list.setAttribute("aria-label", `images, ${name}`);
  return list;
}

function item(hit, shared) {
  const open = element("button", { type: "button", className: "open", title: "images like this one" });
  open.setAttribute("aria-label", `images like ${hit.image_id}`);
  if (state.pictures) {
    const picture = element("img", { src: `images/${hit.row}`, alt: "", loading: "lazy" });
    picture.onerror = () => open.replaceChildren("picture not found");
    open.append(picture);
  } else {
    open.append("no picture");
  }
  open.onclick = () => like(hit.image_id);
  const made = element("li", { className: "hit" }, open, element("p", { textContent: hit.caption || hit.image_id }),
    element("div", { className: "score", textContent: hit.score.toFixed(2) }));
  made.classList.toggle("shared", shared);
  return made;
}

function like(id) {
  state.like = id;
  const back = element("button", { type: "button", textContent: "back to words" });
  back.onclick = () => { state.like = null; search(); $("query").focus(); };
  $("like").replaceChildren("Images like ", element("b", { textContent: id }), " ", back);
  search();
}

// The address holds the search, so that it can be shared.
const SHARED = { q: "query", q2: "paraphrased_query", alpha: "alpha" };

function remember() {
  const shared = Object.entries(SHARED).map(([name, id]) => [name, $(id).value.trim()]);
  const address = new URLSearchParams(shared.filter(([name, value]) => value && (name !== "alpha" || value !== "1")));
  history.replaceState(null, "", address.size ? `?${address}` : location.pathname);
}

function later() {
  clearTimeout(state.timer);
  state.timer = setTimeout(search, 200);
}

document.addEventListener("DOMContentLoaded", async () => {
  for (const [name, value] of new URLSearchParams(location.search)) if (SHARED[name]) $(SHARED[name]).value = value;
  $("alpha-value").value = $("alpha").value;
  $("form").onsubmit = (event) => { event.preventDefault(); search(); };
  $("query").oninput = () => { state.like = null; later(); };
  $("paraphrased_query").oninput = later;
  $("alpha").oninput = () => { $("alpha-value").value = $("alpha").value; later(); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement.tagName !== "INPUT") {
      event.preventDefault();
      $("query").focus();
    }
  });
  try {
    const facts = await ask("facts");
    state.pictures = facts.pictures;
    const heads = facts.heads ? ` · ${facts.heads.toLocaleString("en")} expanded queries` : "";
    $("facts").textContent = `${facts.images.toLocaleString("en")} images · ${facts.model}${heads}`;
    for (const part of document.querySelectorAll(".only-repaired")) part.hidden = !facts.repaired;
    $("verdict").hidden = !facts.verdict && !facts.report;
    $("verdict").append(facts.verdict || "", " ");
    if (facts.report) $("verdict").append(element("a", { href: "report", textContent: "Report" }));
  } catch (error) {
    say(error.message, true);
    return;
  }
  search();
});
