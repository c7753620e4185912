// The files that the server fetches, served from here.

import http from 'node:http';

const FILES = {
  people: ['text/csv', 'id,email,plan\nlin,lin@example.com,pro\n'],
  events: ['text/csv', 'email,name,total\nada@example.com,order_imported,7\n'],
  objects: ['text/csv', 'object_id,name\nglobex,Globex\n'],
  relationships: ['text/csv', 'id,object_id,role\nada,acme,buyer\n'],
  cities: ['application/json', '[{"name":"Rome"},{"name":"Siena"}]'],
};

function serve({ url }, response) {
  const [type, text] = FILES[url.slice(1)] ?? [];
  response.writeHead(type ? 200 : 404, { 'Content-Type': type ?? 'text/plain', Connection: 'close' });
  response.end(text);
}

/** Starts serving; gives what tells the URL of a file, and what ends it. */
export async function serveFiles() {
  const server = http.createServer(serve);
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  return {
    fileUrl: (name) => `http://127.0.0.1:${port}/${name}`,
    close: () => server.close(),
  };
}
