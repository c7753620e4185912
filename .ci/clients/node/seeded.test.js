// Every row of a seeded workspace, with the newest version of customerio-node.

import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';

import { assertHas, eventually, isNothing } from './expect.js';
import { seed } from './fake.js';
import { serveFiles } from './files.js';
import { SEEDED_ROWS } from './rows/seeded/index.js';
import { SDKS, connect } from './sdks.js';
import { SEED } from './seed.js';

const given = (value, ...sources) => (typeof value === 'function' ? value(...sources) : value);

function holds(actual, expected) {
  try {
    assertHas(actual, expected);
    return true;
  } catch (error) {
    if (error instanceof assert.AssertionError) {
      return false;
    }
    throw error;
  }
}

/** What a call answers, or `undefined` if it is refused. */
async function read({ app, sdk }, method, args) {
  try {
    return await app[method](...args);
  } catch (error) {
    if (error instanceof sdk.CustomerIORequestError) {
      return undefined;
    }
    throw error;
  }
}

async function checkEffect(clients, { leaves: [method, args, expected], later }, ...sources) {
  const look = () => read(clients, method, given(args, ...sources));
  const seen = later ? await eventually(look, (value) => holds(value, expected)) : await look();
  assertHas(seen, expected);
}

async function checkUnmet(clients, { leaves: [method, args, expected] }) {
  if (Array.isArray(args)) {
    assert.ok(!holds(await read(clients, method, args), expected), 'the effect is there before the call');
  }
}

async function checkGone({ app, sdk }, { gone: [method, args] }, ...sources) {
  const isRefusal = (error) => error instanceof sdk.CustomerIORequestError && [400, 404].includes(error.statusCode);
  await assert.rejects(async () => app[method](...given(args, ...sources)), isRefusal);
}

async function drive(row, clients) {
  const { client, method, args, answers = isNothing } = row;
  const prepared = await row.given?.(clients);
  const values = given(args, prepared, clients);
  if (row.leaves) {
    await checkUnmet(clients, row);
  }
  const answer = await clients[client][method](...values);
  assertHas(answer, answers);
  if (row.leaves) {
    await checkEffect(clients, row, answer, prepared);
  }
  if (row.gone) {
    await checkGone(clients, row, answer, prepared);
  }
  await row.effect?.(answer);
}

const titleOf = ({ client, method, title, leaves, gone }) => {
  const usual = leaves ? `leaves what ${leaves[0]} shows` : gone ? 'removes it' : 'tells what is there';
  return `${client}.${method} ${title ?? usual}`;
};

describe('a seeded workspace', () => {
  const clients = connect(SDKS.at(-1));
  let files;

  before(async () => {
    files = await serveFiles();
    clients.fileUrl = files.fileUrl;
  });

  after(async () => {
    files.close();
    await seed({});
  });

  beforeEach(() => seed(SEED));

  for (const row of SEEDED_ROWS) {
    test(titleOf(row), () => drive(row, clients));
  }
});
