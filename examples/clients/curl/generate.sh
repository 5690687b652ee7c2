#!/bin/sh
# Calls Quire's OpenAI-compatible HTTP API with nothing but curl.
#
#   sh generate.sh http://127.0.0.1:8000 "ROMEO:"
set -eu
url=${1:-http://127.0.0.1:8000}
prompt=${2:-ROMEO:}
key="Authorization: Bearer ${QUIRE_API_KEY:-none}"
json="Content-Type: application/json"
call="curl --silent --show-error --fail-with-body"

$call "$url/health" > /dev/null
$call -H "$key" "$url/v1/models"
echo
# A completion at once.
$call -H "$key" -H "$json" "$url/v1/completions" -d "{\"prompt\": \"$prompt\", \"max_tokens\": 20, \"seed\": 7}"
echo
# A chat as server-sent events; --no-buffer shows them as they come.
$call --no-buffer -H "$key" -H "$json" "$url/v1/chat/completions" \
  -d "{\"messages\": [{\"role\": \"user\", \"content\": \"$prompt\"}], \"max_tokens\": 20, \"stream\": true}"
