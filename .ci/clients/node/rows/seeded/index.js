// Rows of a workspace that holds what the seed says, for the newest version.
//
// A row is one call. `given` prepares the server beyond the seed; `args` are the
// arguments, or a function that makes them of what `given` returned; `answers` is
// what the answer has to hold, nothing at all unless said otherwise. `leaves` is
// the App call that shows the effect: method, arguments (or a function of the
// answer) and what that answer has to hold afterwards and not before; with
// `later` it may take a moment. `gone` is the App call that must be refused then;
// `effect` looks for what no call of the client shows.

import { CAMPAIGN_ROWS } from './campaigns.js';
import { MESSAGE_ROWS } from './messages.js';
import { NEWSLETTER_ROWS } from './newsletters.js';
import { PEOPLE_ROWS } from './people.js';
import { STUDIO_ROWS } from './studio.js';
import { TRACK_ROWS } from './track.js';
import { WORKSPACE_ROWS } from './workspace.js';

const APP_ROWS = [
  ...PEOPLE_ROWS,
  ...MESSAGE_ROWS,
  ...CAMPAIGN_ROWS,
  ...NEWSLETTER_ROWS,
  ...WORKSPACE_ROWS,
  ...STUDIO_ROWS,
];

export const SEEDED_ROWS = [
  ...TRACK_ROWS.map((row) => ({ client: 'track', ...row })),
  ...APP_ROWS.map((row) => ({ client: 'app', ...row })),
];
