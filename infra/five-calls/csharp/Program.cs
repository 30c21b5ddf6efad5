// The five calls, through Mandate and straight at Microsoft Graph.
//
//   dotnet run -- mandate TENANT_ID [INCIDENT_ID]    with MANDATE_API and AWS_REGION
//   dotnet run -- direct TENANT_ID [INCIDENT_ID]     with CLIENT_ID and CREDENTIAL_SECRET_ID

if (args.Length < 2 || !Guid.TryParse(args[1], out var tenant))
{
    Console.Error.WriteLine("usage: mandate|direct TENANT_ID [INCIDENT_ID]");
    return 2;
}
var incident = args.Length > 2 ? args[2] : null;
await (args[0] == "mandate" ? ThroughMandate.Run(tenant, incident) : Direct.Run(tenant, incident));
return 0;
