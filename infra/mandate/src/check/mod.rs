//! `mandate check`: tries on a real tenant what Microsoft's documents leave open.
//!
//! It asks Microsoft directly, with a token from the token route. It reads only, and its table names no tenant, no
//! person and no incident, so that it can be pasted into an issue.

mod points;
mod probe;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{clock::Clock, http::HttpClient, microsoft::IncidentApi, text::Secret};

use crate::{
    args::Check,
    commands::{Session, all_pages, text, token},
    output::{Field, Mood, Rows},
    problem::Problem,
};
use points::{Finding, SAME_IDS, Verdict};
use probe::Probe;

/// The longest wait for a pending tenant.
const CONSENT_TIMEOUT: SignedDuration = SignedDuration::from_mins(30);

/// The interval in which a pending tenant is looked at.
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);

impl Session {
    pub(crate) async fn check(&self, args: &Check) -> Result<(), Problem> {
        let tenant = match args.tenant {
            Some(tenant) => self.api.get(&["tenants", &tenant.to_string()], &[]).await?,
            None => self.fullest_tenant().await?,
        };
        let (tenant, consent) = self.consent_time(tenant).await?;
        let mut findings = vec![consent];
        let http = HttpClient::with_read_timeout(Duration::from_mins(1))
            .map_err(|error| Problem::new("internal", error.to_string()))?;
        let mut probes = Vec::new();
        for api in IncidentApi::ALL {
            match self.probe(args, &http, &tenant, api).await? {
                Ok((probe, finding)) => {
                    findings.push(finding);
                    probes.push(probe);
                }
                Err(finding) => findings.push(finding),
            }
        }
        for probe in &probes {
            self.out.progress(format_args!("asking the {} API", probe.api));
            findings.extend(every_point(probe, args.provoke_throttling).await);
        }
        findings.push(match &probes[..] {
            [graph, defender] => points::same_ids(graph, defender)
                .await
                .unwrap_or_else(|problem| Finding::not_tried(SAME_IDS, "both", problem.detail)),
            _ => Finding::not_tried(SAME_IDS, "both", "the consent covers one API"),
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

    /// Waits for a pending tenant and measures how long its consent takes. An active one shows it no more.
    async fn consent_time(&self, mut tenant: Value) -> Result<(Value, Finding), Problem> {
        let (point, clock) = ("from consent to active", Clock::system());
        if tenant["status"] != "pending" {
            return Ok((tenant, Finding::not_tried(point, "–", "only a pending tenant shows it")));
        }
        let consented: Timestamp = text(&tenant, "consented_at").parse().unwrap_or_else(|_| clock.now());
        let started = clock.now();
        while tenant["status"] == "pending" && clock.now().duration_since(started) < CONSENT_TIMEOUT {
            self.out.progress("waiting for the tenant to become active");
            tokio::time::sleep(CONSENT_INTERVAL).await;
            tenant = self.api.get(&["tenants", text(&tenant, "tenant_id")], &[]).await?;
        }
        let seconds = clock.now().duration_since(consented).as_secs();
        let found = format!("{} after {}", text(&tenant, "status"), crate::time::seconds(seconds));
        let verdict = if tenant["status"] == "active" { Verdict::Seen } else { Verdict::Differs };
        Ok((tenant, Finding { point, api: "–", expected: "active within 30 minutes", found, verdict }))
    }

    /// A probe of one API with a fresh token, or why there is none.
    async fn probe<'a>(
        &self,
        args: &Check,
        http: &'a HttpClient,
        tenant: &Value,
        api: IncidentApi,
    ) -> Result<Result<(Probe<'a>, Finding), Finding>, Problem> {
        let issued = token::issue(&self.api, text(tenant, "tenant_id"), Some(api.as_str())).await;
        let mut issued = match issued {
            Ok(issued) => issued,
            Err(problem) if problem.code == "forbidden" || problem.code == "unauthorized_caller" => {
                return Err(problem);
            }
            Err(problem) => {
                let why = format!("no token: {}", problem.reason.unwrap_or(problem.code));
                return Ok(Err(Finding::not_tried("access token", api.as_str(), why)));
            }
        };
        let token = Secret::new(issued["access_token"].as_str().unwrap_or_default().to_owned());
        let finding = points::token(&token::claims_of(&mut issued), api);
        let named = match api {
            IncidentApi::Graph => args.graph.as_deref(),
            IncidentApi::Defender => args.defender.as_deref(),
        };
        let address = named.map_or_else(|| self.default_host(api), str::to_owned);
        let endpoint = address.trim_end_matches('/').parse().map_err(|_| {
            Problem::new("usage", "--graph and --defender must be https://HOST, or http on this machine.")
        })?;
        Ok(Ok((Probe { http, endpoint, api, token }, finding)))
    }

    /// Microsoft's own host, or the simulator's beside a local stack.
    fn default_host(&self, api: IncidentApi) -> String {
        match (self.api.local_port(), api) {
            (Some(port), IncidentApi::Graph) => format!("http://127.0.0.1:{}", port.saturating_add(2)),
            (Some(port), IncidentApi::Defender) => format!("http://127.0.0.1:{}", port.saturating_add(3)),
            (None, IncidentApi::Graph) => "https://graph.microsoft.com".to_owned(),
            (None, IncidentApi::Defender) => "https://api.security.microsoft.com".to_owned(),
        }
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

/// The findings of one API. Where it stops responding the rest is not tried, and what was found stays.
async fn every_point(probe: &Probe<'_>, provoke: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(problem) = try_points(probe, provoke, &mut findings).await {
        findings.push(Finding::not_tried("all further points", probe.api.as_str(), problem.detail));
    }
    findings
}

async fn try_points(probe: &Probe<'_>, provoke: bool, findings: &mut Vec<Finding>) -> Result<(), Problem> {
    findings.push(points::largest_page(probe).await?);
    findings.push(points::two_sided_filter(probe).await?);
    findings.extend(points::order(probe).await?);
    findings.push(points::next_links(probe).await?);
    findings.push(points::hunting(probe).await?);
    findings.push(points::determinations(probe).await?);
    findings.extend(points::throttling(probe, provoke).await?);
    Ok(())
}
