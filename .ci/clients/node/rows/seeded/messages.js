// Transactional messages, and the deliveries of all kinds of messages.

import { includes, isText, isTime } from '../../expect.js';
import { HOUR_AGO, NOW, SEED } from '../../seed.js';
import { MARCH, WELCOME, linksRow, metricsRow, report } from './deliveries.js';

const [RECEIPT] = SEED.transactional;
const [ENGLISH, SPANISH] = RECEIPT.contents;

const ORDERS_PAGE = 'https://example.com/orders';

const TO_ADA = { to: 'ada@example.com', identifiers: { id: 'ada' } };

async function sendReceipt({ app, sdk }) {
  const request = { ...TO_ADA, transactional_message_id: 1, message_data: { order: 'A-1' } };
  const { delivery_id } = await app.sendEmail(new sdk.SendEmailRequest(request));
  return delivery_id;
}

const listed = ({ id, language, subject, body }) => ({ id, language, subject, body });

const afterReceipt = (row, what) => ({ ...row, given: async (clients) => what(clients, await sendReceipt(clients)) });

const openReceipt = (clients, delivery) => report(clients, delivery, 'opened');

async function clickReceiptTwice(clients, delivery) {
  await report(clients, delivery, 'clicked', { href: ORDERS_PAGE });
  await report(clients, delivery, 'clicked', { href: ORDERS_PAGE });
}

const TRANSACTIONAL_ROWS = [
  {
    method: 'sendWhatsApp',
    args: (prepared, { sdk }) => [
      new sdk.SendWhatsAppRequest({ transactional_message_id: 6, to: '+15550101', identifiers: { id: 'ada' } }),
    ],
    answers: { delivery_id: isText, queued_at: isTime },
    leaves: [
      'getMessage',
      ({ delivery_id }) => [delivery_id],
      { message: { type: 'whatsapp', transactional_message_id: 6, customer_id: 'ada', recipient: '+15550101' } },
    ],
  },
  {
    method: 'listTransactionalMessages',
    args: [],
    answers: { messages: SEED.transactional.map(({ id, name }) => ({ id, name })) },
  },
  {
    method: 'getTransactionalMessage',
    args: [1],
    answers: { message: { id: 1, name: 'Receipt', description: 'After each order', link_tracking: true } },
  },
  { method: 'getTransactionalMessageContents', args: [1], answers: { contents: RECEIPT.contents.map(listed) } },
  { method: 'getTransactionalMessageLanguage', args: [1, 'es'], answers: { content: [listed(SPANISH)] } },
  {
    method: 'updateTransactionalMessageLanguage',
    args: [1, 'es', { subject: 'Su pedido', body: '<p>Hola</p>' }],
    answers: { content: [{ id: SPANISH.id, subject: 'Su pedido', body: '<p>Hola</p>' }] },
    leaves: ['getTransactionalMessageLanguage', [1, 'es'], { content: [{ subject: 'Su pedido' }] }],
  },
  {
    method: 'updateTransactionalMessageContent',
    args: [1, ENGLISH.id, { subject: 'Your order', headers: [{ name: 'X-Shop', value: '1' }] }],
    answers: { content: [{ id: ENGLISH.id, subject: 'Your order', headers: includes('X-Shop') }] },
    leaves: ['getTransactionalMessageContents', [1], { contents: [{ subject: 'Your order' }, listed(SPANISH)] }],
  },
  {
    method: 'getTransactionalMessageDeliveries',
    given: sendReceipt,
    args: [1, { limit: 10, metric: 'sent' }],
    answers: {
      messages: [{ transactional_message_id: 1, customer_id: 'ada', subject: 'Order A-1', metrics: { sent: isTime } }],
      next: '',
    },
  },
  afterReceipt(metricsRow('getTransactionalMessageMetrics', [1]), openReceipt),
  afterReceipt(linksRow('getTransactionalMessageLinkMetrics', [1], '', ORDERS_PAGE), clickReceiptTwice),
];

const isWelcome = {
  id: WELCOME,
  type: 'email',
  campaign_id: 1,
  action_id: 101,
  newsletter_id: null,
  customer_id: 'ada',
  customer_identifiers: { id: 'ada', email: 'ada@example.com', cio_id: isText },
  recipient: 'ada@example.com',
  subject: 'Hello Ada',
  metrics: { created: HOUR_AGO, sent: HOUR_AGO, delivered: HOUR_AGO },
};

const DELIVERY_ROWS = [
  {
    method: 'getMessages',
    args: [{ newsletter_id: 30, type: 'email', metric: 'delivered', start_ts: HOUR_AGO - 60, end_ts: NOW }],
    answers: { messages: [{ id: MARCH, newsletter_id: 30, content_id: 301 }], next: '' },
  },
  {
    method: 'getMessages',
    title: 'turns the page',
    args: [{ limit: 2 }],
    answers: { messages: [{ id: isText }, { id: isText }], next: isText },
  },
  { method: 'getMessage', args: [WELCOME], answers: { message: isWelcome } },
  {
    method: 'getArchivedMessage',
    given: sendReceipt,
    args: (delivery) => [delivery],
    answers: {
      archived_message: {
        id: isText,
        recipient: 'ada@example.com',
        subject: 'Order A-1',
        body: includes('Thanks, Ada!'),
        forgotten: false,
      },
    },
  },
];

export const MESSAGE_ROWS = [...TRANSACTIONAL_ROWS, ...DELIVERY_ROWS];
