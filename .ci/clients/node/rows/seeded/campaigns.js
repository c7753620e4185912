// Campaigns and API-triggered broadcasts, which have most calls in common.

import { addsUpTo, includes, isFilled, isId, isText, isTime, withItem } from '../../expect.js';
import { NOW, SEED, YESTERDAY } from '../../seed.js';
import { RESTOCK, WELCOME, linksRow, metricsRow } from './deliveries.js';

const [CAMPAIGN] = SEED.campaigns;
const [BROADCAST] = SEED.broadcasts;

const TWO_DAYS = { start: YESTERDAY, end: NOW };

const WEBHOOK = CAMPAIGN.actions.find(({ type }) => type === 'webhook');

/** The rows of a family whose methods are spelled alike: `Campaign` or `Broadcast`. */
function familyRows(kind, { id, actions: [action, translation] }, delivery) {
  const parent = { [`${kind.toLowerCase()}_id`]: id };
  const asked = { id: action.id, ...parent, type: 'email', subject: action.subject, body: action.body };
  const translated = { id: translation.id, language: 'es', subject: translation.subject, body: translation.body };
  const changed = { subject: 'Changed', body: '<p>Changed</p>' };
  return [
    {
      method: `get${kind}Actions`,
      args: [id],
      answers: { actions: withItem(asked) },
    },
    { method: `get${kind}Action`, args: [id, action.id], answers: { action: asked } },
    {
      method: `update${kind}Action`,
      args: [id, action.id, { ...changed, sending_state: 'draft' }],
      answers: { action: { id: action.id, ...changed, sending_state: 'draft' } },
      leaves: [`get${kind}Action`, [id, action.id], { action: changed }],
    },
    { method: `get${kind}ActionLanguage`, args: [id, action.id, 'es'], answers: { action: translated } },
    {
      method: `update${kind}ActionLanguage`,
      args: [id, action.id, 'es', changed],
      answers: { action: { ...translated, ...changed } },
      leaves: [`get${kind}ActionLanguage`, [id, action.id, 'es'], { action: changed }],
    },
    metricsRow(`get${kind}Metrics`, [id], delivery),
    linksRow(`get${kind}MetricsLinks`, [id], delivery),
    metricsRow(`get${kind}ActionMetrics`, [id, action.id], delivery),
    linksRow(`get${kind}ActionMetricsLinks`, [id, action.id], delivery),
    {
      method: `get${kind}Messages`,
      args: [id, { type: 'email', metric: 'sent', limit: 10 }],
      answers: { messages: [{ id: delivery, ...parent, action_id: action.id }], next: '' },
    },
  ];
}

const inVersion2 = (method, ids) => ({
  method,
  title: 'tells of a time span',
  args: [...ids, { version: '2', res: 'days', tz: 'Europe/Vienna', ...TWO_DAYS }],
  answers: { metric: { series: { sent: addsUpTo(1) } }, start: isText, end: isText, res: 'days' },
});

const LIST_ROWS = [
  {
    method: 'listCampaigns',
    args: [],
    answers: { campaigns: SEED.campaigns.map(({ id, name, type, state }) => ({ id, name, type, state })) },
  },
  {
    method: 'getCampaign',
    args: [1],
    answers: {
      campaign: { id: 1, name: 'Welcome', type: 'segment', active: true, trigger_segment_ids: [2], tags: ['new'] },
    },
  },
  {
    method: 'getCampaignAction',
    title: 'tells of a webhook',
    args: [1, WEBHOOK.id],
    answers: { action: { type: 'webhook', url: WEBHOOK.url, method: 'post', headers: WEBHOOK.headers } },
  },
  inVersion2('getCampaignMetrics', [1]),
  inVersion2('getCampaignActionMetrics', [1, 101]),
  {
    method: 'getCampaignJourneyMetrics',
    args: [1, { res: 'days', ...TWO_DAYS }],
    answers: { journey_metric: { started: isFilled, messaged: isFilled, converted: isFilled } },
  },
  { method: 'listBroadcasts', args: [], answers: { broadcasts: [{ id: 20, name: 'Restock', state: 'running' }] } },
  {
    method: 'getBroadcast',
    args: [20],
    answers: { broadcast: { id: 20, name: 'Restock', type: 'triggered_broadcast', active: true } },
  },
];

async function triggerForAda({ app }) {
  const { id } = await app.triggerBroadcast(20, { product: 'Socks' }, { ids: ['ada'] });
  return id;
}

/** The number of a trigger that was refused, which its refusal tells. */
async function triggerForNobody({ app }) {
  try {
    await app.triggerBroadcast(20, { product: 'Socks' }, { ids: ['ada', 'nobody'] });
  } catch ({ message }) {
    return Number(/trigger (\d+)/.exec(message)[1]);
  }
  throw new Error('nobody was found');
}

const TRIGGER_ROWS = [
  {
    method: 'triggerBroadcast',
    title: 'sends to the people it names',
    args: [20, { product: 'Gloves' }, { emails: ['ada@example.com'] }],
    answers: { id: isId },
    leaves: ['getCustomerMessages', ['ada'], { messages: withItem({ broadcast_id: 20, subject: 'Gloves is back' }) }],
    later: true,
  },
  {
    method: 'getBroadcastTriggerStatus',
    given: triggerForAda,
    args: (trigger) => [20, trigger],
    answers: { id: isId, broadcast_id: 20, created_at: isTime },
    leaves: ['getBroadcastTriggerStatus', (answer, trigger) => [20, trigger], { processed_at: isTime }],
    later: true,
  },
  {
    method: 'getBroadcastTriggerErrors',
    given: triggerForNobody,
    args: (trigger) => [20, trigger, { limit: 10 }],
    answers: { errors: [includes('line')], next: '' },
  },
  {
    method: 'getBroadcastTriggers',
    given: triggerForAda,
    args: [20],
    answers: { triggers: [{ id: isId, broadcast_id: 20, created_at: isTime }] },
  },
];

export const CAMPAIGN_ROWS = [
  ...LIST_ROWS,
  ...familyRows('Campaign', CAMPAIGN, WELCOME),
  ...familyRows('Broadcast', BROADCAST, RESTOCK),
  ...TRIGGER_ROWS,
];
