//! `mandate check`: tries on a real tenant what Microsoft's documents leave open.
//!
//! It asks Microsoft directly, with a token from the token route. It reads only, and its table names no tenant, no
//! person and no incident, so that it can be pasted into an issue.

mod points;
mod probe;

use std::{net::Ipv4Addr, time::Duration};

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    http::{Endpoint, HttpClient},
    microsoft::IncidentApi,
    text::Secret,
};
use tokio::net::TcpStream;

use crate::{
    args::Check,
    commands::{Session, all_pages, text, token},
    output::{Field, Mood, Rows},
    problem::Problem,
};
use points::{Finding, SAME_IDS, Verdict};
use probe::{Probe, Unjudged};

/// The longest wait for a pending tenant.
const CONSENT_TIMEOUT: SignedDuration = SignedDuration::from_mins(30);

/// The row for what could not be tried.
const FURTHER_POINTS: &str = "all further points";

/// The interval in which a pending tenant is looked at.
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);

impl Session {
    pub(crate) async fn check(&self, args: &Check) -> Result<(), Problem> {
        let tenant = match args.tenant {
            Some(tenant) => self.api.get(&["tenants", &tenant.to_string()], &[]).await?,
            None => self.fullest_tenant().await?,
        };
        let tenant_id = text(&tenant, "tenant_id").to_owned();
        let mut findings = vec![self.consent_time(tenant).await?];
        let http = HttpClient::with_read_timeout(Duration::from_mins(1));
        let mut probes = Vec::new();
        for api in IncidentApi::ALL {
            let (found, probe) = self.probe(args, &http, &tenant_id, api).await?;
            findings.extend(found);
            probes.extend(probe);
        }
        for probe in &probes {
            self.out.progress(format_args!("asking the {} API", probe.api));
            findings.extend(every_point(probe, args.provoke_throttling).await);
        }
        findings.push(match &probes[..] {
            [graph, defender] => points::same_ids(graph, defender).await.unwrap_or_else(|unjudged| {
                let (Unjudged::Point(why) | Unjudged::Api(Problem { detail: why, .. })) = unjudged;
                Finding::not_tried(SAME_IDS, "both", why)
            }),
            _ => Finding::not_tried(SAME_IDS, "both", "one API cannot be asked"),
        });
        self.show_findings(&findings)
    }

    /// The active tenant with the most delivered incidents.
    async fn fullest_tenant(&self) -> Result<Value, Problem> {
        let tenants = all_pages(&self.api, &["tenants"], &[("status", "active")], "tenants").await?;
        tenants.into_iter().max_by_key(|tenant| tenant["incidents_total"].as_u64()).ok_or_else(|| {
            Problem::new("not_found", "No tenant is active.")
                .advise("`mandate invite CUSTOMER` makes a link for the first one.")
        })
    }

    /// The time from the consent until the tenant was active, from its history. Waits for a tenant that is pending, but not
    /// for the operator.
    async fn consent_time(&self, mut tenant: Value) -> Result<Finding, Problem> {
        let clock = Clock::system();
        let started = clock.now();
        let waits = |tenant: &Value| tenant["status"] == "pending" && tenant["reason"] != "operator";
        while waits(&tenant) && clock.now().duration_since(started) < CONSENT_TIMEOUT {
            self.out.progress("waiting for the tenant to become active");
            tokio::time::sleep(CONSENT_INTERVAL).await;
            tenant = self.api.get(&["tenants", text(&tenant, "tenant_id")], &[]).await?;
        }
        let tenant = self.api.get(&["tenants", text(&tenant, "tenant_id")], &[("history", "true")]).await?;
        Ok(points::consent_time(&tenant))
    }

    /// What the token of one API shows, and a probe of the API with it, if there is one.
    async fn probe<'a>(
        &self,
        args: &Check,
        http: &'a HttpClient,
        tenant_id: &str,
        api: IncidentApi,
    ) -> Result<(Vec<Finding>, Option<Probe<'a>>), Problem> {
        let issued = token::issue(&self.api, tenant_id, Some(api.as_str())).await;
        let mut issued = match issued {
            Ok(issued) => issued,
            Err(problem) if problem.code == "forbidden" || problem.code == "unauthorized_caller" => {
                return Err(problem);
            }
            Err(problem) => {
                let why = format!("no token: {}", problem.reason.unwrap_or(problem.code));
                return Ok((vec![Finding::not_tried(points::ACCESS_TOKEN, api.as_str(), why)], None));
            }
        };
        let token = Secret::new(issued["access_token"].as_str().unwrap_or_default().to_owned());
        let claims = token::claims_of(&mut issued);
        let mut findings = vec![points::token(&claims, api, tenant_id)];
        let Some(endpoint) = self.endpoint(args, api, &claims).await? else {
            let why = format!("the token does not name its cloud: --{api} names the host");
            findings.push(Finding::not_tried(FURTHER_POINTS, api.as_str(), why));
            return Ok((findings, None));
        };
        Ok((findings, Some(Probe { http, endpoint, api, token })))
    }

    /// The host of an API: the named one, that of a simulator beside a local stack, or Microsoft's in the token's cloud.
    async fn endpoint(&self, args: &Check, api: IncidentApi, claims: &Value) -> Result<Option<Endpoint>, Problem> {
        let (named, offset) = match api {
            IncidentApi::Graph => (&args.graph, 2),
            IncidentApi::Defender => (&args.defender, 3),
        };
        let address = match (named, self.api.local_port()) {
            (None, Some(port)) => simulator(port.saturating_add(offset)).await,
            (named, _) => named.clone(),
        };
        let Some(address) = address else { return Ok(points::host(claims, api)) };
        address
            .trim_end_matches('/')
            .parse()
            .map(Some)
            .map_err(|_| Problem::new("usage", "--graph and --defender must be https://HOST, or http on this machine."))
    }

    fn show_findings(&self, findings: &[Finding]) -> Result<(), Problem> {
        if self.out.is_json() {
            return findings.iter().try_for_each(|finding| {
                self.out.object(&json!({
                    "point": finding.point, "api": finding.api, "expected": finding.expected, "found": finding.found,
                    "verdict": finding.verdict.word(),
                }))
            });
        }
        let mut rows = Rows::new(["POINT", "API", "EXPECTED", "FOUND", "VERDICT"]);
        for finding in findings {
            let mood = match finding.verdict {
                Verdict::AsExpected => Mood::Good,
                Verdict::Differs => Mood::Bad,
                Verdict::Seen => Mood::Plain,
                Verdict::NotTried => Mood::Quiet,
            };
            rows.push(vec![
                finding.point.into(),
                finding.api.into(),
                finding.expected.into(),
                Field::from(&finding.found),
                Field::new(finding.verdict.word(), mood),
            ]);
        }
        self.out.table(rows)?;
        self.out.say("\nThe table names no tenant, person or incident. Please paste it into an issue of the project.")
    }
}

/// The address of a simulator on this port. `cargo dev --live` has none.
async fn simulator(port: u16) -> Option<String> {
    let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    connected.is_ok().then(|| format!("http://{}:{port}", Ipv4Addr::LOCALHOST))
}

/// The findings of one API. Where it stops responding the rest is not tried, and what was found stays.
async fn every_point(probe: &Probe<'_>, provoke: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(problem) = try_points(probe, provoke, &mut findings).await {
        findings.push(Finding::not_tried(FURTHER_POINTS, probe.api.as_str(), problem.detail));
    }
    findings
}

async fn try_points(probe: &Probe<'_>, provoke: bool, findings: &mut Vec<Finding>) -> Result<(), Problem> {
    let mut add = |point, outcome| match outcome {
        Ok(finding) => {
            findings.push(finding);
            Ok(())
        }
        Err(Unjudged::Point(why)) => {
            findings.push(Finding::not_tried(point, probe.api.as_str(), why));
            Ok(())
        }
        Err(Unjudged::Api(problem)) => Err(problem),
    };
    add(points::LARGEST_PAGE, points::largest_page(probe).await)?;
    add(points::TWO_SIDED_FILTER, points::two_sided_filter(probe).await)?;
    add(points::DEFAULT_ORDER, points::default_order(probe).await)?;
    add(points::ORDERBY, points::orderby(probe).await)?;
    add(points::NEXT_LINK, points::next_links(probe).await)?;
    add(points::HUNTING, points::hunting(probe).await)?;
    add(points::DETERMINATIONS, points::determinations(probe).await)?;
    add(points::LIMIT_HEADERS, points::limit_headers(probe).await)?;
    add(points::THROTTLING, points::throttling(probe, provoke).await)
}
