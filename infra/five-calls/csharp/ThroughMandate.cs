using System.Net.Http.Json;
using System.Text.Json;
using Amazon.Runtime.Credentials;
using AwsSignatureVersion4;

/// <summary>The five calls through Mandate. AWS credentials come from where the AWS SDK finds them.</summary>
static class ThroughMandate
{
    public static async Task Run(Guid tenant, string? incident)
    {
        var region = Environment.GetEnvironmentVariable("AWS_REGION")!;
        var settings = new AwsSignatureHandlerSettings(region, "execute-api", DefaultAWSCredentialsIdentityResolver.GetCredentials());
        using var http = new HttpClient(new AwsSignatureHandler(settings) { InnerHandler = new HttpClientHandler() })
        {
            BaseAddress = new Uri(Environment.GetEnvironmentVariable("MANDATE_API")!),
            Timeout = TimeSpan.FromSeconds(35),
        };

        async Task<JsonElement> Call(HttpMethod method, string path, object? body = null)
        {
            using var request = new HttpRequestMessage(method, path) { Content = body is null ? null : JsonContent.Create(body) };
            using var response = await http.SendAsync(request);
            var json = await response.Content.ReadFromJsonAsync<JsonElement>();
            return response.IsSuccessStatusCode ? json : throw new InvalidOperationException(json.ToString());
        }

        static string Ids(JsonElement page) =>
            string.Join(' ', page.GetProperty("incidents").EnumerateArray().Select(one => one.GetProperty("incident_id").GetString()));

        // 1. Get a token, for calls to Microsoft that Mandate has no route for.
        var token = await Call(HttpMethod.Post, $"/tenants/{tenant}/token", new { });
        Console.WriteLine($"token for {token.GetProperty("resource")} until {token.GetProperty("expires_at")}");

        // 2. Read the roles in it. Mandate has checked tenant, application, audience and roles already.
        Console.WriteLine($"roles: {string.Join(' ', token.GetProperty("roles").EnumerateArray())}");

        // 3. List incidents, the newest first.
        var page = await Call(HttpMethod.Get, $"/tenants/{tenant}/incidents?limit=2");
        Console.WriteLine($"incidents: {Ids(page)}");

        // 4. Follow the next page. `next` is opaque, and null at the end.
        if (page.GetProperty("next").GetString() is { } next)
        {
            page = await Call(HttpMethod.Get, $"/tenants/{tenant}/incidents?limit=2&next={Uri.EscapeDataString(next)}");
            Console.WriteLine($"next page: {Ids(page)}");
        }

        // 5. Change one, if it was named.
        if (incident is not null)
        {
            var changed = await Call(HttpMethod.Patch, $"/tenants/{tenant}/incidents/{incident}", new { status = "in_progress", comment = "looked at" });
            Console.WriteLine($"changed: {changed.GetProperty("incident_id")} {changed.GetProperty("incident").GetProperty("status")}");
        }
    }
}
