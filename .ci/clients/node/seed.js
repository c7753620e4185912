// The document that the rows of a seeded workspace go by.

import { readFileSync } from 'node:fs';

const PATH = process.env.SEED_DOCUMENT ?? new URL('../../conformance/seed.json', import.meta.url);

export const NOW = Math.floor(Date.now() / 1000);
export const HOUR_AGO = NOW - 3600;
export const YESTERDAY = NOW - 86400;
export const TOMORROW = NOW + 86400;

const filled = (key, value) => (value === '$hour_ago' ? HOUR_AGO : value);

export const SEED = JSON.parse(readFileSync(PATH, 'utf8'), filled);
