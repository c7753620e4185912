import { APP_ROWS } from './app.js';
import { PIPELINES_ROWS } from './pipelines.js';
import { TRACK_ROWS } from './track.js';

export const ROWS = [...TRACK_ROWS, ...APP_ROWS, ...PIPELINES_ROWS];
