//! A refused credential that is repaired: it is soon in use, whoever is probed.

use shared::{error::Error, registry::tenants::Status, tenant::Reason};

use super::{
    breaker::{HOME, UNKNOWN},
    harness::{A, B, TokenHarness, ask, numbered, refusal, secret, tenant},
};
use crate::{
    backends::{CLIENT_ID, CLIENT_SECRET, tenant_record},
    cases::Cases,
};

/// The refusal of a credential, by which every tenant is refused.
#[derive(Clone, Copy, PartialEq)]
enum Outage {
    KnownNumber,
    UnknownNumber,
}

/// The home tenant of the processes.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    None,
    Right,
    /// No tenant has the identifier.
    Wrong,
}

/// The repair of a refused credential.
#[derive(Clone, Copy)]
enum Repair {
    AtEntra,
    NewSecret,
}

#[tokio::test]
async fn repaired_credential_is_in_use_within_two_minutes() {
    let mut cases = Cases::default();
    for (why, outage) in [("known number", Outage::KnownNumber), ("unknown number", Outage::UnknownNumber)] {
        for (how, repair) in [("at Entra", Repair::AtEntra), ("by a new secret", Repair::NewSecret)] {
            for (probes, home, had_tokens) in [
                ("home tenant", Home::Right, false),
                ("tenant that had a token", Home::None, true),
                ("no tenant known", Home::None, false),
                ("wrong home tenant", Home::Wrong, false),
                ("wrong home tenant, tenant that had a token", Home::Wrong, true),
            ] {
                let name = format!("{why}, repaired {how}, {probes}");
                cases.add(name, repaired_credential_is_soon_in_use(outage, repair, home, had_tokens));
            }
        }
    }
    cases.run().await;
}

/// One tenant refuses us and asks first each time, beside healthy ones. Every process is new, as after a cold start, but
/// one, which holds the credential that was refused.
async fn repaired_credential_is_soon_in_use(outage: Outage, repair: Repair, home: Home, had_tokens: bool) {
    let harness = TokenHarness::start().await;
    let others = [numbered(1), numbered(2)];
    for other in &others {
        harness.customer(other);
    }
    if home == Home::Right {
        harness.customer(HOME);
    }
    let process = || if home == Home::None { harness.process() } else { harness.process_with_home() };
    let refused = Err(Error::Refused(Reason::ConsentMissing));
    harness.sim().revoke(A, CLIENT_ID);
    let warm = process();
    if had_tokens {
        ask(&warm, B).await.unwrap();
        assert_eq!(ask(&warm, A).await, refused);
    }
    match outage {
        Outage::KnownNumber => harness.forget_secret(CLIENT_SECRET),
        Outage::UnknownNumber => {
            for of in [A, B, &others[0], &others[1]].into_iter().chain((home == Home::Right).then_some(HOME)) {
                harness.always(of, refusal(UNKNOWN));
            }
            // The refusal of one tenant alone is not evidence.
            assert_ne!(ask(&process(), A).await.unwrap_err(), refused.clone().unwrap_err());
            let _ = ask(&process(), B).await;
        }
    }
    for round in 0..3 {
        let before = harness.asked();
        for of in [A, numbered(1).as_str(), B] {
            assert_eq!(ask(&process(), of).await, Err(Error::CredentialRejected));
        }
        assert_eq!(ask(&warm, &numbered(2)).await, Err(Error::CredentialRejected));
        assert!(round == 0 || harness.asked() == before + 1, "one request a minute");
        harness.pass(61);
    }
    // The probe of this minute has just been made.
    assert_eq!(ask(&process(), B).await, Err(Error::CredentialRejected));
    harness.sim().clear_faults();
    match repair {
        Repair::AtEntra => harness.know(CLIENT_SECRET),
        Repair::NewSecret => {
            harness.know("secret-2");
            harness.set_secret(&secret("secret-2"));
        }
    }
    for _ in 0..8 {
        harness.pass(15);
        for of in [A, B, &others[0]] {
            let _ = ask(&process(), of).await;
        }
    }
    ask(&process(), B).await.unwrap();
    ask(&warm, &numbered(1)).await.unwrap();
    assert_eq!(ask(&process(), A).await, refused, "a tenant's own refusal stays its own");
}

#[tokio::test]
async fn wrong_home_tenant_does_not_keep_the_breaker_open() {
    let harness = TokenHarness::start().await;
    harness.forget_secret(CLIENT_SECRET);
    // No tenant has the identifier.
    assert_eq!(ask(&harness.process_with_home(), A).await, Err(Error::CredentialRejected));
    harness.know(CLIENT_SECRET);
    harness.pass(61);
    assert_eq!(ask(&harness.process_with_home(), A).await, Err(Error::CredentialRejected));
    harness.pass(61);
    ask(&harness.process_with_home(), A).await.unwrap();
}

#[tokio::test]
async fn paused_tenant_leaves_the_probe_to_others() {
    let harness = TokenHarness::start().await;
    let paused = tenant_record(tenant(A), Status::Paused, Some(Reason::ConsentMissing));
    harness.registry().create_tenant(&paused).await.unwrap();
    harness.forget_secret(CLIENT_SECRET);
    assert_eq!(ask(&harness.process(), B).await, Err(Error::CredentialRejected));
    harness.know(CLIENT_SECRET);
    harness.sim().revoke(A, CLIENT_ID);
    harness.pass(61);
    let asked = harness.asked();
    assert_eq!(ask(&harness.process(), A).await, Err(Error::CredentialRejected));
    assert_eq!(harness.asked(), asked);
    ask(&harness.process(), B).await.unwrap();
}
