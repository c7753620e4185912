// TrackClient: what it can do since 5.2.0.

import { isId, isText, isTime } from '../../expect.js';
import { NOW } from '../../seed.js';
import { WELCOME } from './deliveries.js';

const LIN = { type: 'person', action: 'identify', identifiers: { id: 'lin' }, attributes: { plan: 'pro' } };

const identifyLin = ({ track }) => track.entity(LIN);

const members = (...ids) => ['getSegmentMembership', [1], { ids, next: '' }];

export const TRACK_ROWS = [
  {
    method: 'getAccountRegion',
    args: [],
    answers: { region: 'us', url: isText, environment_id: isId },
  },
  {
    method: 'entity',
    args: [LIN],
    leaves: ['getAttributes', ['lin'], { customer: { id: 'lin', attributes: { plan: 'pro' } } }],
  },
  {
    method: 'addCustomersToSegment',
    given: identifyLin,
    args: [1, ['lin']],
    leaves: members('ada', 'grace', 'lin'),
  },
  {
    method: 'addCustomersToSegment',
    title: 'finds people by their address',
    args: [1, ['mailonly@example.com'], 'email'],
    leaves: ['getSegmentCustomerCount', [1], { count: 3 }],
  },
  { method: 'removeCustomersFromSegment', args: [1, ['grace']], leaves: members('ada') },
  {
    method: 'submitForm',
    args: ['contact', { email: 'lin@example.com', city: 'Linz' }],
    leaves: ['getCustomersByEmail', ['lin@example.com'], { results: [{ email: 'lin@example.com', cio_id: isText }] }],
  },
  {
    method: 'reportMetric',
    args: [{ delivery_id: WELCOME, metric: 'opened', timestamp: NOW }],
    leaves: ['getMessage', [WELCOME], { message: { metrics: { delivered: isTime, opened: NOW } } }],
  },
  {
    method: 'unsubscribe',
    args: [WELCOME],
    leaves: ['getAttributes', ['ada'], { customer: { unsubscribed: true } }],
  },
];
