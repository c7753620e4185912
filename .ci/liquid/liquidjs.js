// Answers lines of JSON on stdin with lines of JSON on stdout, by LiquidJS and node's Intl:
//   {"template", "data"}              → {"text"} or {"error"}
//   {"locale", "currency", "number"}  → {"text"}; without a currency, a plain number
//   {"times": [template, …], "data"}  → {"parse": […], "render": […]}: milliseconds, one after another
const { Liquid } = require("liquidjs");

Date.now = () => 1483272000000;
const engine = new Liquid({ strictFilters: true });

function rendered({ template, data }) {
  try {
    return { text: engine.parseAndRenderSync(template, data) };
  } catch (error) {
    return { error: error.message };
  }
}

function formatted({ locale, currency, number }) {
  return { text: new Intl.NumberFormat(locale, currency ? { style: "currency", currency } : {}).format(number) };
}

function timed({ times, data }) {
  const spent = { parse: [], render: [] };
  for (const source of times) {
    const start = performance.now();
    const parsed = engine.parse(source);
    const middle = performance.now();
    engine.renderSync(parsed, data);
    spent.parse.push(middle - start);
    spent.render.push(performance.now() - middle);
  }
  return spent;
}

for (const line of require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const task = JSON.parse(line);
  const answer = "template" in task ? rendered(task) : "times" in task ? timed(task) : formatted(task);
  console.log(JSON.stringify(answer));
}
