import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';

/**
 * Asserts that `actual` holds at least the entries of `expected`, at every depth.
 * Lists have to be as long; a function says what a value has to be like.
 */
export function assertHas(actual, expected) {
  assert.deepEqual(overlap(actual, expected), expected);
}

function overlap(actual, expected) {
  if (typeof expected === 'function') {
    return expected(actual) ? expected : actual;
  }
  if (Array.isArray(actual) && Array.isArray(expected)) {
    return actual.map((item, index) => overlap(item, expected[index]));
  }
  if (!isRecord(actual) || !isRecord(expected)) {
    return actual;
  }
  const shared = Object.keys(expected).filter((key) => key in actual);
  return Object.fromEntries(shared.map((key) => [key, overlap(actual[key], expected[key])]));
}

const isRecord = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** What values can be like where their exact value is up to the server. */
export const isText = (value) => typeof value === 'string' && value !== '';
export const isId = (value) => Number.isInteger(value) && value > 0;
export const isTime = (value) => Number.isInteger(value) && value > 1e9 && value < 1e10;
export const isUrl = (value) => URL.canParse(value);
export const isUuid = (value) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value);
export const isNothing = (value) => isRecord(value) && Object.keys(value).length === 0;
export const isFilled = (value) => Array.isArray(value) && value.length > 0;
export const lacks = (key) => (value) => isRecord(value) && !(key in value);
export const includes = (item) => (value) => value.includes(item);
export const anyOrder = (items) => (value) => isDeepStrictEqual([...value].sort(), [...items].sort());

/** A list that has an item that holds `expected`. */
export const withItem = (expected) => (value) =>
  Array.isArray(value) && value.some((item) => isDeepStrictEqual(overlap(item, expected), expected));

/** A series of numbers that come to `total`. */
export const addsUpTo = (total) => (value) => isFilled(value) && value.reduce((sum, each) => sum + each, 0) === total;

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
