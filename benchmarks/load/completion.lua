-- wrk: streams completions, and counts the answers that did not run to their end.
--   wrk -t2 -c16 -d10s -s benchmarks/load/completion.lua http://127.0.0.1:8000
-- QUIRE_MAX_TOKENS (16) says how long each answer is.

local max_tokens = os.getenv("QUIRE_MAX_TOKENS") or "16"
local speakers = { "ROMEO", "JULIET", "NURSE", "MERCUTIO" }
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  number, complete, broken = 0, 0, 0
end

function request()
  number = number + 1
  local speaker = speakers[number % #speakers + 1]
  local body = string.format(
    '{"prompt": "%s:\\n", "max_tokens": %s, "temperature": 0, "ignore_eos": true, "stream": true}',
    speaker, max_tokens)
  return wrk.format("POST", "/v1/completions", { ["Content-Type"] = "application/json" }, body)
end

function response(status, headers, body)
  if status == 200 and body:find("data: [DONE]", 1, true) then
    complete = complete + 1
  else
    broken = broken + 1
  end
end

function done(summary, latency, requests)
  local all_complete, all_broken = 0, 0
  for _, thread in ipairs(threads) do
    all_complete = all_complete + thread:get("complete")
    all_broken = all_broken + thread:get("broken")
  end
  local seconds = summary.duration / 1e6
  local errors = summary.errors
  io.write(string.format(
    "complete answers: %d, broken answers: %d, socket errors: %d, tokens/s: %.1f, p50 ms: %.1f, p99 ms: %.1f\n",
    all_complete, all_broken, errors.connect + errors.read + errors.write + errors.timeout,
    all_complete * tonumber(max_tokens) / seconds, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
