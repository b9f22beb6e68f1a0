// The calls of the page. Every failure becomes an ApiError that says what to do about it.

export class ApiError extends Error {
  constructor(status, { message, field, value, remedy }) {
    super(message);
    Object.assign(this, { status, field, value, remedy });
  }
}

export const health = () => call("GET", "/api/health");

/** The surfaces and event types that this app has, from the API's own description. */
export async function vocabulary() {
  const { paths } = await call("GET", "/openapi.json");
  const surfaces = paths["/api/recommendations/{surface}"].post.parameters[0].schema.enum;
  const event = paths["/api/events"].post.requestBody.content["application/json"].schema.properties.events.items;
  return { surfaces, eventTypes: event.properties.event_type.enum };
}

export const recommend = (surface, body, signal) =>
  call("POST", `/api/recommendations/${encodeURIComponent(surface)}`, { ...body, explain: true }, signal);

export const sendEvents = (events) => call("POST", "/api/events", { events });

async function call(method, path, body, signal) {
  const response = await reach(path, {
    method,
    signal,
    headers: body ? { "content-type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
  });
  const answer = await readJson(response);
  if (!response.ok) throw new ApiError(response.status, problem(answer, response.status));
  return answer;
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new ApiError(0, {
      message: "The API cannot be reached.",
      remedy: "Check that the local cloud is running (narrows up), then ask again.",
    });
  }
}

async function readJson(response) {
  const text = await response.text();
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(response.status, {
      message: `The answer is not JSON: ${text.slice(0, 120) || "it is empty"}`,
      remedy: "Look at the log of the function that answered.",
    });
  }
}

function problem(answer, status) {
  const said = answer?.error ?? answer ?? {}; // API Gateway's own errors have only a message
  return {
    message: said.message ?? `The API answered ${status}.`,
    field: said.field ?? undefined,
    value: said.value ?? undefined,
    remedy: said.remedy ?? undefined,
  };
}
