//! The pages: templates filled in, with headers that leave nothing to a browser's imagination.

use std::sync::LazyLock;

use askama::Template;
use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use shared::{
    lambda::event::HttpResponse,
    microsoft::IncidentApi,
    registry::{
        attempts::ConsentRejection,
        invitations::Invitation,
        tenants::{Status, Tenant},
    },
    tenant::{Reason, TenantId},
};

use crate::texts::{Message, Texts, choose, fill};

const STYLE: &str = include_str!("../templates/page.css");

/// Nothing is loaded but the one style sheet in the page, named by its hash. There is no `form-action`: it would also
/// forbid the redirect to Microsoft that follows the form.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; frame-ancestors 'none'")
});

/// Seconds until a page is asked for again that waits for a person.
const SLOW_REFRESH: i64 = 60;

/// What all pages have.
struct Frame {
    language: &'static str,
    partner: String,
    style: &'static str,
}

#[derive(Template)]
#[template(path = "invitation.html")]
struct InvitationPage<'a> {
    frame: Frame,
    title: String,
    intro: String,
    asked_title: &'a str,
    asked: &'a str,
    asked_note: String,
    role_title: &'a str,
    role: &'a str,
    bound: Option<String>,
    data_title: &'a str,
    data: Vec<String>,
    withdraw_title: &'a str,
    withdraw: String,
    steps_title: &'a str,
    steps: Vec<String>,
    button: &'a str,
    valid_until: String,
}

#[derive(Template)]
#[template(path = "message.html")]
struct MessagePage {
    frame: Frame,
    tone: &'static str,
    title: String,
    text: Vec<String>,
    facts: Vec<(String, Vec<String>)>,
    link: Option<String>,
    next: String,
    refresh: Option<String>,
}

/// Makes pages for one request.
pub(crate) struct Pages<'a> {
    language: &'static str,
    texts: &'static Texts,
    partner: &'a str,
    api: IncidentApi,
    request_id: &'a str,
}

/// What a page of [`Pages::message`] shows beside its texts.
#[derive(Default)]
pub(crate) struct Beside {
    /// Where the next step leads.
    pub(crate) link: Option<String>,
    /// Headings with what stands under them.
    pub(crate) facts: Vec<(String, Vec<String>)>,
    /// In how many seconds the page renews itself.
    pub(crate) refresh: Option<i64>,
}

impl<'a> Pages<'a> {
    /// Pages in the language that suits `accept_language`, of a partner that asks for consent to `api`. `None` when
    /// there are no texts at all.
    pub(crate) fn new(
        accept_language: Option<&str>,
        partner: &'a str,
        api: IncidentApi,
        request_id: &'a str,
    ) -> Option<Self> {
        let (language, texts) = choose(accept_language)?;
        Some(Self { language, texts, partner, api, request_id })
    }

    /// The page of an open invitation.
    pub(crate) fn invitation(&self, invitation: &Invitation) -> HttpResponse {
        let texts = &self.texts.invitation;
        let tenant = invitation.expected_tenant.as_ref().map(TenantId::to_string);
        let time = invitation.expires_at.strftime("%Y-%m-%d %H:%M UTC").to_string();
        let words = [
            ("partner", self.partner),
            ("customer", invitation.customer.as_str()),
            ("tenant", tenant.as_deref().unwrap_or_default()),
            ("time", &time),
            ("write", self.api.write_role()),
            ("hunt", self.api.hunting_role()),
        ];
        let all = |lines: &[String]| lines.iter().map(|line| fill(line, &words)).collect();
        let page = InvitationPage {
            frame: self.frame(),
            title: fill(&texts.title, &words),
            intro: fill(&texts.intro, &words),
            asked_title: &texts.asked_title,
            asked: match self.api {
                IncidentApi::Graph => &texts.asked_graph,
                IncidentApi::Defender => &texts.asked_defender,
            },
            asked_note: fill(&texts.asked_note, &words),
            role_title: &texts.role_title,
            role: self.role(),
            bound: tenant.is_some().then(|| fill(&texts.bound, &words)),
            data_title: &texts.data_title,
            data: all(&texts.data),
            withdraw_title: &texts.withdraw_title,
            withdraw: fill(&texts.withdraw, &words),
            steps_title: &texts.steps_title,
            steps: all(&texts.steps),
            button: &texts.button,
            valid_until: fill(&texts.valid_until, &words),
        };
        self.respond(200, &page)
    }

    /// A page that says one thing.
    pub(crate) fn message(&self, status: u16, message: Message, beside: Beside) -> HttpResponse {
        let Some(texts) = self.texts.messages.get(&message) else { return HttpResponse::empty(status) };
        let seconds = beside.refresh.map(|seconds| seconds.to_string());
        let words = [
            ("partner", self.partner),
            ("role", self.role()),
            ("request", self.request_id),
            ("seconds", seconds.as_deref().unwrap_or_default()),
        ];
        let page = MessagePage {
            frame: self.frame(),
            tone: tone(status, message),
            title: fill(&texts.title, &words),
            text: texts.text.iter().map(|line| fill(line, &words)).collect(),
            facts: beside.facts,
            link: beside.link,
            next: fill(&texts.next, &words),
            refresh: seconds.is_some().then(|| fill(&self.texts.labels.refresh, &words)),
        };
        let mut response = self.respond(status, &page);
        if let Some(seconds) = seconds {
            // A header, not `meta`: it does the same without a script, and tools that check pages understand it.
            response.headers.insert("refresh", seconds);
        }
        response
    }

    /// [`Pages::message`] with nothing beside the texts.
    pub(crate) fn plain(&self, status: u16, message: Message) -> HttpResponse {
        self.message(status, message, Beside::default())
    }

    /// Why an attempt ended.
    pub(crate) fn ending(&self, ending: ConsentRejection) -> HttpResponse {
        let (status, message) = match ending {
            ConsentRejection::WrongTenant => (403, Message::WrongTenant),
            ConsentRejection::OtherCustomer => (403, Message::OtherCustomer),
            ConsentRejection::PersonalAccount => (403, Message::PersonalAccount),
            ConsentRejection::NotVerified => (400, Message::NotVerified),
            ConsentRejection::NotTrusted => (403, Message::NotVouchedFor),
            ConsentRejection::Closed => (410, Message::Revoked),
        };
        self.plain(status, message)
    }

    /// How a tenant stands. `again` is where the page is asked for again.
    pub(crate) fn tenant(&self, tenant: &Tenant, again: String, now: Timestamp) -> HttpResponse {
        let labels = &self.texts.labels;
        let mut facts = vec![
            (labels.customer.clone(), vec![tenant.customer.clone()]),
            (labels.tenant.clone(), vec![tenant.tenant_id.to_string()]),
        ];
        if let Some(person) = &tenant.consented_by {
            facts.push((labels.consented_by.clone(), vec![person.clone()]));
        }
        let (granted, missing, not_granted) = self.permissions(tenant);
        let lists = [(&labels.granted, granted), (&labels.missing, missing), (&labels.not_granted, not_granted)];
        let shown = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let permissions = shown.map(|(label, list)| (label.clone(), list)).collect::<Vec<_>>();
        let message = match tenant.status {
            Status::Active => Message::Active,
            Status::Offboarded => Message::Offboarded,
            Status::Pending if tenant.reason == Some(Reason::Operator) => Message::WaitingForPartner,
            Status::Pending => Message::Pending,
            Status::Paused => tenant.reason.map_or(Message::PausedUnavailable, paused),
        };
        if matches!(message, Message::Active | Message::PausedRoleMissing) {
            facts.extend(permissions);
        }
        let mut beside = Beside { facts, ..Beside::default() };
        match message {
            Message::Offboarded => beside.facts.clear(),
            Message::Pending => {
                let next = tenant.verification.as_ref().map_or(now, |check| check.next_try_at);
                // A second more than what is left: nobody is sent round for a try that is not due yet.
                beside.refresh = Some((next.duration_since(now).as_secs() + 1).clamp(2, 61));
                beside.link = Some(again);
            }
            Message::WaitingForPartner => beside.refresh = Some(SLOW_REFRESH),
            _ => {}
        }
        self.message(200, message, beside)
    }

    /// Granted, missing and not granted permissions, in plain words with their names.
    fn permissions(&self, tenant: &Tenant) -> (Vec<String>, Vec<String>, Vec<String>) {
        let texts = &self.texts.permissions;
        let named = |words: &str, role: &str| format!("{words} ({role})");
        let is =
            |role: &str, of: fn(IncidentApi) -> &'static str| IncidentApi::ALL.into_iter().any(|one| of(one) == role);
        let words = |role: &str| {
            if is(role, IncidentApi::read_role) {
                &texts.read
            } else if is(role, IncidentApi::write_role) {
                &texts.write
            } else if is(role, IncidentApi::hunting_role) {
                &texts.hunt
            } else {
                &texts.other
            }
        };
        let has = |role: &str| tenant.roles.iter().any(|granted| granted == role);
        let granted = tenant.roles.iter().map(|role| named(words(role), role)).collect();
        let read = tenant.api.read_role();
        let missing = if tenant.api.readable_with(&tenant.roles) { Vec::new() } else { vec![named(&texts.read, read)] };
        let mut not_granted = Vec::new();
        if !has(tenant.api.write_role()) {
            not_granted.push(named(&texts.write, tenant.api.write_role()));
        }
        let hunt = tenant.api.hunting_role();
        if !has(hunt) {
            not_granted.push(named(&texts.hunt, hunt));
        }
        (granted, missing, not_granted)
    }

    /// The directory role that may consent.
    fn role(&self) -> &'static str {
        match self.api {
            IncidentApi::Graph => &self.texts.invitation.role_graph,
            IncidentApi::Defender => &self.texts.invitation.role_defender,
        }
    }

    fn frame(&self) -> Frame {
        Frame { language: self.language, partner: self.partner.to_owned(), style: STYLE }
    }

    fn respond(&self, status: u16, page: &impl Template) -> HttpResponse {
        let mut response = strict(HttpResponse::empty(status));
        response.headers.insert("content-type", "text/html; charset=utf-8".into());
        response.headers.insert("content-language", self.language.into());
        // Writing into a string fails for no template of ours; an empty page would still carry its status.
        response.body = page.render().unwrap_or_default();
        response
    }
}

/// A redirect that the browser follows with GET.
pub(crate) fn redirect(location: String) -> HttpResponse {
    let mut response = strict(HttpResponse::empty(303));
    response.headers.insert("location", location);
    response
}

fn strict(mut response: HttpResponse) -> HttpResponse {
    response.headers.extend([
        ("content-security-policy", POLICY.clone()),
        ("referrer-policy", "no-referrer".into()),
        ("x-content-type-options", "nosniff".into()),
        ("x-frame-options", "DENY".into()),
        ("x-robots-tag", "noindex, nofollow".into()),
        ("cross-origin-opener-policy", "same-origin".into()),
        ("cache-control", "no-store".into()),
        ("strict-transport-security", "max-age=31536000".into()),
    ]);
    response
}

fn tone(status: u16, message: Message) -> &'static str {
    match message {
        Message::Active => "good",
        Message::Pending | Message::WaitingForPartner | Message::Unfinished | Message::ConsentOpen => "wait",
        _ if status < 400 => "wait",
        _ => "bad",
    }
}

fn paused(reason: Reason) -> Message {
    match reason {
        Reason::ConsentMissing => Message::PausedConsentMissing,
        Reason::RoleMissing => Message::PausedRoleMissing,
        Reason::DisabledByCustomer => Message::PausedDisabledByCustomer,
        Reason::ResourceAbsent => Message::ResourceAbsent,
        Reason::BlockedByPolicy => Message::BlockedByPolicy,
        Reason::TenantNotFound => Message::PausedTenantNotFound,
        Reason::WrongCloud => Message::PausedWrongCloud,
        Reason::CredentialRejected => Message::PausedCredentialRejected,
        Reason::Throttled | Reason::Unavailable => Message::PausedUnavailable,
        Reason::Operator => Message::PausedOperator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages<'static> {
        Pages::new(Some("en"), "<Partner & Co>", IncidentApi::Graph, "r-1").unwrap()
    }

    fn tenant(status: Status, reason: Option<Reason>, roles: &[&str]) -> Tenant {
        Tenant {
            tenant_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
            customer: "<script>alert(1)</script>".into(),
            status,
            reason,
            api: IncidentApi::Graph,
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            consented_at: None,
            consented_by: Some("\"><img src=x>".into()),
            activated_at: None,
            offboarded_at: None,
            verification: None,
            revision: 0,
        }
    }

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    #[test]
    fn what_is_shown_is_escaped() {
        let page = pages().tenant(&tenant(Status::Active, None, &["<b>"]), "/x".into(), now()).body;
        for raw in ["<script>", "<img", "<b>", "<Partner"] {
            assert!(!page.contains(raw), "{raw} in {page}");
        }
        assert!(page.contains("&#60;script&#62;") || page.contains("&lt;script&gt;"));
    }

    #[test]
    fn whatever_is_pending_renews_itself() {
        for (reason, seconds) in [(None, "2"), (Some(Reason::Throttled), "2"), (Some(Reason::Operator), "60")] {
            let page = pages().tenant(&tenant(Status::Pending, reason, &[]), "/x".into(), now());
            assert_eq!(page.headers.get("refresh").map(String::as_str), Some(seconds), "{reason:?}");
            assert!(page.body.contains(&format!("in {seconds} seconds")), "{}", page.body);
        }
        let page = pages().tenant(&tenant(Status::Paused, Some(Reason::Operator), &[]), "/x".into(), now());
        assert_eq!(page.headers.get("refresh"), None);
    }

    #[test]
    fn the_style_in_the_page_is_the_one_that_its_policy_names() {
        let response = pages().plain(404, Message::NotFound);
        let style = response.body.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
        let policy = &response.headers["content-security-policy"];
        assert!(policy.contains(&format!("'sha256-{hash}'")));
        assert!(!policy.contains("form-action") && !policy.contains("unsafe"));
        assert!(!response.body.contains("style=") && !response.body.contains("<script"));
    }

    #[test]
    fn every_reason_has_a_page_with_one_next_step() {
        for reason in [
            Reason::ConsentMissing,
            Reason::RoleMissing,
            Reason::DisabledByCustomer,
            Reason::ResourceAbsent,
            Reason::BlockedByPolicy,
            Reason::TenantNotFound,
            Reason::WrongCloud,
            Reason::CredentialRejected,
            Reason::Throttled,
            Reason::Unavailable,
            Reason::Operator,
        ] {
            let page = pages().tenant(&tenant(Status::Paused, Some(reason), &[]), "/x".into(), now());
            assert_eq!(page.status, 200);
            assert_eq!(
                page.body.matches("class=\"next\"").count() + page.body.matches("class=\"button\"").count(),
                1,
                "{reason}"
            );
        }
    }

    #[test]
    fn an_active_tenant_shows_what_was_granted_and_what_not() {
        let page =
            pages().tenant(&tenant(Status::Active, None, &["SecurityIncident.Read.All"]), "/x".into(), now()).body;
        let (granted, not_granted) = page.split_once("<dt>Not granted").unwrap();
        assert!(granted.contains("(SecurityIncident.Read.All)"));
        assert!(
            not_granted.contains("(SecurityIncident.ReadWrite.All)")
                && not_granted.contains("(ThreatHunting.Read.All)")
        );
        assert!(!page.contains("Missing"));
        let page = pages().tenant(&tenant(Status::Paused, Some(Reason::RoleMissing), &[]), "/x".into(), now()).body;
        assert!(page.contains("Missing"));
    }
}
