// People, objects, activities and segments, and what people want to get.

import { anyOrder, includes, isFilled, isId, isText, isTime, isUrl, withItem } from '../../expect.js';
import { HOUR_AGO, NOW, SEED } from '../../seed.js';
import { MARCH, RESTOCK, WELCOME } from './deliveries.js';

const PRO = { and: [{ segment: { id: 2 } }, { attribute: { field: 'plan', operator: 'exists' } }] };

const [ADA] = SEED.customers;
const ADA_IDENTIFIERS = { id: 'ada', email: ADA.attributes.email, cio_id: isText };

const ACME = {
  type: 'object',
  action: 'identify',
  identifiers: { object_type_id: '1', object_id: 'acme' },
  attributes: { name: 'Acme', seats: 5 },
  cio_relationships: [{ identifiers: { id: 'ada' }, relationship_attributes: { role: 'owner' } }],
};

const identifyAcme = ({ track }) => track.entity(ACME);

const cioIdOfAcme = async (clients) => {
  await identifyAcme(clients);
  const { object } = await clients.app.getObjectAttributes(1, 'acme');
  return object.identifiers.cio_object_id;
};

const ACME_IDENTIFIERS = { object_id: 'acme', cio_object_id: isText };

const isAcme = {
  object: { object_type_id: '1', identifiers: ACME_IDENTIFIERS, attributes: { name: 'Acme', seats: '5' } },
};

const NAMED_ACME = { and: [{ object_attribute: { field: 'name', operator: 'eq', value: 'Acme', type_id: 1 } }] };

const placeOrder = ({ track }) => track.track('ada', { name: 'order_placed', data: { total: 12 } });

const ORDERS = {
  activities: [{ id: isText, type: 'event', name: 'order_placed', customer_id: 'ada', timestamp: isTime }],
};

const CUSTOMER_ROWS = [
  {
    method: 'getCustomerActivities',
    given: placeOrder,
    args: ['ada', { type: 'event', name: 'order_placed', limit: 5 }],
    answers: ORDERS,
  },
  {
    method: 'getCustomerMessages',
    args: ['ada', { limit: 10, start_ts: HOUR_AGO - 60, end_ts: NOW }],
    answers: {
      messages: (messages) => anyOrder([WELCOME, RESTOCK, MARCH])(messages.map(({ id }) => id)),
      next: '',
    },
  },
  {
    method: 'getCustomerRelationships',
    given: identifyAcme,
    args: ['ada', { limit: 10 }],
    answers: { cio_relationships: [{ identifiers: ACME_IDENTIFIERS, attributes: { role: 'owner' } }], next: '' },
  },
  {
    method: 'getCustomerSegments',
    args: ['ada'],
    answers: { segments: SEED.segments.map(({ id, name, description }) => ({ id, name, description })) },
  },
  {
    method: 'getCustomerSegments',
    title: 'finds the person by their address',
    args: ['grace@example.com', 'email'],
    answers: { segments: [{ id: 1 }] },
  },
  {
    method: 'getCustomerSubscriptionPreferences',
    args: ['ada', { language: 'en' }],
    answers: {
      customer: {
        id: 'ada',
        identifiers: ADA_IDENTIFIERS,
        topics: [
          { name: 'News', subscribed: true },
          { name: 'Offers', subscribed: false },
        ],
        unsubscribed: false,
      },
    },
  },
  {
    method: 'searchCustomers',
    args: [PRO, { limit: 10 }],
    answers: { ids: ['ada'], identifiers: [ADA_IDENTIFIERS], next: '' },
  },
  {
    method: 'getCustomersAttributes',
    args: [['ada', 'nobody']],
    answers: {
      customers: [
        { customer: { id: 'ada', attributes: ADA.attributes, devices: ADA.devices.map(({ id }) => ({ id })) } },
      ],
    },
  },
];

const OBJECT_ROWS = [
  { method: 'getObjectAttributes', given: identifyAcme, args: [1, 'acme'], answers: isAcme },
  {
    method: 'getObjectAttributes',
    title: 'finds the object by its cio_object_id',
    given: cioIdOfAcme,
    args: (cioId) => [1, cioId, 'cio_object_id'],
    answers: isAcme,
  },
  {
    method: 'getObjectRelationships',
    given: identifyAcme,
    args: [1, 'acme', { limit: 10 }],
    answers: { cio_relationships: [{ identifiers: { id: 'ada' } }], next: '' },
  },
  {
    method: 'findObjects',
    given: identifyAcme,
    args: ['1', NAMED_ACME, { limit: 10 }],
    answers: { identifiers: [ACME_IDENTIFIERS], ids: isFilled, next: '' },
  },
  { method: 'listObjectTypes', args: [], answers: { types: SEED.object_types } },
  {
    method: 'listActivities',
    given: placeOrder,
    args: [{ type: 'event', name: 'order_placed', customerId: 'ada', limit: 5 }],
    answers: ORDERS,
  },
  {
    method: 'listActivities',
    title: 'turns the page',
    given: async (clients) => {
      await placeOrder(clients);
      await placeOrder(clients);
    },
    args: [{ type: 'event', limit: 1 }],
    answers: { ...ORDERS, next: isText },
  },
];

const [TESTERS] = SEED.segments;

const SEGMENT_ROWS = [
  {
    method: 'listSegments',
    args: [],
    answers: { segments: SEED.segments.map(({ id, name, type }) => ({ id, name, type })) },
  },
  {
    method: 'createSegment',
    args: [{ name: 'VIPs', description: 'By hand' }],
    answers: {
      segment: { id: isId, name: 'VIPs', description: 'By hand', type: 'manual', state: 'finished', progress: null },
    },
    leaves: ['listSegments', [], { segments: withItem({ name: 'VIPs' }) }],
  },
  {
    method: 'getSegment',
    args: [1],
    answers: { segment: { id: 1, name: TESTERS.name, tags: TESTERS.tags, type: 'manual', deduplicate_id: isText } },
  },
  { method: 'deleteSegment', args: [1], gone: ['getSegment', [1]] },
  { method: 'getSegmentCustomerCount', args: [1], answers: { count: 2 } },
  {
    method: 'getSegmentMembership',
    args: [1, { limit: 1 }],
    answers: { ids: ['ada'], identifiers: [ADA_IDENTIFIERS], next: isText },
  },
  {
    method: 'getSegmentUsedBy',
    args: [1],
    answers: { used_by: { campaigns: includes(1), sent_newsletters: [30], draft_newsletters: [31] } },
  },
];

const SUBSCRIPTION_ROWS = [
  { method: 'listSubscriptionTopics', args: [], answers: { topics: SEED.topics } },
  {
    method: 'listSubscriptionChannels',
    args: [],
    answers: { channels: withItem({ id: isId, type: 'email', name: isText }) },
  },
  { method: 'getSubscriptionCenterToken', args: ['ada'], answers: { token: isText, url: isUrl } },
  {
    method: 'batchUpdateAttributes',
    title: 'is accepted',
    args: [[{ name: 'plan', description: 'What is paid for' }]],
  },
  { method: 'batchUpdateEvents', title: 'is accepted', args: [[{ name: 'order_placed', description: 'An order' }]] },
];

export const PEOPLE_ROWS = [...CUSTOMER_ROWS, ...OBJECT_ROWS, ...SEGMENT_ROWS, ...SUBSCRIPTION_ROWS];
