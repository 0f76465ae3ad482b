module.exports = (name) => `Hello, ${name || 'world'}`;
