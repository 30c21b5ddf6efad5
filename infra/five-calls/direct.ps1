#requires -Version 7.4
<#
.SYNOPSIS
The five calls straight at Microsoft Graph. Needs the module AWS.Tools.SecretsManager.

.DESCRIPTION
The client secret is in AWS Secrets Manager, as `client_secret` of a JSON object. It and the token stay in memory. MSAL has
no module of its own for PowerShell: this is its token request.

.EXAMPLE
./direct.ps1 -ClientId 5b1c7d0e-… -CredentialSecretId mandate-prod-app -TenantId 11111111-… [-IncidentId 29]
#>
param(
    [Parameter(Mandatory)] [guid] $ClientId,
    [Parameter(Mandatory)] [string] $CredentialSecretId,
    [Parameter(Mandatory)] [guid] $TenantId,
    [ValidatePattern('^\d{1,20}$')] [string] $IncidentId,
    [uri] $LoginHost = 'https://login.microsoftonline.com',
    [uri] $GraphHost = 'https://graph.microsoft.com'
)
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version Latest

# 1. Get a token: the v2 endpoint of the customer's tenant, and the scope of the API that is called.
$stored = (Get-SECSecretValue -SecretId $CredentialSecretId).SecretString | ConvertFrom-Json
$response = Invoke-RestMethod -Method Post -Uri "$($LoginHost.AbsoluteUri)$TenantId/oauth2/v2.0/token" -TimeoutSec 35 -Body @{
    grant_type = 'client_credentials'
    client_id = $ClientId
    client_secret = $stored.client_secret
    scope = 'https://graph.microsoft.com/.default'
}
$token = ConvertTo-SecureString $response.access_token -AsPlainText -Force

# 2. Read the roles in it. This shows what the customer consented to; only Microsoft verifies the token.
$part = $response.access_token.Split('.')[1].Replace('-', '+').Replace('_', '/')
$part = $part.PadRight($part.Length + (4 - $part.Length % 4) % 4, '=')
$claims = [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($part)) | ConvertFrom-Json
if ($claims.tid -ne "$TenantId") { throw 'a token of another tenant' }
"roles: $($claims.roles)"
Remove-Variable -Name 'stored', 'response'

$call = @{
    Authentication = 'Bearer'; Token = $token; TimeoutSec = 35; MaximumRedirection = 0
    Headers = @{ prefer = 'include-unknown-enum-members' }
}
$incidents = "$($GraphHost.AbsoluteUri)v1.0/security/incidents"

# 3. List incidents. `$top` is at most 50, and alerts come only with `$expand=alerts`.
$page = Invoke-RestMethod @call -Uri "$incidents`?`$top=2"
"incidents: $($page.value.id)"

# 4. Follow the next link as it is, as long as there is one: a page without rows may have one, too.
$next = $page.PSObject.Properties['@odata.nextLink']
if ($next) {
    if (-not $next.Value.StartsWith($GraphHost.AbsoluteUri)) { throw 'the next link leads to another host' }
    $page = Invoke-RestMethod @call -Uri $next.Value
    "next page: $($page.value.id)"
}

# 5. Change one, if it was named.
if ($IncidentId) {
    $changed = Invoke-RestMethod @call -Method Patch -Uri "$incidents/$IncidentId" -ContentType 'application/json' -Body '{"status": "inProgress"}'
    "changed: $($changed.id) $($changed.status)"
}
