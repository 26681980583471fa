// A provider on Node's own HTTP server, for what its users may meet there. Prints its port.
import http from 'node:http';

const JSON_TYPE = { 'content-type': 'application/json' };
let connections = 0;

const answers = {
  connections: (request, response) => response.end(JSON.stringify({ connections })),

  hints(request, response) {
    response.writeEarlyHints({ link: '</style.css>; rel=preload' });
    response.writeHead(200, JSON_TYPE).end('{"hints":true}');
  },

  trailers(request, response) {
    response.writeHead(200, { ...JSON_TYPE, trailer: 'x-sum' });
    response.write('{"trailers":');
    response.addTrailers({ 'x-sum': '1' });
    response.end('true}');
  },

  empty: (request, response) => response.writeHead(204).end(),
  unchanged: (request, response) => response.writeHead(304, { etag: '"one"' }).end(),
  last: (request, response) => response.writeHead(200, { ...JSON_TYPE, connection: 'close' }).end('{"last":true}'),

  async events(request, response) {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (let event = 0; event < 5; event += 1) {
      response.write(`data: ${event}\n\n`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    response.end('data: [DONE]\n\n');
  },

  // The answer runs beside the request, piece by piece.
  mirror: (request, response) => request.pipe(response.writeHead(200, { 'content-type': 'application/octet-stream' })),

  fields: (request, response) => response.writeHead(200, JSON_TYPE).end(JSON.stringify(request.rawHeaders)),
};

const server = http.createServer((request, response) => answers[request.url.split('/').pop()](request, response));
// An expectation is between the proxy and its client.
server.on('checkContinue', (request, response) => response.writeHead(417).end());
server.on('connection', () => { connections += 1; });
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
