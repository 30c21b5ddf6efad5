//! The open points that a program can try: one function for each.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::microsoft::IncidentApi;

use super::probe::{Probe, Probed, word};
use crate::{problem::Problem, time::timestamp};

/// The name of the point that needs both APIs.
pub(super) const SAME_IDS: &str = "one id on both APIs";

/// The most pages that a check follows.
const MAX_PAGES: usize = 6;

/// The most requests that provoke a 429.
const MAX_PROVOKING_REQUESTS: usize = 120;

/// The relation of a finding to what the code assumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As the code assumes.
    AsExpected,
    /// Not as the code assumes: worth an issue.
    Differs,
    /// An observation that the code does not depend on.
    Seen,
    /// The tenant or the consent does not allow it.
    NotTried,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::AsExpected => "as_expected",
            Self::Differs => "differs",
            Self::Seen => "seen",
            Self::NotTried => "not_tried",
        }
    }
}

/// The result of one point.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) point: &'static str,
    pub(super) api: &'static str,
    pub(super) expected: &'static str,
    pub(super) found: String,
    pub(super) verdict: Verdict,
}

impl Finding {
    pub(super) fn not_tried(point: &'static str, api: &'static str, why: impl Into<String>) -> Self {
        Self { point, api, expected: "–", found: why.into(), verdict: Verdict::NotTried }
    }

    fn judged(point: &'static str, api: IncidentApi, expected: &'static str, found: String, holds: bool) -> Self {
        let verdict = if holds { Verdict::AsExpected } else { Verdict::Differs };
        Self { point, api: api.as_str(), expected, found, verdict }
    }

    fn seen(point: &'static str, api: IncidentApi, found: String) -> Self {
        Self { point, api: api.as_str(), expected: "–", found, verdict: Verdict::Seen }
    }
}

/// The sizes of a page that the API accepts, and the number of rows that it then sends.
pub(super) async fn largest_page(probe: &Probe<'_>) -> Result<Finding, Problem> {
    let expected = if probe.api == IncidentApi::Graph { "50 rows" } else { "100 rows" };
    let (mut outcomes, mut largest) = (Vec::new(), 0);
    for top in [50, 51, 100, 101, 1000] {
        let probed = probe.list_rows(&[("top", &top.to_string())]).await?;
        if probed.is_success() {
            largest = top;
            outcomes.push(format!("{top}: {} rows", probed.rows().len()));
        } else {
            outcomes.push(format!("{top}: {}", probed.outcome()));
        }
    }
    let holds = largest == probe.api.largest_page();
    Ok(Finding::judged("largest page", probe.api, expected, outcomes.join(", "), holds))
}

/// A filter by the time of last update, from both sides.
pub(super) async fn two_sided_filter(probe: &Probe<'_>) -> Result<Finding, Problem> {
    let point = "two-sided filter";
    let first = probe.list_rows(&[("top", "20")]).await?;
    let times: Vec<_> = first.rows().iter().filter_map(|row| updated(row, probe.api)).collect();
    let Some(from) = times.get(times.len() / 2).copied() else {
        return Ok(Finding::not_tried(point, probe.api.as_str(), "the tenant has no incident"));
    };
    let member = probe.api.last_update_member();
    let from = Timestamp::from_second(from.as_second()).unwrap_or(from);
    let to = from + SignedDuration::from_hours(1);
    let filter = format!("{member} ge {from} and {member} lt {to}");
    let probed = probe.list_rows(&[("filter", &filter), ("top", "50")]).await?;
    if !probed.is_success() {
        return Ok(Finding::judged(point, probe.api, "holds", probed.outcome(), false));
    }
    let outside =
        probed.rows().iter().filter_map(|row| updated(row, probe.api)).filter(|at| *at < from || *at >= to).count();
    let found = format!("{} rows, {outside} outside", probed.rows().len());
    Ok(Finding::judged(point, probe.api, "holds", found, outside == 0 && !probed.rows().is_empty()))
}

/// The order of a list, by default and as requested.
pub(super) async fn order(probe: &Probe<'_>) -> Result<Vec<Finding>, Problem> {
    let first = probe.list_rows(&[("top", "50")]).await?;
    let plain = Finding::seen("order of a list", probe.api, order_of(&first, probe.api));
    let by = format!("{} asc", probe.api.last_update_member());
    let sorted = probe.list_rows(&[("orderby", &by), ("top", "50")]).await?;
    let found = if sorted.is_success() { order_of(&sorted, probe.api) } else { sorted.outcome() };
    Ok(vec![plain, Finding::seen("$orderby", probe.api, found)])
}

fn order_of(probed: &Probed, api: IncidentApi) -> String {
    let times: Vec<_> = probed.rows().iter().filter_map(|row| updated(row, api)).collect();
    let sorted = |holds: fn(&[Timestamp]) -> bool| times.windows(2).all(holds);
    let order = match times.len() {
        0 | 1 => "too few rows to see it",
        _ if sorted(|pair| pair[0] <= pair[1]) => "last update, ascending",
        _ if sorted(|pair| pair[0] >= pair[1]) => "last update, descending",
        _ => "not by last update",
    };
    format!("{order} ({} rows)", times.len())
}

/// The next links of lists: their form, and pages that have one and no row.
pub(super) async fn next_links(probe: &Probe<'_>) -> Result<Finding, Problem> {
    let point = "next link";
    let mut probed = probe.list(&[("top", "1")]).await?;
    let (mut pages, mut empty, mut form) = (1, 0, "none");
    while let Some(link) = probed.next_link().map(str::to_owned) {
        form = if link.contains("skiptoken") {
            "$skiptoken"
        } else if link.contains("skip") {
            "$skip"
        } else {
            "another form"
        };
        empty += usize::from(probed.rows().is_empty());
        if pages == MAX_PAGES {
            break;
        }
        match probe.follow(&link).await? {
            Some(next) if next.is_success() => probed = next,
            Some(next) => {
                return Ok(Finding::judged(
                    point,
                    probe.api,
                    "works",
                    format!("{form}, then {}", next.outcome()),
                    false,
                ));
            }
            None => {
                return Ok(Finding::judged(point, probe.api, "own host", format!("{form}, to another host"), false));
            }
        }
        pages += 1;
    }
    Ok(Finding::seen(point, probe.api, format!("{form}; {pages} pages of 1 row, {empty} of them empty with a link")))
}

/// The form of a 429. It is only provoked on request, because the tenant's feed waits for it, too.
pub(super) async fn throttling(probe: &Probe<'_>, provoke: bool) -> Result<Vec<Finding>, Problem> {
    let point = "429";
    let first = probe.list(&[("top", "1")]).await?;
    let names = first.limit_headers();
    let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let headers = Finding::seen("headers on limits", probe.api, found);
    if !provoke {
        return Ok(vec![headers, Finding::not_tried(point, probe.api.as_str(), "--provoke-throttling tries it")]);
    }
    for sent in 2..=MAX_PROVOKING_REQUESTS {
        let probed = probe.list(&[("top", "1")]).await?;
        if probed.status == 429 {
            let body = if probed.body["error"]["message"].as_str().is_some_and(|text| text.contains("second")) {
                "the body names the wait"
            } else {
                "the body names no wait"
            };
            let found = format!("at request {sent}: {}, {}, {body}", probed.outcome(), probed.retry_after());
            return Ok(vec![headers, Finding::seen(point, probe.api, found)]);
        }
    }
    Ok(vec![headers, Finding::seen(point, probe.api, format!("none in {MAX_PROVOKING_REQUESTS} requests"))])
}

/// The members of a hunting result and the words for its types.
pub(super) async fn hunting(probe: &Probe<'_>) -> Result<Finding, Problem> {
    let (point, expected) = ("hunting's columns", "schema of name and type, results");
    let probed = probe.hunt("AlertInfo | take 1").await?;
    if probed.status == 403 {
        return Ok(Finding::not_tried(point, probe.api.as_str(), "the consent has no role for hunting"));
    }
    if !probed.is_success() {
        return Ok(Finding::judged(point, probe.api, expected, probed.outcome(), false));
    }
    let body = probed.body.as_object();
    let member = |name: &str| body.and_then(|body| body.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    let column = member("schema").and_then(|(_, schema)| schema.as_array()?.first()?.as_object().cloned());
    let names: Vec<_> = column.iter().flatten().filter_map(|(name, _)| word(name)).collect();
    let spelled: Vec<_> =
        ["schema", "results"].into_iter().filter_map(|name| member(name).map(|(key, _)| key.as_str())).collect();
    let holds = spelled.len() == 2 && (names.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case("name")));
    let found = format!(
        "{}; a column has {}",
        spelled.join(", "),
        if names.is_empty() { "–".to_owned() } else { names.join(", ") }
    );
    Ok(Finding::judged(point, probe.api, expected, found, holds))
}

/// The spelling of determinations in the incidents that are there.
pub(super) async fn determinations(probe: &Probe<'_>) -> Result<Finding, Problem> {
    let probed = probe.list_rows(&[("top", &probe.api.largest_page().to_string())]).await?;
    let words: BTreeSet<_> = probed.rows().iter().filter_map(|row| word(row["determination"].as_str()?)).collect();
    let found =
        if words.is_empty() { "none seen".to_owned() } else { words.into_iter().collect::<Vec<_>>().join(", ") };
    Ok(Finding::seen("determinations", probe.api, found))
}

/// The ids of incidents, which should be the same on both APIs.
pub(super) async fn same_ids(graph: &Probe<'_>, defender: &Probe<'_>) -> Result<Finding, Problem> {
    let (mut sets, point) = (Vec::new(), SAME_IDS);
    for (probe, member) in [(graph, "id"), (defender, "incidentId")] {
        let probed = probe.list_rows(&[("top", "50")]).await?;
        let ids =
            probed.rows().iter().map(|row| row[member].as_str().map_or_else(|| row[member].to_string(), str::to_owned));
        sets.push(ids.collect::<BTreeSet<_>>());
    }
    let (graph_ids, defender_ids) = (&sets[0], &sets[1]);
    let fewer = graph_ids.len().min(defender_ids.len());
    if fewer == 0 {
        return Ok(Finding::not_tried(point, "both", "one of them lists no incident"));
    }
    let common = graph_ids.intersection(defender_ids).count();
    // Each lists its own 50: an id may be missing because the orders differ.
    let verdict = if common * 2 >= fewer { Verdict::AsExpected } else { Verdict::Differs };
    Ok(Finding {
        point,
        api: "both",
        expected: "the same",
        found: format!("{common} of {fewer} occur in both"),
        verdict,
    })
}

/// The claims of the token: audience, version, issuer, and the app's proof of itself.
pub(super) fn token(claims: &Value, api: IncidentApi) -> Finding {
    let text = |name: &str| claims[name].as_str().unwrap_or("–").to_owned();
    let issuer = url::Url::parse(&text("iss")).ok().and_then(|url| url.host_str().map(str::to_owned));
    let proof = match claims["appidacr"].as_str().or_else(|| claims["azpacr"].as_str()) {
        Some("1") => "client secret",
        Some("2") => "client assertion (certificate, KMS or federated)",
        _ => "not said",
    };
    if claims["opaque"] == true {
        return Finding::seen("access token", api, "it cannot be read".to_owned());
    }
    let audience = text("aud");
    let found =
        format!("aud {audience}, ver {}, iss {}, app proved by {proof}", text("ver"), issuer.unwrap_or_default());
    let known = ["microsoft", "00000003-0000-0000-c000-000000000000", "8ee8fdad-f234-4243-8f3b-15c294843740"];
    Finding::judged(
        "access token",
        api,
        "an audience of Microsoft",
        found,
        known.iter().any(|part| audience.contains(part)),
    )
}

fn updated(row: &Value, api: IncidentApi) -> Option<Timestamp> {
    timestamp(row[api.last_update_member()].as_str()?)
}
