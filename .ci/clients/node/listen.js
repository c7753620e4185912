// An endpoint for webhooks, on a real socket.

import { once } from 'node:events';
import http from 'node:http';

/** Starts to listen; gives the address, what was received so far, and the server to close. */
export async function listen() {
  const received = [];
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      received.push({ headers: request.headers, body: Buffer.concat(chunks) });
      response.end('ok');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { received, server, url: `http://127.0.0.1:${server.address().port}/webhooks` };
}
