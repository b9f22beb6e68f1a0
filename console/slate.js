// What a slate means in words: no page in here, so every function can be checked by its answer alone.

export const RUNGS = [
  ["full", "Full", "Candidates from every source, ranked by the trained model with what is known of the visitor."],
  ["remembered", "Remembered", "Retrieval could not answer in time: candidates of an earlier visit, ranked anew."],
  ["in_process", "In process", "No trained ranker is loaded: candidates in the order on which their sources agree."],
  ["last_slate", "Last slate", "No fresh candidates: the slate this visitor saw last, passed through today's rules."],
  ["segment", "Segment", "The visitor could not be read: the nightly list of the visitor's segment."],
  ["static", "Static", "Nothing else answered: the popular list that is shipped with the code."],
  ["none_eligible", "None eligible", "The rules leave nothing to show, so the slate is empty."],
];

export const rungTitle = (name) => RUNGS.find(([rung]) => rung === name)?.[1] ?? String(name);

export const rungWords = (name) =>
  RUNGS.find(([rung]) => rung === name)?.[2] ?? `The API names a rung this page does not know: ${name}.`;

const LISTS = ["last_slate", "segment", "static", "none_eligible"];

/** Why a click may leave the slate as it was: nothing to say where the rung looks at the history. */
export const whyUnmoved = (rung) => (LISTS.includes(rung) ? ", because this rung does not look at the history" : "");

export const itemId = (item) => item.item_id ?? item.product_id;

/** How the second slate differs from the first: ids in slate order, and where each moved from. */
export function compareSlates(before, after) {
  const was = new Map(before.map((item, index) => [itemId(item), index + 1]));
  const is = new Map(after.map((item, index) => [itemId(item), index + 1]));
  const kept = [...is].filter(([id]) => was.has(id));
  return {
    added: [...is.keys()].filter((id) => !was.has(id)),
    moved: new Map(kept.filter(([id, at]) => was.get(id) !== at).map(([id, at]) => [id, was.get(id) - at])),
    gone: [...was.keys()].filter((id) => !is.has(id)),
    same: kept.filter(([id, at]) => was.get(id) === at).length,
  };
}

export const changed = ({ added, moved, gone }) => added.length + moved.size + gone.length > 0;

export function describeChange({ added, moved, gone, same }) {
  const parts = [
    [added.length, "new"],
    [moved.size, "moved"],
    [gone.length, "gone"],
    [same, "in place"],
  ];
  return parts.filter(([count]) => count > 0).map(([count, word]) => `${count} ${word}`).join(", ");
}

/** Whether an event of this item, sent at or after `since` (epoch seconds), is in the visitor's history. */
export const inHistory = (history, id, since) =>
  history.some((event) => event.item_id === id && event.time >= since - 1);

/** The stages as a list, each followed by its parts ("retrieve.als" is a part of "retrieve"). */
export function stagesInOrder(stages) {
  const entries = Object.entries(stages).map(([path, ms]) => {
    const [whole, part] = path.split(".");
    return part ? { name: part, within: whole, ms } : { name: whole, within: null, ms };
  });
  const wholes = entries.filter((entry) => entry.within === null);
  return wholes.flatMap((stage) => [stage, ...entries.filter((entry) => entry.within === stage.name)]);
}

/** The sources that offered an item, the one that placed it highest first. */
export function sourceNames({ source, ranks = {} } = {}) {
  const others = Object.entries(ranks).sort(([, a], [, b]) => a - b).map(([name]) => name);
  return [...new Set([source, ...others].filter(Boolean))];
}

/** The events newest first; those of one item within two seconds are one entry, with their types or their number. */
export function foldHistory(events) {
  const folded = [];
  for (const { item_id, event_type, time } of [...events].sort((a, b) => b.time - a.time)) {
    const last = folded.at(-1);
    if (last?.item_id === item_id && last.time - time < 2) last.types.push(event_type);
    else folded.push({ item_id, time, types: [event_type] });
  }
  return folded.map(({ types, ...entry }) => {
    const named = [...new Set(types.filter(Boolean))].reverse();
    const what = named.length ? named.join(", ") : types.length > 1 ? `${types.length} events` : "";
    return { ...entry, what };
  });
}

export function ago(seconds) {
  if (seconds < 1) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

export const milliseconds = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1)) + " ms";

/** A hue from 0 to 359 that is always the same for the same text. */
export const hue = (text) => [...String(text)].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
