//! The pages: rendered templates, with strict security headers.

use std::sync::LazyLock;

use askama::Template;
use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use shared::{
    lambda::event::HttpResponse,
    microsoft::IncidentApi,
    registry::{attempts::ConsentRejection, invitations::Invitation},
    tenant::TenantId,
};

use crate::texts::{Message, Texts, choose, interpolate};

const STYLE: &str = include_str!("../templates/page.css");

/// The content security policy: a browser loads nothing but the style sheet in the page, which the policy names by its
/// hash. `form-action` is missing because it would also forbid the redirect to Microsoft that follows the form.
static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; frame-ancestors 'none'")
});

/// The note of a page that refuses what came back from Microsoft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsentNote {
    /// It was a consent, which stays at Microsoft.
    ConsentStays,
    /// Nothing was changed at Microsoft.
    NothingChanged,
}

impl ConsentNote {
    /// Returns the note after a consent, or without one.
    pub(crate) fn of(consented: bool) -> Self {
        if consented { Self::ConsentStays } else { Self::NothingChanged }
    }
}

/// The values of `layout.html`, which all pages extend.
struct Layout {
    language: &'static str,
    partner: String,
    style: &'static str,
}

#[derive(Template)]
#[template(path = "invitation.html")]
struct InvitationPage<'a> {
    layout: Layout,
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
    layout: Layout,
    tone: &'static str,
    title: String,
    text: Vec<String>,
    facts: Vec<Fact>,
    link: Option<String>,
    next: String,
    refresh: Option<String>,
}

/// Renders the pages of one request, in one language.
pub(crate) struct Pages<'a> {
    language: &'static str,
    pub(crate) texts: &'static Texts,
    partner: &'a str,
    api: IncidentApi,
    request_id: &'a str,
}

/// The optional parts of a page of [`Pages::message`].
#[derive(Default)]
pub(crate) struct PageExtras {
    /// The URL of the next step.
    pub(crate) link: Option<String>,
    pub(crate) facts: Vec<Fact>,
    /// A last paragraph.
    pub(crate) note: Option<&'static str>,
    /// Seconds until the page refreshes itself.
    pub(crate) refresh_seconds: Option<i64>,
}

impl PageExtras {
    pub(crate) fn link(url: String) -> Self {
        Self { link: Some(url), ..Self::default() }
    }
}

/// A label with its values.
pub(crate) struct Fact {
    label: String,
    values: Vec<String>,
}

impl Fact {
    pub(crate) fn new(label: &str, values: Vec<String>) -> Self {
        Self { label: label.to_owned(), values }
    }
}

impl<'a> Pages<'a> {
    /// Pages in the language that suits the header `Accept-Language`, of a partner that asks for consent to `api`.
    /// `None` if no language has texts.
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
        let values = [
            ("partner", self.partner),
            ("customer", invitation.customer.as_str()),
            ("tenant", tenant.as_deref().unwrap_or_default()),
            ("time", &time),
            ("write", self.api.write_role()),
            ("hunt", self.api.hunting_role()),
        ];
        let all = |lines: &[String]| lines.iter().map(|line| interpolate(line, &values)).collect();
        let page = InvitationPage {
            layout: self.layout(),
            title: interpolate(&texts.title, &values),
            intro: interpolate(&texts.intro, &values),
            asked_title: &texts.asked_title,
            asked: match self.api {
                IncidentApi::Graph => &texts.asked_graph,
                IncidentApi::Defender => &texts.asked_defender,
            },
            asked_note: interpolate(&texts.asked_note, &values),
            role_title: &texts.role_title,
            role: self.role(),
            bound: tenant.is_some().then(|| interpolate(&texts.bound, &values)),
            data_title: &texts.data_title,
            data: all(&texts.data),
            withdraw_title: &texts.withdraw_title,
            withdraw: interpolate(&texts.withdraw, &values),
            steps_title: &texts.steps_title,
            steps: all(&texts.steps),
            button: &texts.button,
            valid_until: interpolate(&texts.valid_until, &values),
        };
        self.respond(200, &page)
    }

    /// A page with one message and one next step.
    pub(crate) fn message(&self, status: u16, message: Message, extras: PageExtras) -> HttpResponse {
        let Some(texts) = self.texts.messages.get(&message) else { return HttpResponse::empty(status) };
        let seconds = extras.refresh_seconds.map(|seconds| seconds.to_string());
        let values = [
            ("partner", self.partner),
            ("role", self.role()),
            ("request", self.request_id),
            ("seconds", seconds.as_deref().unwrap_or_default()),
        ];
        let page = MessagePage {
            layout: self.layout(),
            tone: tone(status, message),
            title: interpolate(&texts.title, &values),
            text: texts
                .text
                .iter()
                .map(String::as_str)
                .chain(extras.note)
                .map(|line| interpolate(line, &values))
                .collect(),
            facts: extras.facts,
            link: extras.link,
            next: interpolate(&texts.next, &values),
            refresh: seconds.is_some().then(|| interpolate(&self.texts.labels.refresh, &values)),
        };
        let mut response = self.respond(status, &page);
        if let Some(seconds) = seconds {
            // Browsers refresh by this header without a script, and tools that check pages report a `meta` refresh.
            response.headers.insert("refresh", seconds);
        }
        response
    }

    /// A page of [`Pages::message`] without link, facts and refresh.
    pub(crate) fn plain(&self, status: u16, message: Message) -> HttpResponse {
        self.message(status, message, PageExtras::default())
    }

    /// A page of [`Pages::message`] that refuses what came back from Microsoft.
    pub(crate) fn with_note(&self, status: u16, message: Message, note: ConsentNote) -> HttpResponse {
        let note = match note {
            ConsentNote::ConsentStays => &self.texts.labels.consent_stays,
            ConsentNote::NothingChanged => &self.texts.labels.nothing_changed,
        };
        self.message(status, message, PageExtras { note: Some(note), ..PageExtras::default() })
    }

    /// The page of an attempt that ended without a tenant.
    pub(crate) fn rejection(&self, rejection: ConsentRejection, note: ConsentNote) -> HttpResponse {
        let (status, message) = match rejection {
            ConsentRejection::WrongTenant => (403, Message::WrongTenant),
            ConsentRejection::OtherCustomer => (403, Message::OtherCustomer),
            ConsentRejection::PersonalAccount => (403, Message::PersonalAccount),
            ConsentRejection::NotVerified => (400, Message::NotVerified),
            ConsentRejection::RoleNotProven => (403, Message::RoleNotProven),
            ConsentRejection::Closed => (410, Message::Revoked),
            ConsentRejection::Unknown => (403, Message::Refused),
        };
        self.with_note(status, message, note)
    }

    /// The directory role that may consent.
    fn role(&self) -> &'static str {
        match self.api {
            IncidentApi::Graph => &self.texts.invitation.role_graph,
            IncidentApi::Defender => &self.texts.invitation.role_defender,
        }
    }

    fn layout(&self) -> Layout {
        Layout { language: self.language, partner: self.partner.to_owned(), style: STYLE }
    }

    fn respond(&self, status: u16, page: &impl Template) -> HttpResponse {
        let mut response = with_security_headers(HttpResponse::empty(status));
        response.headers.insert("content-type", "text/html; charset=utf-8".into());
        response.headers.insert("content-language", self.language.into());
        // None of our templates fails to render. If one did, the empty page would still have its status.
        response.body = page.render().unwrap_or_default();
        response
    }
}

/// A redirect that the browser follows with GET.
pub(crate) fn redirect(location: String) -> HttpResponse {
    let mut response = with_security_headers(HttpResponse::empty(303));
    response.headers.insert("location", location);
    response
}

fn with_security_headers(mut response: HttpResponse) -> HttpResponse {
    response.headers.extend([
        ("content-security-policy", CONTENT_SECURITY_POLICY.clone()),
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
        _ if status < 400 => "wait",
        _ => "bad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages<'static> {
        Pages::new(Some("en"), "<Partner & Co>", IncidentApi::Graph, "r-1").unwrap()
    }

    #[test]
    fn policy_names_the_hash_of_the_style_sheet() {
        let response = pages().plain(404, Message::NotFound);
        let style = response.body.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
        let policy = &response.headers["content-security-policy"];
        assert!(policy.contains(&format!("'sha256-{hash}'")));
        assert!(!policy.contains("form-action") && !policy.contains("unsafe"));
        assert!(!response.body.contains("style=") && !response.body.contains("<script"));
    }
}
