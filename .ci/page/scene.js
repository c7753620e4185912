// A day of a small shop, so that there is something to look at.

import { createServer } from 'node:http';
import { call } from './fake.js';

const EMAIL = `<!doctype html><html><body style="margin:0;background:#f4f1ea;font-family:Georgia,serif">
<table width="100%" cellpadding="0" cellspacing="0"><tr><td align="center" style="padding:24px">
<table style="width:100%;max-width:560px;background:#fff;border-radius:8px"><tr><td style="padding:32px">
<h1 style="margin:0 0 12px;font-size:24px">Thank you, {{customer.first_name}}</h1>
<p style="line-height:1.6;color:#444">Your order <b>{{trigger.order}}</b> is on its way. You can follow it from
our warehouse in Leith to your door.</p>
<p><a href="https://shop.example/orders/{{trigger.order}}" style="display:inline-block;padding:12px 22px;
background:#1d4d4f;color:#fff;border-radius:6px;text-decoration:none">Track the parcel</a></p>
<p style="font-size:12px;color:#888">The Tea Shop, 1 Shore, Edinburgh ·
<a href="{% unsubscribe_url %}">Unsubscribe</a></p></td></tr></table></td></tr></table></body></html>`;

const PEOPLE = [
  ['1', 'Ada', 'Lovelace', 'pro'], ['2', 'Grace', 'Hopper', 'free'], ['3', 'Katherine', 'Johnson', 'pro'],
  ['4', 'Radia', 'Perlman', 'free'], ['5', 'Barbara', 'Liskov', 'team'], ['6', 'Zoë', 'Müller-Šimić', 'free'],
];

export const SEED = {
  segments: [
    { id: 1, name: 'Paying', conditions: { attribute: { field: 'plan', operator: 'eq', value: 'pro' } } },
    { id: 2, name: 'Staff', ids: [] },
  ],
  topics: [{ id: 1, name: 'News' }, { id: 2, name: 'Offers' }],
  campaigns: [
    {
      id: 2, name: 'Order follow-up', type: 'event', event_name: 'order_placed', restart_mode: 'rematch',
      send_to_unsubscribed: true,
      actions: [
        { id: 20, type: 'email', name: 'Receipt', subject: 'Order {{event.order_id}}', body: '<p>Thank you</p>' },
        {
          id: 21, type: 'conditional_wait', exit_type: 'continue', delay: 432000,
          multi_conditions: [{ event: { name: 'order_shipped' }, times: 1, within: 0 }],
          paths: [
            [{ id: 22, type: 'push', subject: 'On its way', body: 'Order {{event.order_id}}' }],
            [{ id: 23, type: 'slack', body: '{{event.order_id}} not shipped after 5 days' }],
          ],
        },
        {
          id: 24, type: 'conditional_branch',
          conditions: { attribute: { field: 'plan', operator: 'eq', value: 'pro' } },
          paths: [
            [{ id: 25, type: 'delay_seconds', delay: 86400 }, { id: 26, type: 'email', name: 'Thanks', subject: 'A gift', body: '<p>x</p>' }],
            [{ id: 27, type: 'attribute_update', attributes: { upsell: 'yes' } }],
          ],
        },
        { id: 28, type: 'exit' },
      ],
    },
    {
      id: 5, name: 'Win back', type: 'segment', trigger_segment_ids: [1], audience_at_start: 'future', state: 'stopped',
      actions: [
        {
          id: 50, type: 'random_cohort_branch', cohorts: [500, 500], cohort_names: ['mail', 'nobody'],
          paths: [[{ id: 51, type: 'email', subject: 'Come back', body: '<p>x</p>' }], [{ id: 52, type: 'exit' }]],
        },
      ],
    },
  ],
};

/** Lets a day happen in a workspace, given by its path; gives the id of its best email. */
export async function liven(place = '') {
  const at = (path) => place + path;
  await call('POST', at('/__parlel/seed'), SEED);
  const hook = createServer((request, response) => response.writeHead(500).end());
  await new Promise((resolve) => hook.listen(0, '127.0.0.1', resolve));
  const endpoint = `http://127.0.0.1:${hook.address().port}/hook`;
  await call('POST', at('/v1/reporting_webhooks'), { name: 'x', endpoint, events: ['email_sent', 'email_opened'] });
  for (const [id, first_name, last, plan] of PEOPLE) {
    const email = `${first_name.toLowerCase().replace('ë', 'e')}@example.com`;
    await call('PUT', at(`/api/v1/customers/${id}`), {
      email, first_name, name: `${first_name} ${last}`, plan, phone: `+4420794601${id}${id}`, created_at: 1700000000 + Number(id),
    });
    await call('PUT', at(`/api/v1/customers/${id}/devices`), { device: { id: `token-${id}`, platform: id % 2 ? 'ios' : 'android' } });
    if (id < 5) await call('POST', at(`/api/v1/customers/${id}/events`), { name: 'order_placed', data: { order_id: `A${id}`, total: 12 } });
  }
  await call('POST', at('/api/v1/customers/1/events'), { name: 'order_shipped', data: { order_id: 'A1' } });
  await call('PUT', at('/api/v1/customers/1'), {
    cio_relationships: {
      action: 'add_relationships',
      relationships: [{ identifiers: { object_type_id: '1', object_id: 'acme' }, relationship_attributes: { role: 'owner' } }],
    },
  });
  const message = { from: 'The Tea Shop <shop@example.com>', message_data: { order: 'A-1001' } };
  const email = (id, subject, body = EMAIL) => call('POST', at('/v1/send/email'), {
    ...message, to: `person${id}@example.com`, identifiers: { id }, subject, body,
  });
  const { delivery_id: best } = await email('1', 'Your order {{trigger.order}} is on its way');
  await email('2', 'Reset your password', '<p>Here: <a href="https://shop.example/reset">reset</a></p>');
  const { delivery_id: bounced } = await email('3', 'News of the week', '<h1>News</h1>');
  await call('POST', at(`/__parlel/deliveries/${bounced}/bounced`), { reason: '550 no such mailbox' });
  await call('POST', at('/v1/send/push'), { identifiers: { id: '1' }, transactional_message_id: 1, title: 'On its way', message: 'The courier comes today between 2 and 4.' });
  await call('POST', at('/v1/send/sms'), { identifiers: { id: '2' }, transactional_message_id: 2, to: '+442079460122', body: 'Your code is 493 022. It is good for ten minutes.' }).catch(() => 0);
  const look = { position: 'top', topics: ['orders'], properties: { title: 'Paid', body: '<b>Thank you</b>' } };
  for (const channel of ['in_app', 'inbox_message']) {
    await call('POST', at(`/v1/send/${channel}`), { identifiers: { id: '1' }, transactional_message_id: 3, in_app: look });
  }
  await call('POST', at('/v1/send/email'), { to: 'x' }).catch(() => 0);
  await call('DELETE', at('/api/v1/customers/nobody')).catch(() => 0);
  await call('GET', at('/v1/nowhere')).catch(() => 0);
  await call('POST', at('/__parlel/faults'), { match: { operation: 'POST /v1/send/push' }, status: 503, times: 2 });
  await call('POST', at('/__parlel/webhooks/flush'), {});
  hook.close();
  return best;
}
