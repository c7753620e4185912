// A campaign that the newest client starts: the clock moves, the mail is read, its report arrives.

import assert from 'node:assert/strict';
import test from 'node:test';

import sdk from 'node-5.2.0';

import { FAKE_URL, records, reset, seed } from './fake.js';
import { listen } from './listen.js';

const DAY = 86_400;
const CAMPAIGN = {
  id: 1,
  name: 'Follow-up',
  event_name: 'order_placed',
  filter: { attribute: { field: 'email', operator: 'exists' } },
  actions: [
    { id: 10, type: 'delay_seconds', delay: DAY },
    { id: 11, type: 'email', subject: 'Order {{event.id}}', body: '<p>{{customer.email}}</p>' },
  ],
};

const clock = (body) =>
  fetch(new URL('/__parlel/clock', FAKE_URL), { method: 'PUT', body: JSON.stringify(body) });

test('an event starts a campaign, whose mail comes a day later with its report', async (t) => {
  t.after(async () => {
    await seed({});
    await reset();
  });
  await seed({ campaigns: [CAMPAIGN] });
  const { received, server, url } = await listen();
  t.after(() => server.close());
  const api = new sdk.APIClient('app-key', { url: new URL('/v1', FAKE_URL).href });
  const track = new sdk.TrackClient('site', 'key', { url: new URL('/api/v1', FAKE_URL).href });
  await api.createReportingWebhook({ name: 'w', endpoint: url, events: ['email_delivered'] });
  await clock({ freeze: true });
  await track.identify('7', { email: 'ada@example.com' });
  await track.track('7', { name: 'order_placed', data: { id: 'A1' } });

  const [waiting] = await records('journeys');
  assert.equal(waiting.waiting_for, 'delay_seconds');
  assert.deepEqual(await records('deliveries'), []);
  await clock({ advance: DAY });

  const [delivery] = await records('deliveries');
  assert.equal(delivery.rendered.subject, 'Order A1');
  const [journey] = await records('journeys', { state: 'finished' });
  assert.equal(journey.id, waiting.id);
  await fetch(new URL('/__parlel/webhooks/flush', FAKE_URL), { method: 'POST' });
  assert.equal(received.length, 1);
  const { metric, data } = JSON.parse(received[0].body);
  assert.deepEqual(
    [metric, data.journey_id, data.campaign_id, data.action_id, data.trigger_event_id],
    ['delivered', journey.id, 1, 11, journey.trigger_event_id],
  );
});
