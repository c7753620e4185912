import assert from 'node:assert/strict';

/** Asserts that `actual` holds at least the entries of `expected`, at every depth. */
export function assertHas(actual, expected) {
  assert.deepEqual(overlap(actual, expected), expected);
}

function overlap(actual, expected) {
  if (!isRecord(actual) || !isRecord(expected)) {
    return actual;
  }
  const shared = Object.keys(expected).filter((key) => key in actual);
  return Object.fromEntries(shared.map((key) => [key, overlap(actual[key], expected[key])]));
}

const isRecord = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** What a value looks like once it has been through JSON. */
export const asJson = (value) => JSON.parse(JSON.stringify(value));

/** Repeats a read until it satisfies `accept`, for answers that change by themselves. */
export async function eventually(read, accept, { attempts = 50, pauseMs = 40 } = {}) {
  for (let attempt = 1; attempt < attempts; attempt += 1) {
    const value = await read();
    if (accept(value)) {
      return value;
    }
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
  return read();
}
