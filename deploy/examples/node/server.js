const http = require('http');
const os = require('os');
const greeting = require('greeting');

const server = http.createServer((request, response) => {
  const name = request.url.slice(1);
  response.end(`${greeting(name)}, from ${os.hostname()}\n`);
});

server.listen(3000, () => console.log('listening on port 3000'));
// Nobody else in the container would end it.
process.on('SIGTERM', () => process.exit(0));
