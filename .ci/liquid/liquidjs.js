// Answers lines of JSON on stdin with lines of JSON on stdout, by LiquidJS and node's Intl:
//   {"template", "data"}              → {"text"} or {"error"}
//   {"locale", "currency", "number"}  → {"text"}; without a currency, a plain number
//   {"time": template, "data"}        → {"parse", "render"}: milliseconds, the best of several
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

function formatted({ locale, currency, number, digits }) {
  const most = { maximumFractionDigits: digits };
  const options = currency ? { style: "currency", currency } : {};
  return { text: new Intl.NumberFormat(locale, digits === null ? options : { ...options, ...most }).format(number) };
}

function best(work) {
  let least = Infinity;
  for (let round = 0; round < 60; round += 1) {
    const start = performance.now();
    work();
    least = Math.min(least, performance.now() - start);
  }
  return least;
}

function timed({ time, data }) {
  const parsed = engine.parse(time);
  return { parse: best(() => engine.parse(time)), render: best(() => engine.renderSync(parsed, data)) };
}

for (const line of require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const task = JSON.parse(line);
  const answer = "template" in task ? rendered(task) : "time" in task ? timed(task) : formatted(task);
  console.log(JSON.stringify(answer));
}
