#requires -Version 7.4
<#
.SYNOPSIS
The five calls through Mandate. Needs the module AWS.Tools.Common.

.EXAMPLE
Set-AWSCredential -ProfileName partner
./mandate.ps1 -Api https://… -Region eu-central-1 -TenantId 11111111-… [-IncidentId 29]
#>
param(
    [Parameter(Mandatory)] [uri] $Api,
    [Parameter(Mandatory)] [string] $Region,
    [Parameter(Mandatory)] [guid] $TenantId,
    [ValidatePattern('^\d{1,20}$')] [string] $IncidentId
)
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version Latest
$credentials = (Get-AWSCredential).GetCredentials()

function Get-Hash([byte[]] $Bytes) { [Convert]::ToHexString([Security.Cryptography.SHA256]::HashData($Bytes)).ToLowerInvariant() }
function Get-Hmac([byte[]] $Key, [string] $Text) { , [Security.Cryptography.HMACSHA256]::HashData($Key, [Text.Encoding]::UTF8.GetBytes($Text)) }

# A request signed by Signature Version 4. The path and the query must be encoded already, the query in order of its names.
function Invoke-Mandate([string] $Method, [string] $Path, [string] $Query = '', [string] $Body = '') {
    $now = [DateTime]::UtcNow
    $headers = [ordered]@{ 'host' = $Api.Authority; 'x-amz-date' = $now.ToString('yyyyMMddTHHmmssZ') }
    if ($credentials.UseToken) { $headers['x-amz-security-token'] = $credentials.Token }
    $signed = $headers.Keys -join ';'
    $payload = Get-Hash ([Text.Encoding]::UTF8.GetBytes($Body))
    $fields = ($headers.GetEnumerator() | ForEach-Object { "$($_.Key):$($_.Value)`n" }) -join ''
    $canonical = "$Method`n$Path`n$Query`n$fields`n$signed`n$payload"
    $scope = "$($now.ToString('yyyyMMdd'))/$Region/execute-api/aws4_request"
    $digest = Get-Hash ([Text.Encoding]::UTF8.GetBytes($canonical))
    $text = "AWS4-HMAC-SHA256`n$($headers['x-amz-date'])`n$scope`n$digest"
    $key = [Text.Encoding]::UTF8.GetBytes("AWS4$($credentials.SecretKey)")
    foreach ($part in $scope.Split('/')) { $key = Get-Hmac $key $part }
    $signature = [Convert]::ToHexString((Get-Hmac $key $text)).ToLowerInvariant()
    $send = @{
        Method = $Method; TimeoutSec = 35; SkipHeaderValidation = $true
        Uri = "$($Api.GetLeftPart('Authority'))$Path$(if ($Query) { "?$Query" })"
        Headers = @{
            'authorization' = "AWS4-HMAC-SHA256 Credential=$($credentials.AccessKey)/$scope, SignedHeaders=$signed, Signature=$signature"
            'x-amz-date' = $headers['x-amz-date']
        }
    }
    if ($credentials.UseToken) { $send.Headers['x-amz-security-token'] = $credentials.Token }
    if ($Body) { $send.Body = $Body; $send.ContentType = 'application/json' }
    Invoke-RestMethod @send
}

# 1. Get a token, for calls to Microsoft that Mandate has no route for.
$token = Invoke-Mandate POST "/tenants/$TenantId/token" -Body '{}'
"token for $($token.resource) until $($token.expires_at)"

# 2. Read the roles in it. Mandate has checked tenant, application, audience and roles already.
"roles: $($token.roles)"

# 3. List incidents, the newest first.
$page = Invoke-Mandate GET "/tenants/$TenantId/incidents" -Query 'limit=2'
"incidents: $($page.incidents.incident_id)"

# 4. Follow the next page. `next` is opaque, and null at the end.
if ($page.next) {
    $page = Invoke-Mandate GET "/tenants/$TenantId/incidents" -Query "limit=2&next=$([uri]::EscapeDataString($page.next))"
    "next page: $($page.incidents.incident_id)"
}

# 5. Change one, if it was named.
if ($IncidentId) {
    $change = @{ status = 'in_progress'; comment = 'looked at' } | ConvertTo-Json -Compress
    $changed = Invoke-Mandate PATCH "/tenants/$TenantId/incidents/$IncidentId" -Body $change
    "changed: $($changed.incident_id) $($changed.incident.status)"
}
