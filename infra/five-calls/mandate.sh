#!/usr/bin/env bash
# The five calls through Mandate. Needs curl 7.76 or newer, and python3 to read JSON.
#
#   MANDATE_API=https://… AWS_REGION=… infra/five-calls/mandate.sh TENANT_ID [INCIDENT_ID]
#
# The AWS credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN). curl reads
# them from its standard input, so that no process list shows them. Nothing is written to disk.
set -euo pipefail
tenant=$1 incident=${2-}

# signed METHOD PATH [JSON]: the body of the response; a problem ends the script with status 22. curl wants the names of a
# query in order, to sign it.
signed() {
    local arguments=(--request "$1" "$MANDATE_API$2")
    if [ $# -gt 2 ]; then arguments+=(--header 'content-type: application/json' --data "$3"); fi
    local body
    if ! body=$({
        printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
        if [ -n "${AWS_SESSION_TOKEN-}" ]; then printf 'header = "x-amz-security-token: %s"\n' "$AWS_SESSION_TOKEN"; fi
    } | curl --config - --silent --show-error --fail-with-body --max-time 35 \
        --aws-sigv4 "aws:amz:$AWS_REGION:execute-api" "${arguments[@]}"); then
        printf '%s\n' "$body" >&2
        return 22
    fi
    printf '%s' "$body"
}

# read_json EXPRESSION: what a Python expression makes of the JSON `j` on standard input.
read_json() { python3 -c "import json, sys, urllib.parse; j = json.load(sys.stdin); print($1)"; }

# 1. Get a token, for calls to Microsoft that Mandate has no route for. It stays in this variable.
response=$(signed POST "/tenants/$tenant/token" '{}')
printf '%s' "$response" | read_json '"token for", j["resource"], "until", j["expires_at"]'

# 2. Read the roles in it. Mandate has checked tenant, application, audience and roles already.
printf '%s' "$response" | read_json '"roles:", *j["roles"]'
unset response

# 3. List incidents, the newest first.
page=$(signed GET "/tenants/$tenant/incidents?limit=2")
printf '%s' "$page" | read_json '"incidents:", *(i["incident_id"] for i in j["incidents"])'

# 4. Follow the next page. `next` is opaque: encode it, and stop when it is null.
next=$(printf '%s' "$page" | read_json 'urllib.parse.quote(j["next"] or "", safe="")')
if [ -n "$next" ]; then
    signed GET "/tenants/$tenant/incidents?limit=2&next=$next" | read_json '"next page:", *(i["incident_id"] for i in j["incidents"])'
fi

# 5. Change one, if it was named.
if [ -n "$incident" ]; then
    signed PATCH "/tenants/$tenant/incidents/$incident" '{"status": "in_progress", "comment": "looked at"}' \
        | read_json '"changed:", j["incident_id"], j["incident"]["status"]'
fi
