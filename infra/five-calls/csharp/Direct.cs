using System.Net.Http.Headers;
using System.Net.Http.Json;
using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using Amazon.SecretsManager;
using Amazon.SecretsManager.Model;
using Microsoft.Identity.Client;

/// <summary>The five calls straight at Microsoft Graph. The credential is in AWS Secrets Manager and stays in memory.</summary>
static class Direct
{
    static readonly string Login = Environment.GetEnvironmentVariable("LOGIN_HOST") ?? "https://login.microsoftonline.com";
    static readonly string Graph = Environment.GetEnvironmentVariable("GRAPH_HOST") ?? "https://graph.microsoft.com";

    public static async Task Run(Guid tenant, string? incident)
    {
        // 1. Get a token: the v2 endpoint of the customer's tenant, and the scope of the API that is called. A client for
        //    each tenant keeps the tokens of tenants apart.
        var client = await Client(tenant);
        var token = await client.AcquireTokenForClient(["https://graph.microsoft.com/.default"]).ExecuteAsync();

        // 2. Read the roles in it. This shows what the customer consented to; only Microsoft verifies the token.
        var claims = JsonDocument.Parse(Base64Url(token.AccessToken.Split('.')[1])).RootElement;
        if (claims.GetProperty("tid").GetString() != tenant.ToString())
        {
            throw new InvalidOperationException("a token of another tenant");
        }
        var roles = claims.TryGetProperty("roles", out var list) ? list.EnumerateArray().Select(role => role.GetString()) : [];
        Console.WriteLine($"roles: {string.Join(' ', roles)}");

        // Redirects would carry the token elsewhere.
        using var http = new HttpClient(new HttpClientHandler { AllowAutoRedirect = false }) { Timeout = TimeSpan.FromSeconds(35) };
        http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token.AccessToken);
        http.DefaultRequestHeaders.Add("prefer", "include-unknown-enum-members");

        async Task<JsonElement> Call(HttpMethod method, string url, object? body = null)
        {
            using var request = new HttpRequestMessage(method, url) { Content = body is null ? null : JsonContent.Create(body) };
            using var response = await http.SendAsync(request);
            response.EnsureSuccessStatusCode();
            return await response.Content.ReadFromJsonAsync<JsonElement>();
        }

        static string Ids(JsonElement page) =>
            string.Join(' ', page.GetProperty("value").EnumerateArray().Select(one => one.GetProperty("id").GetString()));

        // 3. List incidents. `$top` is at most 50, and alerts come only with `$expand=alerts`.
        var page = await Call(HttpMethod.Get, $"{Graph}/v1.0/security/incidents?$top=2");
        Console.WriteLine($"incidents: {Ids(page)}");

        // 4. Follow the next link as it is, as long as there is one: a page without rows may have one, too.
        if (page.TryGetProperty("@odata.nextLink", out var next))
        {
            var link = next.GetString()!;
            if (!link.StartsWith($"{Graph}/", StringComparison.Ordinal))
            {
                throw new InvalidOperationException("the next link leads to another host");
            }
            page = await Call(HttpMethod.Get, link);
            Console.WriteLine($"next page: {Ids(page)}");
        }

        // 5. Change one, if it was named.
        if (incident is not null)
        {
            var changed = await Call(HttpMethod.Patch, $"{Graph}/v1.0/security/incidents/{incident}", new { status = "inProgress" });
            Console.WriteLine($"changed: {changed.GetProperty("id")} {changed.GetProperty("status")}");
        }
    }

    static async Task<IConfidentialClientApplication> Client(Guid tenant)
    {
        using var secrets = new AmazonSecretsManagerClient();
        var id = Environment.GetEnvironmentVariable("CREDENTIAL_SECRET_ID");
        var secret = await secrets.GetSecretValueAsync(new GetSecretValueRequest { SecretId = id });
        var stored = JsonDocument.Parse(secret.SecretString).RootElement;
        var builder = ConfidentialClientApplicationBuilder.Create(Environment.GetEnvironmentVariable("CLIENT_ID"))
            .WithAuthority($"{Login}/{tenant}")
            .WithInstanceDiscovery(false);
        return stored.TryGetProperty("client_secret", out var text)
            ? builder.WithClientSecret(text.GetString()).Build()
            : builder.WithCertificate(Certificate(stored)).Build();
    }

    static X509Certificate2 Certificate(JsonElement stored) =>
        X509Certificate2.CreateFromPem(stored.GetProperty("certificate").GetString(), stored.GetProperty("private_key").GetString());

    static byte[] Base64Url(string part)
    {
        var padded = part.Replace('-', '+').Replace('_', '/');
        return Convert.FromBase64String(padded.PadRight(padded.Length + (4 - padded.Length % 4) % 4, '='));
    }
}
