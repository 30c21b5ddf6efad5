//! The open points that a program can try: one function for each.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::{
    http::Endpoint,
    microsoft::{Cloud, IncidentApi},
    tenant::TenantId,
};

use super::probe::{Probe, Probed, Unjudged, word};
use crate::time::{seconds, timestamp};

const CONSENT_TIME: &str = "from consent to active";
pub(super) const LARGEST_PAGE: &str = "largest page";
pub(super) const TWO_SIDED_FILTER: &str = "two-sided filter";
pub(super) const DEFAULT_ORDER: &str = "order of a list";
pub(super) const ORDERBY: &str = "$orderby";
pub(super) const NEXT_LINK: &str = "next link";
pub(super) const HUNTING: &str = "hunting's columns";
pub(super) const DETERMINATIONS: &str = "determinations";
pub(super) const LIMIT_HEADERS: &str = "headers on limits";
pub(super) const THROTTLING: &str = "429";
/// The point that needs both APIs.
pub(super) const SAME_IDS: &str = "one id on both APIs";
pub(super) const ACCESS_TOKEN: &str = "access token";

/// The clouds whose hosts and audiences are known.
const CLOUDS: [Cloud; 4] = [Cloud::Commercial, Cloud::Gcc, Cloud::GccHigh, Cloud::Dod];

/// The time after which a pending tenant is paused.
const PENDING_TIME: SignedDuration = SignedDuration::from_mins(30);

/// The most pages that a check follows.
const MAX_PAGES: usize = 12;

/// The most incidents that are compared between the APIs.
const MAX_COMPARED_IDS: usize = 5;

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

/// One page of a list, as the server made it.
struct Page {
    top: usize,
    rows: usize,
    has_link: bool,
}

/// The sizes of a page that the API accepts, and the number of rows that it then sends.
pub(super) async fn largest_page(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let expected = if probe.api == IncidentApi::Graph { "50 rows" } else { "100 rows" };
    let (mut outcomes, mut pages) = (Vec::new(), Vec::new());
    for top in [50, 51, 100, 101, 1000] {
        let probed = probe.list_rows(&[("top", &top.to_string())]).await?;
        if !probed.is_success() {
            outcomes.push(format!("{top}: {}", probed.outcome()));
            continue;
        }
        let page = Page { top, rows: probed.rows().len(), has_link: probed.next_link().is_some() };
        let more = if page.rows < top && page.has_link { " and a next link" } else { "" };
        outcomes.push(format!("{top}: {} rows{more}", page.rows));
        pages.push(page);
    }
    let without = probe.list_rows(&[]).await?;
    if without.is_success() {
        outcomes.push(format!("no $top: {} rows", without.rows().len()));
    } else {
        outcomes.push(format!("no $top: {}", without.outcome()));
    }
    let most = pages.iter().map(|page| page.rows).max().unwrap_or_default();
    // The list seems to end there. A cap without a next link would hide the rest.
    let seems_to_end = pages.iter().any(|page| page.rows == most && page.rows < page.top && !page.has_link);
    let hides = seems_to_end && {
        let next = probe.list_rows(&[("skip", &most.to_string()), ("top", "1")]).await?;
        next.is_success() && !next.rows().is_empty()
    };
    if hides {
        outcomes.push("further rows without a next link".to_owned());
    }
    let is_cut = |page: &Page| page.rows < page.top && (page.has_link || page.rows < most || hides);
    let accepted = pages.iter().map(|page| page.top).max();
    let holds = accepted == usize::try_from(probe.api.largest_page()).ok() && !pages.iter().any(is_cut);
    Ok(Finding::judged(LARGEST_PAGE, probe.api, expected, outcomes.join(", "), holds))
}

/// A filter by the time of last update, from both sides: rows of the list are before and behind its window.
pub(super) async fn two_sided_filter(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let first = probe.read_rows("20").await?;
    let seconds: BTreeSet<_> =
        first.rows().iter().filter_map(|row| updated(row, probe.api)).map(Timestamp::as_second).collect();
    let seconds: Vec<_> = seconds.into_iter().collect();
    let (Some(from), Some(to), 3..) = (seconds.get(seconds.len() / 2), seconds.last(), seconds.len()) else {
        return Err(Unjudged::Point("the tenant has too few incidents of different times".to_owned()));
    };
    let (from, to) = (at(*from), at(*to));
    let probed = probe.list_rows(&[("filter", &between(probe.api, from, to)), ("top", "50")]).await?;
    if !probed.is_success() {
        return Ok(Finding::judged(TWO_SIDED_FILTER, probe.api, "holds", probed.outcome(), false));
    }
    let outside =
        probed.rows().iter().filter_map(|row| updated(row, probe.api)).filter(|at| *at < from || *at >= to).count();
    let found = format!("{} rows, {outside} outside", probed.rows().len());
    let holds = outside == 0 && !probed.rows().is_empty();
    Ok(Finding::judged(TWO_SIDED_FILTER, probe.api, "holds", found, holds))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

fn between(api: IncidentApi, from: Timestamp, to: Timestamp) -> String {
    let member = api.last_update_member();
    format!("{member} ge {from} and {member} lt {to}")
}

/// The order of a list by default.
pub(super) async fn default_order(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let found = order_of(&probe.read_rows("50").await?, probe.api)?;
    Ok(Finding::seen(DEFAULT_ORDER, probe.api, found))
}

/// The order of a list as requested, or its refusal.
pub(super) async fn orderby(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let by = format!("{} asc", probe.api.last_update_member());
    let sorted = probe.list_rows(&[("orderby", &by), ("top", "50")]).await?;
    let found = if sorted.is_success() { order_of(&sorted, probe.api)? } else { sorted.outcome() };
    Ok(Finding::seen(ORDERBY, probe.api, found))
}

fn order_of(probed: &Probed, api: IncidentApi) -> Result<String, Unjudged> {
    let time = |row: &Value, member: &str| timestamp(row[member].as_str()?);
    let times = |row| Some((time(row, api.last_update_member())?, time(row, api.created_member())?));
    let (updates, creations): (Vec<_>, Vec<_>) = probed.rows().iter().filter_map(times).unzip();
    if updates.iter().collect::<BTreeSet<_>>().len() < 2 {
        return Err(Unjudged::Point("too few rows of different times to see it".to_owned()));
    }
    let order = if updates.is_sorted() {
        "last update, ascending"
    } else if updates.iter().rev().is_sorted() {
        "last update, descending"
    } else if creations.is_sorted() {
        "creation, ascending"
    } else if creations.iter().rev().is_sorted() {
        "creation, descending"
    } else {
        "neither by last update nor by creation"
    };
    Ok(format!("{order} ({} rows)", updates.len()))
}

/// The next links of a short list, page by page to its end: their form, and pages without rows.
pub(super) async fn next_links(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let differs = |expected, found| Ok(Finding::judged(NEXT_LINK, probe.api, expected, found, false));
    let narrow = narrow_filter(&probe.read_rows("50").await?, probe.api);
    let mut options: Vec<_> = narrow.iter().map(|filter| ("filter", filter.as_str())).collect();
    options.push(("top", "1"));
    let mut probed = probe.list(&options).await?;
    if !probed.is_success() {
        probed = probe.read_rows("1").await?;
    }
    let (mut rows, mut pages, mut empty, mut form) = (probed.rows().len(), 1, 0, "none");
    let mut links = BTreeSet::new();
    while let Some(link) = probed.next_link().map(str::to_owned) {
        form = if link.contains("skiptoken") {
            "$skiptoken"
        } else if link.contains("skip") {
            "$skip"
        } else {
            "another form"
        };
        empty += usize::from(probed.rows().is_empty());
        if !links.insert(link.clone()) {
            return differs("ends", format!("{form}, to a page that was there before"));
        }
        if pages == MAX_PAGES {
            break;
        }
        probed = match probe.follow(&link).await? {
            Some(next) if next.is_success() => next,
            Some(next) => return differs("works", format!("{form}, then {}", next.outcome())),
            None => return differs("own host", format!("{form}, to another host")),
        };
        pages += 1;
        rows += probed.rows().len();
    }
    let end = match (probed.next_link(), probed.rows()) {
        (Some(_), _) => "the end was not reached",
        (None, []) if pages > 1 => "the last page has no row",
        _ => "the last page has rows",
    };
    let found = format!("{form}; {rows} rows on {pages} pages, {empty} of them empty with a link; {end}");
    Ok(Finding::seen(NEXT_LINK, probe.api, found))
}

/// A filter that three of these rows pass and few others: the shortest time that has three last updates.
fn narrow_filter(probed: &Probed, api: IncidentApi) -> Option<String> {
    let mut seconds: Vec<_> =
        probed.rows().iter().filter_map(|row| updated(row, api)).map(Timestamp::as_second).collect();
    seconds.sort_unstable();
    let shortest = seconds.windows(3).min_by_key(|three| three[2] - three[0])?;
    Some(between(api, at(shortest[0]), at(shortest[2] + 1)))
}

/// The headers that speak of limits.
pub(super) async fn limit_headers(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let probed = probe.list(&[("top", "1")]).await?;
    let names = probed.limit_headers();
    let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Ok(Finding::seen(LIMIT_HEADERS, probe.api, found))
}

/// The form of a 429. It is only provoked on request, because the tenant's feed waits for it, too.
pub(super) async fn throttling(probe: &Probe<'_>, provoke: bool) -> Result<Finding, Unjudged> {
    if !provoke {
        return Err(Unjudged::Point("--provoke-throttling tries it".to_owned()));
    }
    for sent in 1..=MAX_PROVOKING_REQUESTS {
        let probed = probe.list_at_once(&[("top", "1")]).await?;
        if probed.status == 429 {
            let body = if probed.body["error"]["message"].as_str().is_some_and(|text| text.contains("second")) {
                "the body names the wait"
            } else {
                "the body names no wait"
            };
            let found = format!("at request {sent}: {}, {}, {body}", probed.outcome(), probed.retry_after());
            return Ok(Finding::seen(THROTTLING, probe.api, found));
        }
        if !probed.is_success() {
            return Err(Unjudged::Point(format!("at request {sent}: {}", probed.outcome())));
        }
    }
    Ok(Finding::seen(THROTTLING, probe.api, format!("none in {MAX_PROVOKING_REQUESTS} requests")))
}

/// The members of a hunting result and the words for its types.
pub(super) async fn hunting(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let expected = "schema of name and type, results";
    let probed = probe.hunt("AlertInfo | take 1").await?;
    if !probed.is_success() {
        return Ok(Finding::judged(HUNTING, probe.api, expected, probed.outcome(), false));
    }
    let body = probed.body.as_object();
    let member = |name: &str| body.and_then(|body| body.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    let column = member("schema").and_then(|(_, schema)| schema.as_array()?.first()?.as_object().cloned());
    let names: Vec<_> = column.iter().flatten().filter_map(|(name, _)| word(name)).collect();
    let spelled: Vec<_> =
        ["schema", "results"].into_iter().filter_map(|name| member(name).map(|(key, _)| key.as_str())).collect();
    let has = |wanted: &str| names.iter().any(|name| name.eq_ignore_ascii_case(wanted));
    let column = if names.is_empty() { "no column".to_owned() } else { format!("a column has {}", names.join(", ")) };
    let holds = spelled.len() == 2 && has("name") && has("type");
    Ok(Finding::judged(HUNTING, probe.api, expected, format!("{}; {column}", spelled.join(", ")), holds))
}

/// The spelling of determinations in the incidents that are there.
pub(super) async fn determinations(probe: &Probe<'_>) -> Result<Finding, Unjudged> {
    let probed = probe.read_rows(&probe.api.largest_page().to_string()).await?;
    let words: BTreeSet<_> = probed.rows().iter().filter_map(|row| word(row["determination"].as_str()?)).collect();
    let found =
        if words.is_empty() { "none seen".to_owned() } else { words.into_iter().collect::<Vec<_>>().join(", ") };
    Ok(Finding::seen(DETERMINATIONS, probe.api, found))
}

/// The ids of incidents, which should be the same on both APIs: some that Graph lists are read through Defender.
pub(super) async fn same_ids(graph: &Probe<'_>, defender: &Probe<'_>) -> Result<Finding, Unjudged> {
    let listed = graph.read_rows("50").await?;
    let created =
        |row: &Value, api: IncidentApi| timestamp(row[api.created_member()].as_str()?).map(Timestamp::as_second);
    let known: Vec<_> = listed
        .rows()
        .iter()
        .filter_map(|row| Some((row["id"].as_str()?, created(row, graph.api)?)))
        .filter(|(id, _)| id.bytes().all(|byte| byte.is_ascii_digit()))
        .take(MAX_COMPARED_IDS)
        .collect();
    let mut common = 0;
    for (id, at) in &known {
        let other = defender.read(id).await?;
        common += usize::from(other.is_success() && created(&other.body, defender.api) == Some(*at));
    }
    if known.is_empty() {
        return Err(Unjudged::Point("Graph lists no incident".to_owned()));
    }
    let verdict = if common == known.len() { Verdict::AsExpected } else { Verdict::Differs };
    let found = format!("{common} of {} have the same id and time of creation", known.len());
    Ok(Finding { point: SAME_IDS, api: "both", expected: "the same", found, verdict })
}

/// The time from the last consent until the tenant was active, from a Tenant with its history.
pub(super) fn consent_time(tenant: &Value) -> Finding {
    let not_tried = |why: &str| Finding::not_tried(CONSENT_TIME, "–", why);
    let finding = |found: String, holds| {
        let verdict = if holds { Verdict::AsExpected } else { Verdict::Differs };
        Finding { point: CONSENT_TIME, api: "–", expected: "active within 30 minutes", found, verdict }
    };
    match (tenant["status"].as_str(), tenant["reason"].as_str()) {
        (Some("pending"), Some("operator")) => return not_tried("it waits for the operator: `mandate resume`"),
        (Some("pending"), _) => return finding("pending after 30 minutes".to_owned(), false),
        _ => {}
    }
    // The latest first: the last state that followed a pending one, and the pending ones before it.
    let history = tenant["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_pending = |past: &Value| past["status"] == "pending";
    let end = history.windows(2).position(|pair| !is_pending(&pair[0]) && is_pending(&pair[1]));
    let end = end.map(|end| history[end..].split_at(1));
    let Some(([ended], before)) = end else { return not_tried("its history does not reach back to a consent") };
    if before.iter().take_while(|past| is_pending(past)).any(|past| past["reason"] == "operator") {
        return not_tried("it waited for the operator in between");
    }
    let time = |value: &Value| value.as_str().and_then(timestamp);
    let (Some(consented), Some(at)) = (time(&tenant["consented_at"]), time(&ended["at"])) else {
        return not_tried("it names no time of its consent");
    };
    if at < consented {
        return not_tried("it was active when the consent was renewed");
    }
    let (status, after) = (ended["status"].as_str().and_then(word).unwrap_or("–"), at.duration_since(consented));
    finding(format!("{status} after {}", seconds(after.as_secs())), status == "active" && after <= PENDING_TIME)
}

/// The claims of the token: tenant, audience, version, issuer, and the app's proof of itself.
pub(super) fn token(claims: &Value, api: IncidentApi, tenant: &str) -> Finding {
    if claims["opaque"] == true {
        return Finding::seen(ACCESS_TOKEN, api, "it cannot be read".to_owned());
    }
    let text = |name: &str| claims[name].as_str().unwrap_or_default();
    let audience = text("aud");
    // An audience of somebody else may be the id or the address of a customer's app.
    let (is_expected, audience) = match audience {
        _ if cloud_of(audience, api).is_some() || is_application_id(audience, api) => (true, audience),
        "" => (false, "not said"),
        _ => (false, "another one"),
    };
    let issuer = url::Url::parse(text("iss")).ok().and_then(|url| url.host_str().map(str::to_owned));
    let issuer = match issuer.as_deref() {
        Some(host @ ("sts.windows.net" | "login.microsoftonline.com" | "login.microsoftonline.us")) => host,
        Some(_) => "another host",
        None => "not said",
    };
    let proof = match claims["appidacr"].as_str().or_else(|| claims["azpacr"].as_str()) {
        Some("1") => "a client secret",
        Some("2") => "a client assertion (the claim does not tell certificate, KMS and federation apart)",
        _ => "a credential that no claim tells",
    };
    let is_of_tenant = TenantId::from_guid(text("tid")).is_ok_and(|tid| tid.to_string() == tenant);
    let tid = if is_of_tenant { "the tenant" } else { "another tenant" };
    let version = word(text("ver")).unwrap_or("not said");
    let found = format!("tid {tid}, aud {audience}, ver {version}, iss {issuer}, app proved by {proof}");
    Finding::judged(ACCESS_TOKEN, api, "this tenant and an audience of this API", found, is_expected && is_of_tenant)
}

/// The host of Microsoft that a token is for. A token whose audience names no cloud has none, because the host of another
/// cloud must not get it.
pub(super) fn host(claims: &Value, api: IncidentApi) -> Option<Endpoint> {
    let cloud = cloud_of(claims["aud"].as_str()?, api)?;
    Some(cloud.endpoints().of(api).clone())
}

fn cloud_of(audience: &str, api: IncidentApi) -> Option<Cloud> {
    let audience = audience.strip_suffix('/').unwrap_or(audience);
    CLOUDS.into_iter().find(|cloud| cloud.resource(api) == audience)
}

fn is_application_id(audience: &str, api: IncidentApi) -> bool {
    audience.eq_ignore_ascii_case(Cloud::Commercial.resource_application_id(api))
}

fn updated(row: &Value, api: IncidentApi) -> Option<Timestamp> {
    timestamp(row[api.last_update_member()].as_str()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TENANT: &str = "c0c0a000-1111-4111-8111-c0c0a0000001";

    #[test]
    fn time_of_a_consent_is_in_the_history() {
        let past = |minute: u32, status: &str, reason: Option<&str>| json!({"at": format!("2026-11-22T08:{minute:02}:00Z"), "status": status, "reason": reason});
        let found = |status: &str, reason: Option<&str>, mut history: Vec<Value>| {
            history.reverse();
            let finding = consent_time(&json!({
                "status": status, "reason": reason, "consented_at": "2026-11-22T08:10:00Z", "history": history,
            }));
            (finding.verdict, finding.found)
        };
        let waited = || vec![past(1, "paused", Some("consent_missing")), past(10, "pending", Some("role_missing"))];
        let then = |more: Vec<Value>| waited().into_iter().chain(more).collect::<Vec<_>>();
        let active = |minute| past(minute, "active", None);
        assert_eq!(found("active", None, then(vec![active(12)])), (Verdict::AsExpected, "active after 2m 0s".into()));
        let later = then(vec![active(12), past(20, "paused", Some("operator")), active(40)]);
        assert_eq!(found("active", None, later), (Verdict::AsExpected, "active after 2m 0s".into()));
        assert_eq!(found("active", None, then(vec![active(50)])), (Verdict::Differs, "active after 40m 0s".into()));
        let refused = then(vec![past(40, "paused", Some("role_missing"))]);
        assert_eq!(found("paused", Some("role_missing"), refused).0, Verdict::Differs);
        assert_eq!(found("pending", Some("role_missing"), waited()).0, Verdict::Differs);
        for (status, reason, history) in [
            ("pending", Some("operator"), vec![past(10, "pending", Some("operator"))]),
            ("active", None, then(vec![past(11, "pending", Some("operator")), active(12)])),
            ("active", None, vec![active(40)]),
            ("active", None, vec![past(5, "pending", None), active(6)]),
            ("active", None, vec![]),
        ] {
            assert_eq!(found(status, reason, history.clone()).0, Verdict::NotTried, "{history:?}");
        }
    }

    #[test]
    fn token_is_judged_by_its_tenant_and_its_audience() {
        let (graph, defender) = (IncidentApi::Graph, IncidentApi::Defender);
        for (api, audience, host_of_it, verdict) in [
            (graph, "https://graph.microsoft.com", Some("https://graph.microsoft.com/"), Verdict::AsExpected),
            (graph, "https://graph.microsoft.com/", Some("https://graph.microsoft.com/"), Verdict::AsExpected),
            (graph, "https://graph.microsoft.us", Some("https://graph.microsoft.us/"), Verdict::AsExpected),
            (graph, "https://dod-graph.microsoft.us", Some("https://dod-graph.microsoft.us/"), Verdict::AsExpected),
            (graph, "00000003-0000-0000-c000-000000000000", None, Verdict::AsExpected),
            (graph, "https://api.security.microsoft.com", None, Verdict::Differs),
            (graph, "https://graph.microsoft.com.evil.example", None, Verdict::Differs),
            (graph, "8ee8fdad-f234-4243-8f3b-15c294843740", None, Verdict::Differs),
            (
                defender,
                "https://api.security.microsoft.com",
                Some("https://api.security.microsoft.com/"),
                Verdict::AsExpected,
            ),
            (
                defender,
                "https://api-gov.security.microsoft.us",
                Some("https://api-gov.security.microsoft.us/"),
                Verdict::AsExpected,
            ),
            (defender, "8ee8fdad-f234-4243-8f3b-15c294843740", None, Verdict::AsExpected),
            (defender, "https://graph.microsoft.com", None, Verdict::Differs),
            (defender, "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab", None, Verdict::Differs),
        ] {
            let claims = json!({"aud": audience, "tid": TENANT.to_uppercase(), "ver": "1.0", "appidacr": "2"});
            let finding = token(&claims, api, TENANT);
            let host = host(&claims, api).map(|host| host.join("/").to_string());
            assert_eq!((finding.verdict, host.as_deref()), (verdict, host_of_it), "{api} {audience}");
            let is_shown = finding.found.contains(audience);
            assert_eq!(is_shown, verdict == Verdict::AsExpected, "{}", finding.found);
            assert!(finding.found.contains("does not tell certificate, KMS and federation apart"), "{}", finding.found);
        }
        let foreign = json!({
            "aud": "https://graph.microsoft.com", "tid": "fab00000-2222-4222-8222-fab000000002", "ver": "adele@contoso.example",
            "iss": "https://sts.contoso.example/x",
        });
        let finding = token(&foreign, graph, TENANT);
        assert_eq!(finding.verdict, Verdict::Differs);
        let found = "tid another tenant, aud https://graph.microsoft.com, ver not said, iss another host, app proved by a \
                     credential that no claim tells";
        assert_eq!(finding.found, found);
        assert_eq!(host(&json!({"opaque": true}), graph), None);
    }
}
