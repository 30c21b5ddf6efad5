#!/usr/bin/env bash
# The five calls straight at Microsoft Graph. Needs curl 7.76 or newer, and python3 to read JSON.
#
#   AWS_REGION=… CLIENT_ID=… CREDENTIAL_SECRET_ID=… infra/five-calls/direct.sh TENANT_ID [INCIDENT_ID]
#
# The client secret is in AWS Secrets Manager, as `client_secret` of a JSON object. It and the token stay in variables and
# pipes: they are in no file, no shell history and no process list. A certificate or federation instead of a secret is
# better still, and curl has neither: see direct.py.
set -euo pipefail
tenant=$1 incident=${2-}
login=${LOGIN_HOST:-https://login.microsoftonline.com}
graph=${GRAPH_HOST:-https://graph.microsoft.com}
secrets=${AWS_ENDPOINT_URL_SECRETS_MANAGER:-https://secretsmanager.$AWS_REGION.amazonaws.com}
plain=(curl --silent --show-error --fail-with-body --max-time 35)

# read_json EXPRESSION: what a Python expression makes of the JSON `j` on standard input.
read_json() { python3 -c "import base64, json, sys; j = json.load(sys.stdin); print($1)"; }

client_secret() {
    {
        printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
        if [ -n "${AWS_SESSION_TOKEN-}" ]; then printf 'header = "x-amz-security-token: %s"\n' "$AWS_SESSION_TOKEN"; fi
    } | "${plain[@]}" --config - --aws-sigv4 "aws:amz:$AWS_REGION:secretsmanager" "$secrets/" \
        --header 'x-amz-target: secretsmanager.GetSecretValue' --header 'content-type: application/x-amz-json-1.1' \
        --data "{\"SecretId\": \"$CREDENTIAL_SECRET_ID\"}" | read_json 'json.loads(j["SecretString"])["client_secret"], end=""'
}

# 1. Get a token: the v2 endpoint of the customer's tenant, and the scope of the API that is called. curl reads the secret
#    from its standard input and encodes it.
token=$(
    client_secret | "${plain[@]}" "$login/$tenant/oauth2/v2.0/token" --data-urlencode client_secret@- \
        --data grant_type=client_credentials --data-urlencode "client_id=$CLIENT_ID" \
        --data-urlencode "scope=https://graph.microsoft.com/.default" | read_json 'j["access_token"]'
)

# authorized CURL-ARGUMENTS…: a call with the token, which curl reads from its standard input.
authorized() { printf 'Authorization: Bearer %s' "$token" | "${plain[@]}" --header @- --header 'prefer: include-unknown-enum-members' "$@"; }

# 2. Read the roles in it. This shows what the customer consented to; only Microsoft verifies the token.
printf '%s' "$token" | cut -d . -f 2 | python3 -c '
import base64, json, sys
part = sys.stdin.read().strip()
claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
assert claims["tid"] == sys.argv[1], "a token of another tenant"
print("roles:", *claims.get("roles", []))' "$tenant"

# 3. List incidents. `$top` is at most 50, and alerts come only with `$expand=alerts`.
page=$(authorized "$graph/v1.0/security/incidents?\$top=2")
printf '%s' "$page" | read_json '"incidents:", *(i["id"] for i in j["value"])'

# 4. Follow the next link as it is, as long as there is one: a page without rows may have one, too. The token goes to Graph
#    alone.
next=$(printf '%s' "$page" | read_json 'j.get("@odata.nextLink", "")')
case $next in
    "") ;;
    "$graph"/*) authorized "$next" | read_json '"next page:", *(i["id"] for i in j["value"])' ;;
    *) echo "the next link leads to another host" >&2; exit 1 ;;
esac

# 5. Change one, if it was named.
if [ -n "$incident" ]; then
    authorized --request PATCH "$graph/v1.0/security/incidents/$incident" --header 'content-type: application/json' \
        --data '{"status": "inProgress"}' | read_json '"changed:", j["id"], j["status"]'
fi
