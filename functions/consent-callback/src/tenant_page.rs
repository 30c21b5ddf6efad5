//! The page that shows a tenant's status.

use jiff::Timestamp;
use shared::{
    lambda::event::HttpResponse,
    microsoft::IncidentApi,
    registry::tenants::{Status, Tenant},
    tenant::Reason,
};

use crate::{
    pages::{Fact, PageExtras, Pages},
    texts::Message,
};

/// Seconds until the page of a tenant that waits for a person refreshes itself.
const OPERATOR_REFRESH_SECONDS: i64 = 60;

/// A tenant's permissions, each in plain words with its role in brackets.
struct PermissionLists {
    granted: Vec<String>,
    /// Permissions without which incidents cannot be read.
    missing: Vec<String>,
    /// Permissions that are not needed to read incidents.
    not_granted: Vec<String>,
}

impl Pages<'_> {
    /// The page of a tenant in any status. `own_url` is the page's own address.
    pub(crate) fn tenant(&self, tenant: &Tenant, own_url: String, now: Timestamp) -> HttpResponse {
        let labels = &self.texts.labels;
        let mut facts = vec![
            Fact::new(&labels.customer, vec![tenant.customer.clone()]),
            Fact::new(&labels.tenant, vec![tenant.tenant_id.to_string()]),
        ];
        if let Some(person) = &tenant.consented_by {
            facts.push(Fact::new(&labels.consented_by, vec![person.clone()]));
        }
        let message = match tenant.status {
            Status::Active => Message::Active,
            Status::Offboarded => Message::Offboarded,
            Status::Pending => tenant.reason.map_or(Message::Pending, pending_message),
            Status::Paused => tenant.reason.map_or(Message::PausedUnavailable, paused_message),
            Status::Unknown(_) => Message::PausedUnavailable,
        };
        if matches!(message, Message::Active | Message::PendingRoleMissing | Message::PausedRoleMissing) {
            let PermissionLists { granted, missing, not_granted } = self.permissions(tenant);
            let lists = [(&labels.granted, granted), (&labels.missing, missing), (&labels.not_granted, not_granted)];
            let shown = lists.into_iter().filter(|(_, list)| !list.is_empty());
            facts.extend(shown.map(|(label, list)| Fact::new(label, list)));
        }
        let mut extras = PageExtras { facts, ..PageExtras::default() };
        match message {
            Message::Offboarded => extras.facts.clear(),
            Message::WaitingForPartner => extras.refresh_seconds = Some(OPERATOR_REFRESH_SECONDS),
            _ if tenant.status == Status::Pending => {
                let next = tenant.verification.as_ref().map_or(now, |check| check.next_try_at);
                // One second later than the next try, so that the refresh never comes too early for it.
                extras.refresh_seconds = Some((next.duration_since(now).as_secs() + 1).clamp(2, 61));
                extras.link = Some(own_url);
            }
            _ => {}
        }
        self.message(200, message, extras)
    }

    fn permissions(&self, tenant: &Tenant) -> PermissionLists {
        let texts = &self.texts.permissions;
        let with_role = |words: &str, role: &str| format!("{words} ({role})");
        let is =
            |role: &str, of: fn(IncidentApi) -> &'static str| IncidentApi::ALL.into_iter().any(|api| of(api) == role);
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
        let granted = tenant.roles.iter().map(|role| with_role(words(role), role)).collect();
        let read = tenant.api.read_role();
        let missing =
            if tenant.api.readable_with(&tenant.roles) { Vec::new() } else { vec![with_role(&texts.read, read)] };
        let mut not_granted = Vec::new();
        if !has(tenant.api.write_role()) {
            not_granted.push(with_role(&texts.write, tenant.api.write_role()));
        }
        let hunt = tenant.api.hunting_role();
        if !has(hunt) {
            not_granted.push(with_role(&texts.hunt, hunt));
        }
        PermissionLists { granted, missing, not_granted }
    }
}

/// The message that says what a pending tenant waits for.
fn pending_message(reason: Reason) -> Message {
    match reason {
        Reason::Operator => Message::WaitingForPartner,
        Reason::RoleMissing => Message::PendingRoleMissing,
        Reason::ResourceAbsent => Message::PendingResourceAbsent,
        Reason::Unavailable | Reason::Throttled | Reason::CredentialRejected => Message::PendingUnavailable,
        _ => Message::Pending,
    }
}

fn paused_message(reason: Reason) -> Message {
    match reason {
        Reason::ConsentMissing => Message::PausedConsentMissing,
        Reason::RoleMissing => Message::PausedRoleMissing,
        Reason::DisabledByCustomer => Message::PausedDisabledByCustomer,
        Reason::ResourceAbsent => Message::ResourceAbsent,
        Reason::BlockedByPolicy => Message::BlockedByPolicy,
        Reason::TenantNotFound => Message::PausedTenantNotFound,
        Reason::TenantInactive => Message::PausedTenantInactive,
        Reason::WrongCloud => Message::PausedWrongCloud,
        Reason::CredentialRejected => Message::PausedCredentialRejected,
        Reason::Throttled | Reason::Unavailable | Reason::Unknown(_) => Message::PausedUnavailable,
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
        let tenant_id = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        Tenant {
            reason,
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            consented_by: Some("\"><img src=x>".into()),
            ..Tenant::new(tenant_id, "<script>alert(1)</script>".into(), status, IncidentApi::Graph)
        }
    }

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    #[test]
    fn names_and_roles_are_escaped() {
        let page = pages().tenant(&tenant(Status::Active, None, &["<b>"]), "/x".into(), now()).body;
        for raw in ["<script>", "<img", "<b>", "<Partner"] {
            assert!(!page.contains(raw), "{raw} in {page}");
        }
        assert!(page.contains("&#60;script&#62;") || page.contains("&lt;script&gt;"));
    }

    #[test]
    fn pending_pages_refresh_themselves() {
        for (reason, seconds) in [(None, "2"), (Some(Reason::Throttled), "2"), (Some(Reason::Operator), "60")] {
            let page = pages().tenant(&tenant(Status::Pending, reason, &[]), "/x".into(), now());
            assert_eq!(page.headers.get("refresh").map(String::as_str), Some(seconds), "{reason:?}");
            assert!(page.body.contains(&format!("in {seconds} seconds")), "{}", page.body);
        }
        let page = pages().tenant(&tenant(Status::Paused, Some(Reason::Operator), &[]), "/x".into(), now());
        assert_eq!(page.headers.get("refresh"), None);
    }

    #[test]
    fn pending_page_says_what_the_tenant_waits_for() {
        for (language, titles) in [
            (
                "en",
                [
                    "still spreading",
                    "has to confirm",
                    "permission has not arrived",
                    "gives no incidents",
                    "does not respond",
                ],
            ),
            (
                "de",
                [
                    "dauert es noch",
                    "muss Ihren Mandanten",
                    "Berechtigung ist noch nicht",
                    "noch keine Vorfälle",
                    "antwortet gerade nicht",
                ],
            ),
        ] {
            let reasons = [
                Reason::ConsentMissing,
                Reason::Operator,
                Reason::RoleMissing,
                Reason::ResourceAbsent,
                Reason::Unavailable,
            ];
            for (reason, title) in reasons.into_iter().zip(titles) {
                let pages = Pages::new(Some(language), "<Partner & Co>", IncidentApi::Graph, "r-1").unwrap();
                let page = pages.tenant(&tenant(Status::Pending, Some(reason), &[]), "/x".into(), now());
                let heading = page.body.split_once("<h1>").unwrap().1.split_once("</h1>").unwrap().0;
                assert!(heading.contains(title), "{language} {reason}: {heading}");
                assert!(page.headers.contains_key("refresh"), "{language} {reason}");
            }
        }
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
            Reason::TenantInactive,
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
    fn page_lists_granted_and_missing_permissions() {
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
