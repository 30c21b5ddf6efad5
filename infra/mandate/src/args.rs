//! The command line.
//!
//! Long, because all commands stand side by side, as `--help` and the manual page show them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use shared::tenant::TenantId;

use crate::time::{Moment, Span};

/// The text of `mandate --help`. One line for each of 24 commands would not fit on a screen.
const SCREEN: &str = "\
{about}

Usage: mandate [OPTIONS] COMMAND …        mandate COMMAND --help has an example

  invite, invitations, revoke   make a customer's link, list the links, end one
  tenants, tenant, change       all customers, worst first; one; its name, API
  pause, resume, offboard       stop reading, go on, end it for good
  backfill, sweep, job          read older incidents, find gaps, see progress
  incidents, incident, set      list or follow incidents, show one, change one
  hunt                          run one KQL query over the customers
  token                         an access token for a customer, or what is in it
  register, certificate         the app registration, and a certificate for it
  check                         what a real tenant does that no document says
  console, mcp                  a page in your browser; tools for an agent
  completions, man              completion for your shell; the manual page

Options:
  --api URL      the address of the API: http://localhost:8400 … [MANDATE_API]
  --stack NAME   the stack whose output ApiUrl is the address [MANDATE_STACK]
  --json         one JSON object a line, as where the output is no terminal
  -h, --help     this page
  -V, --version  the version
";

/// Works with the customers, incidents and hunts of Mandate.
#[derive(Debug, Parser)]
#[command(name = "mandate", version, help_template = SCREEN)]
#[command(max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// The address of the API [env: MANDATE_API]
    #[arg(
        long,
        global = true,
        env = "MANDATE_API",
        value_name = "URL",
        hide_env = true,
        help_heading = "Global options"
    )]
    pub(crate) api: Option<String>,
    /// The stack whose output `ApiUrl` is the address [env: MANDATE_STACK]
    #[arg(
        long,
        global = true,
        env = "MANDATE_STACK",
        value_name = "NAME",
        hide_env = true,
        help_heading = "Global options"
    )]
    pub(crate) stack: Option<String>,
    /// Print one JSON object a line, as where the output is no terminal
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes an invitation and prints the link for the customer's administrator.
    #[command(after_help = "Example:\n  mandate invite Contoso --tenant contoso.com")]
    Invite(Invite),
    /// Lists the invitations.
    #[command(after_help = "Example:\n  mandate invitations")]
    Invitations,
    /// Ends an invitation: its link is of no use any more.
    #[command(after_help = "Example:\n  mandate revoke 0b7c5a52-58b2-4d6c-9a44-8d6b0c6f0a11")]
    Revoke {
        /// The invitation, as `mandate invitations` lists it
        #[arg(value_name = "ID")]
        invitation_id: String,
    },
    /// Lists the tenants, the worst first.
    #[command(after_help = "Example:\n  mandate tenants --status paused")]
    Tenants {
        /// Only tenants with this status
        #[arg(long)]
        status: Option<TenantStatus>,
    },
    /// Shows one tenant, and what to do if it is not read.
    #[command(after_help = "Example:\n  mandate tenant 11111111-2222-4333-8444-555555555555")]
    Tenant(One),
    /// Stops reading a tenant until `resume`.
    #[command(after_help = "Example:\n  mandate pause 11111111-2222-4333-8444-555555555555")]
    Pause(One),
    /// Goes on with a paused tenant, or accepts one that waits for you.
    #[command(after_help = "Example:\n  mandate resume 11111111-2222-4333-8444-555555555555")]
    Resume(One),
    /// Changes a customer's name, or the API that the tenant is read through.
    #[command(
        after_help = "Examples:\n  mandate change 11111111-2222-4333-8444-555555555555 --customer \"Contoso Ltd\"\n  \
                            mandate change 11111111-2222-4333-8444-555555555555 --incident-api graph"
    )]
    Change(Change),
    /// Ends the work for a tenant and deletes what is stored about it. Again: checks whether access has ended.
    #[command(after_help = "Example:\n  mandate offboard 11111111-2222-4333-8444-555555555555 --yes")]
    Offboard {
        #[command(flatten)]
        one: One,
        /// Confirm it
        #[arg(long)]
        yes: bool,
    },
    /// Reads older incidents of a tenant, 180 days of them by default.
    #[command(after_help = "Example:\n  mandate backfill 11111111-2222-4333-8444-555555555555 --from 30d --follow")]
    Backfill(Backfill),
    /// Compares what was delivered with what Microsoft has, of the last days by default, and delivers the gaps.
    #[command(after_help = "Example:\n  mandate sweep 11111111-2222-4333-8444-555555555555 --follow")]
    Sweep(Backfill),
    /// Shows the progress of a backfill or a sweep, or cancels it.
    #[command(after_help = "Example:\n  mandate job 11111111-2222-4333-8444-555555555555 \
                            5f7d3c9a-0d2b-4a55-9d4e-6f1f0f6f7c21 --follow")]
    Job(Job),
    /// Lists incidents over all tenants or of one, the newest first, or follows them.
    #[command(after_help = "Examples:\n  mandate incidents --severity high --since 7d\n  mandate incidents --follow")]
    Incidents(Incidents),
    /// Shows one incident with its alerts.
    #[command(after_help = "Example:\n  mandate incident 11111111-2222-4333-8444-555555555555 2972395")]
    Incident(OneIncident),
    /// Changes one incident at Microsoft: at least one option says what.
    #[command(
        override_usage = "mandate set [OPTIONS] <TENANT> <ID>",
        after_help = "Example:\n  mandate set 11111111-2222-4333-8444-555555555555 2972395 --status resolved \\\n    \
                            --classification false_positive --determination not_malicious --comment \"known scanner\""
    )]
    Set(Set),
    /// Runs one KQL query over the tenants and prints one table.
    #[command(after_help = "Examples:\n  mandate hunt \"DeviceInfo | take 5\" --timespan 7d\n  \
                            mandate hunt @query.kql --tenant 11111111-2222-4333-8444-555555555555 --out rows.csv\n  \
                            mandate hunt --id 5f7d3c9a-0d2b-4a55-9d4e-6f1f0f6f7c21")]
    Hunt(Hunt),
    /// Prints an access token for a tenant, or with --claims what is in it.
    #[command(after_help = "Example:\n  mandate token 11111111-2222-4333-8444-555555555555 --claims")]
    Token(Token),
    /// Creates the app registration that customers consent to, or corrects the one that --client-id names.
    #[command(after_help = "Example:\n  mandate register --name \"Northwind SOC\" \\\n    \
                            --redirect-uri https://partner.example.com/consent/callback --dry-run\n\n\
                            With --client-id it compares that registration with the options and sends only the differences.\n\
                            A registration that only has the name is never changed. The operator's own\n\
                            token for Microsoft Graph comes from the Azure CLI (`az login` first), a device code or a file.")]
    Register(Box<Register>),
    /// Creates a self-signed certificate for an RSA key in KMS, in PEM. The key never leaves KMS.
    #[command(after_help = "Example:\n  mandate certificate --key-id alias/mandate-signing > certificate.pem")]
    Certificate(Certificate),
    /// Tries on a real tenant what Microsoft's documents leave open, and prints a table without personal data.
    #[command(after_help = "Example:\n  mandate check --tenant 11111111-2222-4333-8444-555555555555")]
    Check(Check),
    /// Serves a page on this machine that shows tenants, incidents and hunts in your browser.
    #[command(after_help = "Example:\n  mandate console")]
    Console(ConsoleArgs),
    /// Serves read-only tools for an agent (Model Context Protocol) on standard input and output.
    #[command(after_help = "Example, as an agent's configuration:\n  \
                            {\"mcpServers\": {\"mandate\": {\"command\": \"mandate\", \"args\": [\"mcp\", \"--stack\", \"mandate-prod\"]}}}")]
    Mcp,
    /// Prints the completion script for a shell.
    #[command(after_help = "Example:\n  mandate completions bash > ~/.local/share/bash-completion/completions/mandate")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Prints the manual page.
    #[command(after_help = "Example:\n  mandate man > ~/.local/share/man/man1/mandate.1")]
    Man,
}

#[derive(Args, Debug)]
pub(crate) struct Invite {
    /// The customer's name, as you will see it in lists
    pub(crate) customer: String,
    /// The customer's tenant, as a GUID or a domain; nobody else's consent counts then
    #[arg(long, value_name = "GUID-or-DOMAIN")]
    pub(crate) tenant: Option<String>,
    /// The hours until the link expires [default: 168]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=720))]
    pub(crate) hours: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct One {
    /// The tenant
    #[arg(value_name = "TENANT", value_parser = tenant_id)]
    pub(crate) tenant_id: TenantId,
}

#[derive(Args, Debug)]
pub(crate) struct Change {
    #[command(flatten)]
    pub(crate) one: One,
    #[command(flatten)]
    pub(crate) new: TenantChanges,
}

#[derive(Args, Debug)]
#[group(id = "tenant_changes", required = true, multiple = true)]
pub(crate) struct TenantChanges {
    /// The customer's new name, as you will see it in lists
    #[arg(long, value_name = "NAME")]
    pub(crate) customer: Option<String>,
    /// The API to read the tenant through, if its consent covers it
    #[arg(long, value_name = "API")]
    pub(crate) incident_api: Option<IncidentApi>,
}

#[derive(Args, Debug)]
pub(crate) struct Backfill {
    #[command(flatten)]
    pub(crate) one: One,
    /// The earliest time of last update: 30d (ago), 2026-11-22, 2026-11-22T10:00 or with an offset
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<Moment>,
    /// The latest time of last update [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<Moment>,
    /// Show the progress until the end
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Args, Debug)]
#[expect(clippy::struct_field_names, reason = "the id of the job, not of its tenant")]
pub(crate) struct Job {
    #[command(flatten)]
    pub(crate) one: One,
    /// The job, as `backfill` and `sweep` print it
    #[arg(value_name = "JOB")]
    pub(crate) job_id: String,
    /// Show the progress until the end
    #[arg(long)]
    pub(crate) follow: bool,
    /// Cancel the job
    #[arg(long, conflicts_with = "follow")]
    pub(crate) cancel: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Incidents {
    /// Only this tenant
    #[arg(long, value_name = "ID", value_parser = tenant_id)]
    pub(crate) tenant: Option<TenantId>,
    /// Only incidents with this severity
    #[arg(long)]
    pub(crate) severity: Option<Severity>,
    /// Only incidents with this status
    #[arg(long)]
    pub(crate) status: Option<IncidentStatus>,
    /// Only incidents that are assigned to this person
    #[arg(long, value_name = "NAME")]
    pub(crate) assigned_to: Option<String>,
    /// The earliest time of last update: 7d (ago), 2026-11-22, 2026-11-22T10:00 or with an offset [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// The most incidents to print; 0 prints all
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "follow")]
    pub(crate) limit: usize,
    /// Print each change as it comes, until Ctrl-C
    #[arg(long)]
    pub(crate) follow: bool,
    /// The seconds between two looks of --follow; each look costs a call to Microsoft for each tenant
    #[arg(long, value_name = "N", default_value_t = 20, requires = "follow", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
}

#[derive(Args, Debug)]
pub(crate) struct OneIncident {
    #[command(flatten)]
    pub(crate) one: One,
    /// The incident's number
    #[arg(value_name = "ID")]
    pub(crate) incident_id: String,
}

#[derive(Args, Debug)]
#[group(id = "changes", required = true, multiple = true)]
pub(crate) struct Changes {
    /// The new status
    #[arg(long)]
    pub(crate) status: Option<NewStatus>,
    /// The person to assign the incident to
    #[arg(long, value_name = "NAME")]
    pub(crate) assigned_to: Option<String>,
    /// Assign the incident to nobody
    #[arg(long, conflicts_with = "assigned_to")]
    pub(crate) unassign: bool,
    /// The judgement of the incident
    #[arg(long)]
    pub(crate) classification: Option<Classification>,
    /// The kind of it, in snake_case, like multi_staged_attack
    #[arg(long, value_name = "WORD")]
    pub(crate) determination: Option<String>,
    /// A tag; repeatable, and they replace the existing ones
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// Remove all tags
    #[arg(long, conflicts_with = "tags")]
    pub(crate) no_tags: bool,
    /// A comment to add
    #[arg(long)]
    pub(crate) comment: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Set {
    #[command(flatten)]
    pub(crate) incident: OneIncident,
    #[command(flatten)]
    pub(crate) changes: Changes,
}

#[derive(Args, Debug)]
pub(crate) struct Hunt {
    /// The KQL query, or @FILE to read it from a file (@- from standard input)
    #[arg(value_name = "QUERY-or-@FILE", required_unless_present = "id")]
    pub(crate) query: Option<String>,
    /// A tenant to hunt in; repeatable [default: all active ones]
    #[arg(long, value_name = "ID", value_parser = tenant_id)]
    pub(crate) tenant: Vec<TenantId>,
    /// The time to look back: 7d, 12h, or ISO 8601 like P7D [default: Microsoft's 30 days]
    #[arg(long, value_name = "SPAN")]
    pub(crate) timespan: Option<Span>,
    /// Write the rows to this file: CSV for a name that ends in .csv, else NDJSON
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Start none, but wait for this earlier hunt, whose id was printed at its start; Ctrl-C leaves it as it is
    #[arg(long, value_name = "HUNT", conflicts_with_all = ["query", "tenant", "timespan"])]
    pub(crate) id: Option<String>,
    /// Cancel the hunt that --id names
    #[arg(long, requires = "id", conflicts_with_all = ["query", "tenant", "timespan", "out"])]
    pub(crate) cancel: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Token {
    #[command(flatten)]
    pub(crate) one: One,
    /// The API that the token is for [default: the tenant's own]
    #[arg(long)]
    pub(crate) resource: Option<IncidentApi>,
    /// Print the token's claims and never the token
    #[arg(long)]
    pub(crate) claims: bool,
}

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Register {
    /// The name that a customer's administrator sees when consenting
    #[arg(long)]
    pub(crate) name: String,
    /// The URL of our callback; repeatable, replaces the existing ones
    #[arg(long, required = true, value_name = "URL", value_parser = crate::entra::redirect_uri)]
    pub(crate) redirect_uri: Vec<String>,
    /// The API whose permissions the app requests
    #[arg(long, value_name = "API", default_value = "graph")]
    pub(crate) incident_api: IncidentApi,
    /// Request the permission to change incidents, too
    #[arg(long)]
    pub(crate) with_write: bool,
    /// Request the permission for hunting, too
    #[arg(long)]
    pub(crate) with_hunting: bool,
    /// Request no permission: a registration for the administrator's sign-in alone
    #[arg(long, conflicts_with_all = ["with_write", "with_hunting"])]
    pub(crate) sign_in_only: bool,
    /// Remove permissions that these options do not request
    #[arg(long)]
    pub(crate) remove_permissions: bool,
    /// The client id of the registration to update; without it a new one is created
    #[arg(long, value_name = "GUID")]
    pub(crate) client_id: Option<String>,
    /// A PEM file to add as a credential
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// The issuer of AWS tokens, e.g. https://….tokens.sts.global.api.aws
    #[arg(long, value_name = "URL", requires = "federated_subject")]
    pub(crate) federated_issuer: Option<String>,
    /// The ARN of a role whose tokens the app can sign in with; repeatable, adds to the existing ones
    #[arg(long, value_name = "ARN", requires = "federated_issuer")]
    pub(crate) federated_subject: Vec<String>,
    /// The audience of these tokens, if it is not that of --graph's cloud
    #[arg(long, value_name = "AUDIENCE")]
    pub(crate) federated_audience: Option<String>,
    /// The URL of Microsoft Graph in another cloud, or of a simulator
    #[arg(long, value_name = "URL", default_value = "https://graph.microsoft.com")]
    pub(crate) graph: String,
    /// The login host for --device-code, if it is not that of --graph's cloud
    #[arg(long, value_name = "URL")]
    pub(crate) login: Option<String>,
    /// A file with an access token for Graph, instead of the Azure CLI
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Sign in with a code on another device, instead of the Azure CLI; the tenant is a GUID or a domain
    #[arg(long, value_name = "TENANT", conflicts_with = "token_file")]
    pub(crate) device_code: Option<String>,
    /// Print the writes and do not send them
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Certificate {
    /// The id, ARN or alias of the key in KMS
    #[arg(long, value_name = "KEY")]
    pub(crate) key_id: String,
    /// The certificate's common name
    #[arg(long, default_value = "Mandate")]
    pub(crate) name: String,
    /// The days until the certificate expires
    #[arg(long, value_name = "N", default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The tenant to try it on [default: the active one with the most incidents]
    #[arg(long, value_name = "ID", value_parser = tenant_id)]
    pub(crate) tenant: Option<TenantId>,
    /// The URL of Microsoft Graph, if it is not that of the token's cloud
    #[arg(long, value_name = "URL")]
    pub(crate) graph: Option<String>,
    /// The URL of Defender's API, if it is not that of the token's cloud
    #[arg(long, value_name = "URL")]
    pub(crate) defender: Option<String>,
    /// Also send requests until Microsoft responds with 429, at most 120 of them; the tenant's feed then waits, too
    #[arg(long)]
    pub(crate) provoke_throttling: bool,
}

/// The options of the console.
#[derive(Args, Clone, Debug)]
pub struct ConsoleArgs {
    /// The port on loopback, for example for ssh -L; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub port: u16,
    /// Print the address and open no browser
    #[arg(long)]
    pub no_open: bool,
    /// Allow changes, each after a confirmation
    #[arg(long)]
    pub write: bool,
}

/// Makes an enum of words that travel in requests as they are written here.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $($variant:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub(crate) enum $name {
            $(#[value(name = $word)] $variant),+
        }

        impl $name {
            /// The word of the API.
            pub(crate) fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words!(
    /// The status of a tenant.
    TenantStatus: Pending = "pending", Active = "active", Paused = "paused", Offboarded = "offboarded"
);
words!(
    /// The severity of an incident.
    Severity: Informational = "informational", Low = "low", Medium = "medium", High = "high"
);
words!(
    /// The status of an incident.
    IncidentStatus: Active = "active", InProgress = "in_progress", AwaitingAction = "awaiting_action",
    Resolved = "resolved", Redirected = "redirected"
);
words!(
    /// The status that a person can give an incident.
    NewStatus: Active = "active", InProgress = "in_progress", Resolved = "resolved"
);
words!(
    /// The classification of an incident.
    Classification: TruePositive = "true_positive", FalsePositive = "false_positive",
    Expected = "informational_expected_activity"
);
words!(
    /// The incident API of Microsoft.
    IncidentApi: Graph = "graph", Defender = "defender"
);

/// A tenant id in any letter case, as portals show it.
fn tenant_id(text: &str) -> Result<TenantId, String> {
    TenantId::from_guid(text).map_err(|_| {
        "not a tenant id: a GUID like 11111111-2222-4333-8444-555555555555. `mandate tenants` lists them".to_owned()
    })
}

#[cfg(test)]
mod tests;
