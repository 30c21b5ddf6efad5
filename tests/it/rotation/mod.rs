//! `secret-rotation` against Microsoft and a Secrets Manager that is strict about versions and stages, killed after each
//! of its calls.

mod harness;

use std::collections::BTreeSet;

use aws_double::secret_arn;
use serde_json::json;

use self::harness::{CLIENT, HOME, RotationHarness};

#[tokio::test]
async fn each_rotation_adds_a_secret_and_removes_the_oldest() {
    let harness = RotationHarness::start(None, true).await;
    harness.rotate("token-1").await.unwrap();
    let one = harness.current_secret();
    assert_eq!(harness.registered(), ["first", &one]);
    let value = harness.value("AWSCURRENT");
    assert_eq!((value["client_id"].as_str(), value["note"].as_str()), (Some(CLIENT), Some("kept")));
    assert!(value["key_id"].is_string() && value["expires_at"].is_string());
    harness.rotate("token-2").await.unwrap();
    let two = harness.current_secret();
    harness.rotate("token-3").await.unwrap();
    let three = harness.current_secret();
    // What was made by hand stays for its maker to remove.
    assert_eq!(harness.registered(), ["first", &two, &three]);
    assert_eq!(BTreeSet::from([one, two, three]).len(), 3);
}

#[tokio::test]
async fn rotation_killed_after_any_call_is_finished_by_the_next() {
    for last_call in 1.. {
        let harness = RotationHarness::start(Some(last_call), true).await;
        let finished = tokio::select! {
            outcome = harness.rotate("token-1") => { outcome.unwrap(); true }
            () = harness.relay.reached.notified() => false,
        };
        *harness.relay.last_call.lock().unwrap() = None;
        assert!(harness.registered().contains(&harness.current_secret()), "what is current works at any moment");
        harness.rotate("token-1").await.unwrap();
        let one = harness.current_secret();
        assert_ne!(one, "first");
        harness.rotate("token-2").await.unwrap();
        let two = harness.current_secret();
        assert_eq!(
            harness.registered(),
            ["first", &one, &two],
            "nothing is left behind, killed after call {last_call}"
        );
        if finished {
            assert!(last_call > 10, "a rotation has more calls than that");
            break;
        }
    }
}

#[tokio::test]
async fn rotation_waits_until_entra_accepts_the_new_secret() {
    let harness = RotationHarness::start(None, true).await;
    harness.relay.sim.configure(|behaviour| behaviour.secret_propagation_seconds = 2);
    harness.rotate("token-1").await.unwrap();
    assert_ne!(harness.current_secret(), "first");
}

#[tokio::test]
async fn secret_that_gets_no_token_never_becomes_current() {
    let harness = RotationHarness::start(None, true).await;
    harness.relay.sim.revoke(HOME, CLIENT);
    assert_eq!(harness.rotate("token-1").await.unwrap_err(), "tenant_not_active");
    assert_eq!(harness.current_secret(), "first");
    // A later round, in which every version names its secret, removes what this one left.
    harness.relay.sim.grant(HOME, CLIENT, &["SecurityIncident.Read.All"]);
    harness.rotate("token-2").await.unwrap();
    let two = harness.current_secret();
    assert_eq!(harness.registered().len(), 3);
    harness.rotate("token-3").await.unwrap();
    assert_eq!(harness.registered(), ["first", &two, &harness.current_secret()]);
}

#[tokio::test]
async fn nothing_is_removed_without_a_key_id() {
    let harness = RotationHarness::start(None, true).await;
    harness.rotate("token-1").await.unwrap();
    let mut edited = harness.value("AWSCURRENT");
    edited.as_object_mut().unwrap().remove("key_id");
    harness.put_by_hand(&edited);
    let one = harness.current_secret();
    harness.stage_pending("token-2");
    harness.step("createSecret", "token-2").await.unwrap();
    assert!(harness.registered().contains(&one), "the secret in use stays");
    harness.rotate("token-2").await.unwrap();
    let two = harness.current_secret();
    assert_eq!(harness.registered(), ["first", &one, &two], "the previous version may be any of them");
    harness.rotate("token-3").await.unwrap();
    assert_eq!(harness.registered(), ["first", &two, &harness.current_secret()]);
}

#[tokio::test]
async fn secret_is_removed_only_after_its_replacement_is_current() {
    let harness = RotationHarness::start(None, true).await;
    harness.rotate("token-1").await.unwrap();
    harness.rotate("token-2").await.unwrap();
    let before = harness.registered();
    harness.stage_pending("token-3");
    for step in ["createSecret", "setSecret", "testSecret"] {
        harness.step(step, "token-3").await.unwrap();
        assert_eq!(harness.registered()[..3], before, "{step}");
    }
    harness.step("finishSecret", "token-3").await.unwrap();
    assert_eq!(harness.registered(), ["first", &before[2], &harness.current_secret()]);
}

#[tokio::test]
async fn two_runs_of_a_step_at_once_leave_one_secret() {
    let harness = RotationHarness::start(None, true).await;
    harness.stage_pending("token-1");
    for step in ["createSecret", "testSecret", "finishSecret"] {
        let (one, other) = tokio::join!(harness.step(step, "token-1"), harness.step(step, "token-1"));
        // The slower of two last steps may find the stage moved. Secrets Manager repeats it.
        let is_last = step == "finishSecret";
        assert!(one.is_ok() && other.is_ok() || is_last && (one.is_ok() || other.is_ok()), "{step}: {one:?} {other:?}");
    }
    assert_eq!(harness.registered(), ["first", &harness.current_secret()]);
}

#[tokio::test]
async fn late_finish_keeps_the_secrets_of_the_next_round() {
    let harness = RotationHarness::start(None, true).await;
    harness.rotate("token-1").await.unwrap();
    harness.rotate("token-2").await.unwrap();
    harness.stage_pending("token-3");
    harness.step("finishSecret", "token-2").await.unwrap();
    harness.step("createSecret", "token-3").await.unwrap();
    let three = harness.value("AWSPENDING")["client_secret"].as_str().unwrap().to_owned();
    harness.step("finishSecret", "token-2").await.unwrap();
    assert!(harness.registered().contains(&three));
    harness.rotate("token-3").await.unwrap();
    assert_eq!(harness.current_secret(), three);
}

#[tokio::test]
async fn secret_made_by_hand_is_never_removed() {
    let harness = RotationHarness::start(None, true).await;
    let key_id = harness.relay.sim.client_secret_key_id(CLIENT, "first").unwrap();
    harness.put_by_hand(&json!({"client_id": CLIENT, "client_secret": "first", "key_id": key_id}));
    for token in ["token-1", "token-2", "token-3"] {
        harness.rotate(token).await.unwrap();
    }
    assert_eq!(harness.registered()[0], "first");
    assert_eq!(harness.registered().len(), 3);
}

#[tokio::test]
async fn test_step_succeeds_before_the_first_rotation() {
    let harness = RotationHarness::start(None, true).await;
    harness.relay.aws.account().stage_secret("app", "AWSPENDING", "trial");
    assert_eq!(harness.step("testSecret", "trial").await, Ok(json!({})));
    assert_eq!(harness.step("finishSecret", "trial").await.unwrap_err(), "internal");
    assert_eq!(harness.current_secret(), "first");
}

#[tokio::test]
async fn foreign_rotation_events_are_refused_without_a_change() {
    let harness = RotationHarness::start(None, true).await;
    let (current, _) = harness.relay.aws.account().secret("app", "AWSCURRENT").unwrap();
    assert_eq!(harness.step("createSecret", "stranger").await.unwrap_err(), "invalid_request");
    assert_eq!(harness.step("dropSecret", "token-1").await.unwrap_err(), "invalid_request");
    assert_eq!(harness.step("createSecret", &current).await, Ok(json!({})), "what is current needs no step");
    let list = json!(["createSecret", secret_arn("app"), current]);
    assert_eq!(harness.send(list).await.unwrap_err(), "invalid_request", "nor is a list an event");
    let off = RotationHarness::start(None, false).await;
    assert_eq!(off.rotate("token-1").await.unwrap_err(), "invalid_request");
    assert_eq!((harness.registered().len(), off.registered().len()), (1, 1));
}

#[tokio::test]
async fn unusable_rotation_credential_is_named_with_the_command() {
    crate::backends::lines_of("");
    let harness = RotationHarness::start(None, true).await;
    harness.relay.aws.account().set_secret("rotator", &json!({"client_id": "canary"}));
    harness.stage_pending("token-1");
    assert_eq!(harness.step("createSecret", "token-1").await.unwrap_err(), "internal");
    let lines = crate::backends::lines_of("r");
    let causes: Vec<&str> = lines.iter().filter_map(|line| line["cause"].as_str()).collect();
    let command = "aws secretsmanager put-secret-value --secret-id rotator --secret-string file://credential.json";
    assert!(causes.iter().any(|cause| cause.contains(command) && !cause.contains("canary")), "{causes:?}");
    assert_eq!((harness.current_secret().as_str(), harness.registered().len()), ("first", 1));
}
