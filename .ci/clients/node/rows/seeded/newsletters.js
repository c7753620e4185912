// Newsletters: the one that was sent and the one that is still a draft.

import { isFilled, isId, isText, isTime, withItem } from '../../expect.js';
import { SEED, TOMORROW } from '../../seed.js';
import { MARCH, linksRow, metricsRow } from './deliveries.js';

const [SENT, DRAFT] = SEED.newsletters;
const [HTML, , SPANISH] = SENT.contents;
const [DRAFT_HTML, DRAFT_SPANISH] = DRAFT.contents;

const CHANGED = { subject: 'Changed', body: '<p>Changed</p>' };
const GERMAN = { language: 'de', subject: 'Im April', body: '<p>Bald</p>' };

const RECIPIENTS = { and: [{ or: [{ segment: { id: 1 } }] }] };

const NEW = {
  name: 'May',
  type: 'email',
  subject: 'May',
  body: '<p>May</p>',
  from_id: 1,
  recipients: RECIPIENTS,
  subscription_topic_id: 1,
};

const listed = ({ id, language, subject, body }) => ({ id, language, subject, body });

const isDraft = { newsletter: { id: 31, name: 'April' } };

const NEWSLETTER_LIST_ROWS = [
  {
    method: 'listNewsletters',
    args: [{ sort: 'asc', limit: 10 }],
    answers: {
      newsletters: [
        { id: 30, name: 'March', type: 'email', tags: ['monthly'], sent_at: isTime },
        { id: 31, name: 'April', sent_at: null },
      ],
      next: '',
    },
  },
  {
    method: 'listNewsletters',
    title: 'turns the page',
    args: [{ sort: 'desc', limit: 1 }],
    answers: { newsletters: [{ id: 31 }], next: isText },
  },
  {
    method: 'createNewsletter',
    args: [NEW],
    answers: {
      newsletter: {
        id: isId,
        name: 'May',
        type: 'email',
        content_ids: [isId],
        recipient_segment_ids: [1],
        sent_at: null,
      },
    },
    leaves: ['listNewsletters', [], { newsletters: withItem({ name: 'May' }) }],
  },
  {
    method: 'getNewsletter',
    args: [30],
    answers: {
      newsletter: { id: 30, name: 'March', content_ids: SENT.content_ids, recipient_segment_ids: [1], sent_at: isTime },
    },
  },
  { method: 'deleteNewsletter', args: [31], gone: ['getNewsletter', [31]] },
  {
    method: 'sendNewsletter',
    args: [31, { rate_limit_email_rate: 100, rate_limit_time_period: 60 }],
    answers: isDraft,
    leaves: [
      'getNewsletterMessages',
      [31],
      { messages: withItem({ newsletter_id: 31, customer_id: 'ada', subject: 'April' }) },
    ],
    later: true,
  },
  {
    // Only what is scheduled can be taken off the schedule.
    method: 'scheduleNewsletter',
    args: [31, { scheduled_at: TOMORROW, timezone: 'Europe/Vienna' }],
    answers: isDraft,
    leaves: ['scheduleNewsletter', [31, { scheduled_at: 0 }], isDraft],
  },
];

const CONTENT_ROWS = [
  { method: 'getNewsletterContents', args: [30], answers: { contents: SENT.contents.map(listed) } },
  { method: 'getNewsletterContent', args: [30, 301], answers: { content: { newsletter_id: 30, ...listed(HTML) } } },
  {
    method: 'updateNewsletterContent',
    args: [31, DRAFT_HTML.id, CHANGED],
    answers: { content: { id: DRAFT_HTML.id, ...CHANGED } },
    leaves: ['getNewsletterContent', [31, DRAFT_HTML.id], { content: CHANGED }],
  },
  metricsRow('getNewsletterMetrics', [30], MARCH),
  linksRow('getNewsletterMetricsLinks', [30], MARCH),
  metricsRow('getNewsletterContentMetrics', [30, 301], MARCH),
  linksRow('getNewsletterContentMetricsLinks', [30, 301], MARCH),
  {
    method: 'getNewsletterMessages',
    args: [30, { type: 'email', metric: 'sent', limit: 10 }],
    answers: { messages: [{ id: MARCH, newsletter_id: 30, content_id: 301 }], next: '' },
  },
];

const LANGUAGE_ROWS = [
  {
    method: 'createNewsletterLanguage',
    args: [31, GERMAN],
    answers: { newsletter: { id: 31, content_ids: [DRAFT_HTML.id, DRAFT_SPANISH.id, isId] } },
    leaves: ['getNewsletterLanguage', [31, 'de'], { content: GERMAN }],
  },
  { method: 'getNewsletterLanguage', args: [31, 'es'], answers: { content: listed(DRAFT_SPANISH) } },
  {
    method: 'updateNewsletterLanguage',
    args: [31, 'es', CHANGED],
    answers: { content: { id: DRAFT_SPANISH.id, language: 'es', ...CHANGED } },
    leaves: ['getNewsletterLanguage', [31, 'es'], { content: CHANGED }],
  },
  { method: 'deleteNewsletterLanguage', args: [31, 'es'], gone: ['getNewsletterLanguage', [31, 'es']] },
];

/** Gives the draft a test group; tells its id. */
async function groupOfDraft({ app }) {
  await app.createNewsletterTestGroup(31);
  const { test_groups } = await app.getNewsletterTestGroups(31);
  return test_groups.at(-1).id;
}

async function germanGroupOfDraft(clients) {
  const group = await groupOfDraft(clients);
  await clients.app.createNewsletterTestGroupLanguage(31, group, GERMAN);
  return group;
}

const germanOfGroup = (answer, group) => [31, group, 'de'];

const TEST_GROUP_ROWS = [
  { method: 'getNewsletterTestGroups', args: [30], answers: { test_groups: SENT.test_groups } },
  {
    method: 'createNewsletterTestGroup',
    args: [31],
    answers: isDraft,
    leaves: ['getNewsletterTestGroups', [31], { test_groups: isFilled }],
  },
  {
    method: 'createNewsletterTestGroupLanguage',
    given: groupOfDraft,
    args: (group) => [31, group, GERMAN],
    answers: isDraft,
    leaves: ['getNewsletterTestGroupLanguage', germanOfGroup, { content: GERMAN }],
  },
  { method: 'getNewsletterTestGroupLanguage', args: [30, 1, 'es'], answers: { content: listed(SPANISH) } },
  {
    method: 'updateNewsletterTestGroupLanguage',
    given: germanGroupOfDraft,
    args: (group) => [31, group, 'de', CHANGED],
    answers: { content: { language: 'de', ...CHANGED } },
    leaves: ['getNewsletterTestGroupLanguage', germanOfGroup, { content: CHANGED }],
  },
  {
    method: 'deleteNewsletterTestGroupLanguage',
    given: germanGroupOfDraft,
    args: (group) => [31, group, 'de'],
    gone: ['getNewsletterTestGroupLanguage', germanOfGroup],
  },
];

export const NEWSLETTER_ROWS = [...NEWSLETTER_LIST_ROWS, ...CONTENT_ROWS, ...LANGUAGE_ROWS, ...TEST_GROUP_ROWS];
