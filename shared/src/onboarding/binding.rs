//! Who may bind a tenant to a customer.
//!
//! The return from admin consent is unsigned text, and a token that works shows only that somebody consented once. What
//! remains is signed or ours: the operator's invitation, and the ID token of the person who signed in.

use crate::registry::{
    attempts::{ConsentRejection, SignedIn},
    invitations::Invitation,
    tenants::{Status, Tenant},
};

/// The effect that a consent has on the record of its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The tenant becomes a new one of the invitation's customer. A record of another customer is replaced.
    New,
    /// The tenant stays with its customer, and the consent counts: a tenant that is not active becomes pending.
    Renewed,
    /// The tenant becomes a new one that is pending until the operator confirms its customer.
    WaitsForOperator,
    /// The tenant stays as it is.
    Unchanged,
    /// The consent is refused, and the tenant stays as it is.
    Refused(ConsentRejection),
}

/// Decides what a consent of `signed_in` by `invitation` does to its tenant, whose present record is `tenant`.
///
/// A tenant is bound to the customer only if the operator named it in the invitation, or if the signed `wids` hold a role
/// that may consent. Whether the tenant had consented before makes no difference.
pub fn may_bind(invitation: &Invitation, signed_in: &SignedIn, tenant: Option<&Tenant>) -> Binding {
    let is_named = match invitation.expected_tenant {
        Some(expected) if expected != signed_in.tenant_id => return Binding::Refused(ConsentRejection::WrongTenant),
        Some(_) => true,
        None => false,
    };
    let is_authorized = is_named || signed_in.role_proven;
    let is_later_than = |at| invitation.created_at > at;
    let new = if is_authorized { Binding::New } else { Binding::WaitsForOperator };
    let Some(tenant) = tenant else { return new };
    if tenant.status == Status::Offboarded {
        let may_return = tenant.offboarded_at.is_some_and(is_later_than);
        return if may_return { new } else { Binding::Refused(ConsentRejection::Closed) };
    }
    let is_same_customer = tenant.customer == invitation.customer;
    if let Status::Unknown(_) = tenant.status {
        let refused = Binding::Refused(ConsentRejection::OtherCustomer);
        return if is_same_customer { Binding::Unchanged } else { refused };
    }
    if !is_same_customer && (tenant.was_active() || !is_authorized) {
        return Binding::Refused(ConsentRejection::OtherCustomer);
    }
    match tenant.status {
        Status::Paused if !is_authorized => Binding::Refused(ConsentRejection::RoleNotProven),
        Status::Paused if tenant.is_paused_by_operator() && !tenant.operator_paused_at.is_some_and(is_later_than) => {
            Binding::Refused(ConsentRejection::Closed)
        }
        _ if !is_authorized => Binding::Unchanged,
        _ if is_same_customer => Binding::Renewed,
        _ => Binding::New,
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        microsoft::IncidentApi,
        registry::invitations::InvitationToken,
        tenant::{Reason, TenantId},
        text::UnknownWord,
    };

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";
    const OTHER_TENANT: &str = "22222222-2222-4333-8444-abcdefabcdef";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    /// An invitation for Contoso, made at second 0.
    fn invitation(expected: Option<&str>) -> Invitation {
        let token = InvitationToken::generate(&SystemRandom::new()).unwrap();
        let expected = expected.map(|tenant| tenant.parse().unwrap());
        Invitation::new(&token, "Contoso".into(), expected, at(0), SignedDuration::from_hours(1))
    }

    fn signed_in(role_proven: bool) -> SignedIn {
        SignedIn {
            tenant_id: tenant_id(),
            object_id: "o".into(),
            name: Some("ada@contoso.example".into()),
            role_proven,
        }
    }

    fn tenant_id() -> TenantId {
        TENANT.parse().unwrap()
    }

    fn tenant(customer: &str, status: Status, reason: Option<Reason>, was_active: bool) -> Tenant {
        let activated_at = was_active.then(|| at(-50));
        Tenant { reason, activated_at, ..Tenant::new(tenant_id(), customer.into(), status, IncidentApi::Graph) }
    }

    /// The row of one state of the tenant: the binding for each kind of invitation and person, in the order named and
    /// proven, named and not proven, unnamed and proven, unnamed and not proven.
    struct Row {
        name: &'static str,
        tenant: Option<Tenant>,
        same_customer: [Binding; 4],
        other_customer: [Binding; 4],
    }

    fn rows() -> Vec<Row> {
        use Binding::{New, Refused, Renewed, Unchanged, WaitsForOperator};
        const CLOSED: Binding = Refused(ConsentRejection::Closed);
        const OTHER: Binding = Refused(ConsentRejection::OtherCustomer);
        const NO_ROLE: Binding = Refused(ConsentRejection::RoleNotProven);
        let (pending, active, paused, offboarded) =
            (Status::Pending, Status::Active, Status::Paused, Status::Offboarded);
        let (operator, missing) = (Some(Reason::Operator), Some(Reason::ConsentMissing));
        let state = |status, reason, was_active| Some(tenant("Contoso", status, reason, was_active));
        let paused_at = |seconds, was_active| {
            let tenant = tenant("Contoso", paused, operator, was_active);
            Some(Tenant { operator_paused_at: Some(at(seconds)), ..tenant })
        };
        let offboarded_at =
            |seconds| Some(Tenant { offboarded_at: Some(at(seconds)), ..tenant("Contoso", offboarded, None, true) });
        let as_new = [New, New, New, WaitsForOperator];
        let replaced = [New, New, New, OTHER];
        let renewed = [Renewed, Renewed, Renewed, Unchanged];
        let revived = [Renewed, Renewed, Renewed, NO_ROLE];
        let closed = [CLOSED, CLOSED, CLOSED, NO_ROLE];
        let row = |name, tenant, same_customer, other_customer| Row { name, tenant, same_customer, other_customer };
        vec![
            row("unknown", None, as_new, as_new),
            row("never active, in verification", state(pending, missing, false), renewed, replaced),
            row("never active, waits for the operator", state(pending, operator, false), renewed, replaced),
            row("never active, paused by a reason", state(paused, missing, false), revived, replaced),
            row("never active, paused by the operator before the invitation", paused_at(-1, false), revived, replaced),
            row(
                "never active, paused by the operator after the invitation",
                paused_at(1, false),
                closed,
                [CLOSED, CLOSED, CLOSED, OTHER],
            ),
            row("active", state(active, None, true), renewed, [OTHER; 4]),
            row("was active, in verification again", state(pending, missing, true), renewed, [OTHER; 4]),
            row("was active, paused by a reason", state(paused, missing, true), revived, [OTHER; 4]),
            row("was active, paused by the operator before the invitation", paused_at(-1, true), revived, [OTHER; 4]),
            row(
                "was active, paused by the operator as the invitation was made",
                paused_at(0, true),
                closed,
                [OTHER; 4],
            ),
            row("was active, paused by the operator after the invitation", paused_at(1, true), closed, [OTHER; 4]),
            row(
                "was active, paused by the operator at an unknown time",
                state(paused, operator, true),
                closed,
                [OTHER; 4],
            ),
            row("offboarded before the invitation", offboarded_at(-1), as_new, as_new),
            row("offboarded after the invitation", offboarded_at(1), [CLOSED; 4], [CLOSED; 4]),
            row(
                "in a status of a newer release",
                state(Status::Unknown(UnknownWord::of("suspended")), None, false),
                [Unchanged; 4],
                [OTHER; 4],
            ),
            row("offboarded at an unknown time", state(offboarded, None, true), [CLOSED; 4], [CLOSED; 4]),
        ]
    }

    #[test]
    fn every_combination_has_its_binding() {
        for Row { name, tenant, same_customer, other_customer } in rows() {
            for (customer, expected) in [("Contoso", same_customer), ("Mallory", other_customer)] {
                let tenant = tenant.clone().map(|tenant| Tenant { customer: customer.into(), ..tenant });
                let kinds = [(Some(TENANT), true), (Some(TENANT), false), (None, true), (None, false)];
                for ((expected_tenant, role_proven), expected) in kinds.into_iter().zip(expected) {
                    let case = format!("{name}, {customer}, named {expected_tenant:?}, proven {role_proven}");
                    let binding = may_bind(&invitation(expected_tenant), &signed_in(role_proven), tenant.as_ref());
                    assert_eq!(binding, expected, "{case}");
                    let elsewhere = may_bind(&invitation(Some(OTHER_TENANT)), &signed_in(role_proven), tenant.as_ref());
                    assert_eq!(elsewhere, Binding::Refused(ConsentRejection::WrongTenant), "{case}");
                }
            }
        }
    }
}
