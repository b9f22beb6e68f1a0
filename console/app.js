// The page's wiring: reads the form, asks the API, draws the answer. Words and comparisons are in slate.js.

import { ApiError, health, recommend, sendEvents, vocabulary } from "./api.js";
import {
  RUNGS, ago, changed, compareSlates, describeChange, foldHistory, hue, inHistory, itemId, milliseconds, rungTitle,
  rungWords, sourceNames, stagesInOrder, whyUnmoved,
} from "./slate.js";

const DEMO_USERS = ["user-00001", "user-00042", "user-00100"];
const SEEDS = {
  product: { label: "Item on the page", hint: "The product that the visitor is looking at.", count: 1 },
  cart: { label: "Items in the cart", hint: "Ids with a comma between them.", count: 2 },
};
const REACTION_LIMIT_MS = 10_000;
const ASK_AGAIN_MS = 250;
const REFRESH_HEALTH_MS = 15_000;

const $ = (id) => document.getElementById(id);

/** What the page remembers between answers. `round` grows with every request or click: an older one gives up. */
const state = { answer: null, asked: null, round: 0, titles: new Map(), clicked: [], abort: null, eventTypes: [] };

// ---------------------------------------------------------------- the form

const visitorKind = () => document.querySelector("input[name=visitor]:checked").value;

const newSessionId = () =>
  "s-" + [...crypto.getRandomValues(new Uint8Array(6))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const seedIds = () => $("seeds").value.split(",").map((id) => id.trim()).filter(Boolean);

/** The request that the form describes. The limit travels as it was typed: the API is the judge of it. */
function readForm() {
  const surface = $("surface").value;
  const typed = $("limit").value;
  const body = { limit: typed === "" ? null : Number(typed), context: { device: $("device").value } };
  if ($("location").value.trim()) body.context.location = $("location").value.trim();
  if (visitorKind() === "user") body.user_id = $("user").value.trim();
  else body.session_id = $("session").value;
  if (surface in SEEDS && seedIds().length) body.item_ids = seedIds();
  return { surface, body };
}

function showVisitorFields() {
  const known = visitorKind() === "user";
  $("user-field").hidden = !known;
  $("session-field").hidden = known;
}

function showSeedField() {
  const seed = SEEDS[$("surface").value];
  $("seeds-field").hidden = !seed;
  if (!seed) return;
  $("seeds-label").textContent = seed.label;
  $("seeds-hint").textContent = seed.hint;
  if (!seedIds().length) $("seeds").value = likelySeeds(seed.count).join(", ");
}

/** The items clicked last, and the head of the last slate where there are too few. */
function likelySeeds(count) {
  const shown = (state.answer?.recommendations ?? []).map(itemId);
  return [...new Set([...state.clicked, ...shown])].slice(0, count);
}

function offer(listId, values) {
  $(listId).replaceChildren(...values.map((value) => make("option", { value })));
}

const knownUsers = () => JSON.parse(localStorage.getItem("users") ?? "[]");

function rememberUser(id) {
  const users = [id, ...knownUsers().filter((known) => known !== id)].slice(0, 12);
  localStorage.setItem("users", JSON.stringify(users));
  offer("known-users", [...new Set([...users, ...DEMO_USERS])]);
}

function fillSurfaces(names) {
  const wanted = $("surface").value || new URLSearchParams(location.search).get("surface");
  $("surface").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(wanted)) $("surface").value = wanted;
}

// ---------------------------------------------------------------- asking

async function ask() {
  const round = ++state.round;
  const asked = readForm();
  const comparable = sameVisitorAndPlace(asked) ? state.answer.recommendations : null;
  busy(true);
  try {
    const answer = await timedRecommend(asked);
    if (round !== state.round) return;
    show(asked, answer, comparable);
    announce(summary(answer, comparable));
    if (asked.body.user_id) rememberUser(asked.body.user_id);
  } catch (failure) {
    if (round === state.round) showError(failure);
  } finally {
    if (round === state.round) busy(false);
  }
}

const sameVisitorAndPlace = ({ surface, body }) =>
  state.asked?.surface === surface &&
  state.asked.body.user_id === body.user_id &&
  state.asked.body.session_id === body.session_id;

async function timedRecommend({ surface, body }) {
  state.abort?.abort();
  state.abort = new AbortController();
  const started = performance.now();
  const answer = await recommend(surface, body, state.abort.signal);
  const details = answer.trace?.items ?? {};
  const recommendations = answer.recommendations.map((item) => ({ ...details[itemId(item)], ...item }));
  return { ...answer, recommendations, round_trip_ms: performance.now() - started };
}

function summary(answer, before) {
  const count = answer.recommendations.length;
  const items = count === 1 ? "1 item" : `${count} items`;
  if (!before) return `${items}.`;
  const change = compareSlates(before, answer.recommendations);
  return changed(change) ? `${items}: ${describeChange(change)}.` : `${items}, the same as before.`;
}

// ---------------------------------------------------------------- a click, and what follows from it

async function click(item) {
  const round = ++state.round;
  const { asked, answer } = state;
  const started = performance.now();
  const sentAt = Date.now() / 1000;
  state.clicked = [itemId(item), ...state.clicked.filter((id) => id !== itemId(item))].slice(0, 5);
  announce(`Clicked ${nameOf(itemId(item))}. Waiting for the next slate to react…`);
  busy(true);
  try {
    const types = ["click", "view"].filter((type) => state.eventTypes.includes(type));
    refuseRejected(await sendEvents(types.map((type) => eventOf(type, item, asked, answer, sentAt))));
    await untilReaction(round, item, { asked, answer, started, sentAt });
  } catch (failure) {
    if (round === state.round) showError(failure);
  } finally {
    if (round === state.round) busy(false);
  }
}

const eventOf = (type, item, { surface, body }, answer, sentAt) => ({
  event_id: newSessionId() + newSessionId(),
  event_type: type,
  sent_at: new Date(sentAt * 1000).toISOString(),
  ...(body.user_id ? { user_id: body.user_id } : { session_id: body.session_id }),
  item_id: itemId(item),
  recommendation_id: answer.recommendation_id,
  position: item.position,
  surface,
});

async function untilReaction(round, item, { asked, answer: before, started, sentAt }) {
  let answer = before;
  while (performance.now() - started < REACTION_LIMIT_MS) {
    answer = await timedRecommend(asked);
    if (round !== state.round) return;
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    if (reacted(before, answer, itemId(item), sentAt)) {
      show(asked, answer, before.recommendations);
      announce(reaction(item, before, answer, seconds));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
    if (round !== state.round) return;
  }
  show(asked, answer, before.recommendations);
  announce(noReaction(nameOf(itemId(item)), answer));
}

function noReaction(name, { degraded }) {
  const accepted = `The click on ${name} was accepted, but after ${REACTION_LIMIT_MS / 1000} s `;
  return degraded?.visitor
    ? `${accepted}the visitor's state cannot be read (${degraded.visitor}).`
    : `${accepted}it is not in the visitor's history. See the logs of the function update_features.`;
}

/** The click is in the state that the answer was computed from; without a trace, any change must do. */
const reacted = (before, answer, id, since) =>
  answer.trace?.history
    ? inHistory(answer.trace.history, id, since)
    : changed(compareSlates(before.recommendations, answer.recommendations));

function reaction(item, before, answer, seconds) {
  const change = compareSlates(before.recommendations, answer.recommendations);
  const name = nameOf(itemId(item));
  return changed(change)
    ? `The slate reacted to ${name} after ${seconds} s: ${describeChange(change)}.`
    : `${name} is in the history after ${seconds} s; the slate stayed as it was${whyUnmoved(answer.fallback)}.`;
}

// ---------------------------------------------------------------- drawing

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const nameOf = (id) => state.titles.get(id) ?? id;

function show(asked, answer, before) {
  Object.assign(state, { asked, answer });
  for (const [id, { title }] of Object.entries(answer.trace?.items ?? {})) if (title) state.titles.set(id, title);
  $("error").hidden = true;
  clearInvalid();
  showSlate(answer, before);
  showRung(answer);
  showStages(answer);
  showHistory(answer.trace?.history ?? []);
  showIds(answer);
  offer("known-items", answer.recommendations.map(itemId));
  const place = new URLSearchParams({ surface: asked.surface, ...(asked.body.user_id && { user: asked.body.user_id }) });
  history.replaceState(null, "", "?" + place);
}

function showSlate(answer, before) {
  const change = before && compareSlates(before, answer.recommendations);
  const focused = document.activeElement?.closest?.("[data-item-id]")?.dataset.itemId;
  $("cards").replaceChildren(...answer.recommendations.map((item) => card(item, change, answer.trace)));
  if (focused) $("cards").querySelector(`[data-item-id="${CSS.escape(focused)}"] button`)?.focus();
  $("gone").hidden = !change?.gone.length;
  $("gone").replaceChildren("Gone: ", ...(change?.gone ?? []).flatMap((id) => [make("s", {}, nameOf(id)), " "]));
}

function card(item, change, trace) {
  const id = itemId(item);
  const mark = changeMark(id, change);
  const button = make(
    "button",
    { type: "button" },
    make("span", { class: "position" }, String(item.position)),
    mark,
    make("span", { class: "title" }, item.title ?? id),
    line("about", [category(item), item.brand, price(item)]),
    make("span", { class: "reason" }, item.reason ?? ""),
    line("made", [item.title && make("span", { class: "mono" }, id), score(item), sourcesOf(id, trace)]),
  );
  button.addEventListener("click", () => click(item));
  const entry = make("li", { class: "card", "data-item-id": id }, button);
  if (change?.added.includes(id)) entry.classList.add("added");
  return entry;
}

function line(name, parts) {
  const shown = parts.filter(Boolean).map((part) => (part instanceof Node ? part : make("span", {}, String(part))));
  return make("span", { class: name }, ...shown);
}

const score = (item) => (typeof item.score === "number" ? `score ${item.score.toFixed(3)}` : null);

function changeMark(id, change) {
  const mark = make("span", { class: "change" });
  const steps = change?.moved.get(id);
  if (change?.added.includes(id)) mark.append(make("b", {}, "new"));
  else if (steps) mark.append(
    make("span", { "aria-hidden": "true" }, steps > 0 ? `▲ ${steps}` : `▼ ${-steps}`),
    make("span", { class: "unseen" }, steps > 0 ? `up ${steps} places` : `down ${-steps} places`),
  );
  return mark;
}

function category(item) {
  if (!item.category) return null;
  const dot = make("span", { class: "dot", "aria-hidden": "true" });
  dot.style.setProperty("--hue", hue(item.category));
  return make("span", { class: "category" }, dot, item.category);
}

const price = (item) =>
  typeof item.price === "number" ? make("span", { class: "price" }, item.price.toFixed(2)) : null;

function sourcesOf(id, trace) {
  const names = sourceNames(trace?.sources?.[id]);
  return names.length ? make("span", { class: "sources" }, "from " + names.join(", ")) : null;
}

function showRung({ fallback, degraded, trace, round_trip_ms }) {
  const rung = fallback ?? trace?.rung;
  $("answered").textContent = `${rungTitle(rung)}, ${milliseconds(round_trip_ms)}`;
  $("ladder").replaceChildren(...RUNGS.map(([name, title]) =>
    make("li", name === rung ? { class: "here", "aria-current": "true" } : {}, title)));
  $("rung-words").textContent = rungWords(rung);
  $("rung-words").dataset.rung = rung;
  const failures = Object.entries(degraded ?? {});
  $("answered").classList.toggle("degraded", failures.length > 0);
  $("degraded").hidden = failures.length === 0;
  facts("degraded-list", failures);
}

function showStages({ trace, round_trip_ms }) {
  const stages = [...stagesInOrder(trace?.stages_ms ?? {}), { name: "round trip", ms: round_trip_ms }];
  const longest = Math.max(...stages.map(({ ms }) => ms));
  $("stages").replaceChildren(...stages.flatMap(({ name, within, ms }) => {
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", ms / longest);
    const part = within ? { class: "part" } : {};
    return [make("dt", part, name.replaceAll("_", " ")), make("dd", part, bar, make("span", {}, milliseconds(ms)))];
  }));
}

function showHistory(events) {
  const now = Date.now() / 1000;
  const latest = foldHistory(events).slice(0, 30);
  $("history-empty").hidden = latest.length > 0;
  $("history").replaceChildren(...latest.map((event) => make("li", {},
    make("span", { class: "what" }, nameOf(event.item_id)),
    make("span", { class: "event" }, event.what),
    make("time", { datetime: new Date(event.time * 1000).toISOString() }, ago(now - event.time)))));
}

function showIds({ recommendation_id, model_version, policy_version, experiment_id }) {
  facts("ids", [
    ["recommendation", recommendation_id],
    ["model", model_version],
    ["policy", policy_version],
    ["experiment", experiment_id],
  ].map(([name, value]) => [name, value ?? "none"]));
}

function facts(id, pairs) {
  $(id).replaceChildren(...pairs.flatMap(([name, value]) =>
    [make("dt", {}, name), make("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]));
}

// ---------------------------------------------------------------- telling

const announce = (text) => ($("change").textContent = text);

function busy(yes) {
  $("cards").setAttribute("aria-busy", String(yes));
  document.body.classList.toggle("waiting", yes);
}

const INPUT_OF = {
  user_id: "user",
  session_id: "session",
  item_ids: "seeds",
  limit: "limit",
  surface: "surface",
  "context.location": "location",
  "context.device": "device",
};

function showError(failure) {
  if (failure.name === "AbortError") return;
  const known = failure instanceof ApiError;
  const said = known ? failure : { message: `The page failed: ${failure.message}`, remedy: "Reload the page." };
  $("error-title").textContent = said.field ? `The API refused ${said.field}.` : said.message;
  facts("error-facts", Object.entries({ field: said.field, value: said.value, remedy: said.remedy })
    .filter(([, value]) => value !== undefined && value !== null));
  $("error").hidden = false;
  $("gone").hidden = true;
  announce(state.answer ? "The slate below is the answer to the request before this one." : "");
  clearInvalid();
  $(INPUT_OF[said.field] ?? "none")?.setAttribute("aria-invalid", "true");
  if (!known) throw failure;
}

const clearInvalid = () =>
  document.querySelectorAll("[aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));

function refuseRejected({ verdicts }) {
  const refused = verdicts.find((verdict) => verdict.status === "rejected");
  if (refused) throw new ApiError(200, { message: "The event was refused.", ...refused });
}

async function showHealth() {
  try {
    const answer = await health();
    const problems = Object.entries(answer.problems ?? {}).map(([part, reason]) => `${part}: ${reason}`);
    $("health").dataset.state = problems.length ? "degraded" : "up";
    $("health-text").textContent = [`model ${answer.model_version ?? "none yet"}`, ...problems].join("; ");
    $("app-name").textContent = answer.app;
  } catch (failure) {
    $("health").dataset.state = "down";
    $("health-text").textContent = failure.message;
  }
}

// ---------------------------------------------------------------- the start

async function start() {
  const place = new URLSearchParams(location.search);
  if (!sessionStorage.getItem("session")) sessionStorage.setItem("session", newSessionId());
  $("session").value = sessionStorage.getItem("session");
  if (place.get("user")) {
    document.querySelector("input[value=user]").checked = true;
    $("user").value = place.get("user");
  }
  const [, { surfaces, eventTypes }] = await Promise.all([showHealth(), vocabulary()]);
  state.eventTypes = eventTypes;
  fillSurfaces(surfaces);
  offer("known-users", [...new Set([...knownUsers(), ...DEMO_USERS])]);
  showVisitorFields();
  showSeedField();
  listen();
  await ask();
  setInterval(showHealth, REFRESH_HEALTH_MS);
}

function listen() {
  $("request").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("device").addEventListener("change", ask);
  $("surface").addEventListener("change", () => {
    $("seeds").value = "";
    showSeedField();
    ask();
  });
  document.querySelectorAll("input[name=visitor]").forEach((radio) =>
    radio.addEventListener("change", () => {
      showVisitorFields();
      if (visitorKind() === "anonymous" || $("user").value.trim()) ask();
      else $("user").focus();
    }));
  $("new-session").addEventListener("click", () => {
    $("session").value = newSessionId();
    sessionStorage.setItem("session", $("session").value);
    ask();
  });
}

start().catch(showError);
