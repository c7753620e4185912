// The deliveries of the seed, and what happens to them.

import { addsUpTo } from '../../expect.js';
import { NOW, SEED } from '../../seed.js';

export const [WELCOME, RESTOCK, MARCH] = SEED.messages.map(({ id }) => id);

const HREFS = {
  [WELCOME]: 'https://example.com/start',
  [RESTOCK]: 'https://example.com/shop',
  [MARCH]: 'https://example.com/march',
};

export const report = ({ track }, delivery, metric, more = {}) =>
  track.reportMetric({ delivery_id: delivery, metric, timestamp: NOW, ...more });

const click = (clients, delivery, href) => report(clients, delivery, 'clicked', { href });

const TWO_DAYS = { period: 'days', steps: 2 };

/** A row that asks for what became of one delivery. */
export const metricsRow = (method, ids, delivery) => ({
  method,
  given: (clients) => report(clients, delivery, 'opened'),
  args: [...ids, TWO_DAYS],
  answers: {
    metric: { series: { sent: addsUpTo(1), delivered: addsUpTo(1), opened: addsUpTo(1), bounced: addsUpTo(0) } },
  },
});

const clickedOnce = (href) => ({ links: [{ link: { href }, metric: { series: { clicked: addsUpTo(1) } } }] });

/** A row that asks for the clicks of one delivery; two of one person are one when `unique`. */
export const linksRow = (method, ids, delivery, href = HREFS[delivery]) => ({
  method,
  given: async (clients) => {
    await click(clients, delivery, href);
    await click(clients, delivery, href);
  },
  args: [...ids, { ...TWO_DAYS, unique: true }],
  answers: clickedOnce(href),
});
