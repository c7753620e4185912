-- The requests of every scenario: wrk -s requests.lua URL -- SCENARIO PEOPLE
-- All of them are formatted before the clock starts, so the client costs next to nothing.

local DISTINCT = 20000

local track = {
  ["Authorization"] = "Basic c2l0ZTprZXk=",
  ["Content-Type"] = "application/json",
}
local app = {
  ["Authorization"] = "Bearer app-key",
  ["Content-Type"] = "application/json",
}

local scenarios = {
  identify = function(id, n)
    return "PUT", "/api/v1/customers/" .. id, track, string.format(
      '{"email":"p%d@example.com","plan":"pro","first_name":"Ada","logins":%d}', id, n)
  end,
  track = function(id, n)
    return "POST", "/api/v1/customers/" .. id .. "/events", track, string.format(
      '{"name":"order_placed","data":{"total":%d,"currency":"EUR"}}', n)
  end,
  started = function(id, n)
    return "POST", "/api/v1/customers/" .. id .. "/events", track, string.format(
      '{"name":"started %d","data":{"order":%d}}', n % 50 + 1, n)
  end,
  email = function(id, n)
    return "POST", "/v1/send/email", app, string.format(
      '{"to":"p%d@example.com","from":"shop@example.com","subject":"Order {{trigger.order}}",'
        .. '"body":"<p>Thank you, {{customer.email}}!</p>","identifiers":{"id":"%d"},'
        .. '"message_data":{"order":%d}}', id, id, n)
  end,
  attributes = function(id)
    return "GET", "/v1/customers/" .. id .. "/attributes", app, nil
  end,
  by_email = function(id)
    return "GET", "/v1/customers?email=p" .. id .. "%40example.com", app, nil
  end,
}

local prepared, position = {}, 0

function init(args)
  local build, people = scenarios[args[1]], tonumber(args[2])
  local stride = math.max(1, math.floor(people / DISTINCT))
  for n = 1, DISTINCT do
    prepared[n] = wrk.format(build((n - 1) * stride % people + 1, n))
  end
end

function request()
  position = position % DISTINCT + 1
  return prepared[position]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
