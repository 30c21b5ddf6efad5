//! The output that a person's terminal receives: the program runs on a pseudo-terminal of its own.

use serde_json::json;

use crate::api::{Api, CONTOSO, FABRIKAM, incident, tenant};

/// Clears the screen, sets the title by OSC, colours by C1, overrides the direction, hides text by tags.
const ATTACK: &str =
    "Pay\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{9d}0;owned\u{9c}\u{202e}fdp\u{2066}\u{200b}\u{e0041}\u{7f}\r\u{8}end";

/// Runs the program on a terminal of this width and passes on what it wrote. Standard error is no terminal, so that no
/// progress bar moves the cursor.
const ON_A_TERMINAL: &str = "
import fcntl, os, pty, struct, sys, termios
columns = int(sys.argv[1])
errors = os.dup(2)
process, terminal = pty.fork()
if process == 0:
    os.dup2(errors, 2)
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 50, columns, 0, 0))
    os.execve(sys.argv[2], sys.argv[2:], dict(pair.split('=', 1) for pair in os.environ['OPERATOR'].split('\x1f')))
written = b''
while True:
    try:
        part = os.read(terminal, 65536)
    except OSError:
        break
    if not part:
        break
    written += part
_, status = os.waitpid(process, 0)
sys.stdout.buffer.write(written)
sys.exit(os.waitstatus_to_exitcode(status))
";

async fn on_a_terminal(api: &Api, columns: u16, variables: &[(&str, &str)], arguments: &[&str]) -> String {
    let fixed = [("TZ", "UTC"), ("TERM", "xterm-256color"), ("MANDATE_API", api.url.as_str())];
    // A later pair replaces an earlier one.
    let pairs: Vec<_> = fixed.iter().chain(variables).map(|(name, value)| format!("{name}={value}")).collect();
    let mut command = tokio::process::Command::new("python3");
    command.args(["-c", ON_A_TERMINAL, &columns.to_string(), env!("CARGO_BIN_EXE_mandate")]).args(arguments);
    let output = command.env("OPERATOR", pairs.join("\u{1f}")).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap().replace("\r\n", "\n")
}

/// The text without the sequences that colour text and end the colour.
fn without_colour(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        let end = after.find(|letter: char| !letter.is_ascii_digit() && letter != ';').unwrap_or(after.len());
        if !after[end..].starts_with('m') {
            plain.push_str("\u{1b}[");
            rest = after;
            continue;
        }
        rest = &after[end + 1..];
    }
    plain.push_str(rest);
    plain
}

/// The lines without white space at their ends.
fn trimmed(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).collect()
}

/// Fails if something in the text could move the cursor, colour, hide or turn text.
fn is_harmless(text: &str) {
    let bad = |letter: &char| {
        (letter.is_control() && *letter != '\n')
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e0000}'..='\u{e0fff}')
    };
    assert_eq!(text.chars().find(bad), None, "{text:?}");
}

#[tokio::test]
async fn hostile_text_never_reaches_the_terminal() {
    let table = json!({"schema": [{"name": ATTACK, "type": "String"}], "failures": [], "results": [{"tenant_id": CONTOSO, ATTACK: ATTACK}]});
    let api = Api::of(vec![
        ("GET", "/incidents".into(), json!({"incidents": [incident(CONTOSO, "7", ATTACK)], "failures": [{"tenant_id": ATTACK, "code": ATTACK, "reason": ATTACK}], "next": null})),
        ("GET", format!("/tenants/{CONTOSO}/incidents/7"), incident(CONTOSO, "7", ATTACK)),
        ("GET", "/tenants".into(), json!({"tenants": [tenant(CONTOSO, ATTACK, "active", None, 5)], "next": null})),
        ("GET", format!("/tenants/{CONTOSO}"), tenant(CONTOSO, ATTACK, "paused", Some(ATTACK), 5)),
        ("POST", "/hunting".into(), table),
        ("POST", "/invitations".into(), json!({"customer": ATTACK, "consent_url": ATTACK, "expires_at": ATTACK, "expected_tenant": ATTACK})),
        ("POST", format!("/tenants/{CONTOSO}/token"), json!({"access_token": ATTACK, "resource": ATTACK})),
        ("GET", "/invitations".into(), json!({"invitations": [{"invitation_id": ATTACK, "customer": ATTACK, "status": ATTACK, "expires_at": ATTACK, "expected_tenant": ATTACK}], "next": null})),
        ("POST", format!("/tenants/{CONTOSO}/pause"), tenant(CONTOSO, ATTACK, "paused", Some(ATTACK), 5)),
        ("POST", format!("/tenants/{CONTOSO}/resume"), tenant(CONTOSO, ATTACK, "paused", Some(ATTACK), 5)),
        ("PATCH", format!("/tenants/{CONTOSO}"), tenant(CONTOSO, ATTACK, ATTACK, Some(ATTACK), 5)),
        ("DELETE", format!("/tenants/{CONTOSO}"), json!({"tenant_id": ATTACK, "purged": {ATTACK: ATTACK}, "removal_url": ATTACK, "access_ended": false})),
        ("POST", format!("/tenants/{CONTOSO}/sync"), json!({"job_id": ATTACK})),
        ("GET", format!("/tenants/{CONTOSO}/sync/j"), json!({"job_id": ATTACK, "kind": ATTACK, "status": ATTACK, "from": ATTACK, "delivered": ATTACK})),
        ("PATCH", format!("/tenants/{CONTOSO}/incidents/7"), incident(CONTOSO, "7", ATTACK)),
    ])
    .await;
    let commands: [&[&str]; 16] = [
        &["invitations"],
        &["pause", CONTOSO],
        &["resume", CONTOSO],
        &["change", CONTOSO, "--customer", "x"],
        &["offboard", CONTOSO, "--yes"],
        &["backfill", CONTOSO],
        &["job", CONTOSO, "j"],
        &["set", CONTOSO, "7", "--comment", "x"],
        &["incidents"],
        &["incident", CONTOSO, "7"],
        &["tenants"],
        &["tenant", CONTOSO],
        &["hunt", "DeviceInfo"],
        &["invite", "x"],
        &["token", CONTOSO, "--claims"],
        &["token", CONTOSO],
    ];
    for arguments in commands {
        for more in [&[][..], &["--json"]] {
            let arguments = [arguments, more].concat();
            let coloured = on_a_terminal(&api, 300, &[], &arguments).await;
            is_harmless(&without_colour(&coloured));
            assert!(!coloured.contains("\u{1b}[2J") && coloured.contains("Pay"), "{arguments:?}: {coloured:?}");
            let shown = if more.is_empty() { "\\u{1b}[2J" } else { "\\u001b[2J" };
            assert!(coloured.contains(shown), "{arguments:?}: {coloured:?}");
            is_harmless(&on_a_terminal(&api, 300, &[("NO_COLOR", "1")], &arguments).await);
        }
    }
}

#[tokio::test]
async fn tables_fit_the_terminal_and_colour_is_optional() {
    let tenants = [
        tenant(CONTOSO, "Contoso", "active", None, 20),
        tenant(FABRIKAM, "Fabrikam with a very long name that does not fit", "paused", Some("role_missing"), 90_061),
    ];
    let api = Api::of(vec![("GET", "/tenants".into(), json!({"tenants": tenants, "next": null}))]).await;
    let wide = on_a_terminal(&api, 200, &[], &["tenants"]).await;
    assert!(wide.contains("\u{1b}[") && wide.contains("paused: role_missing") && wide.contains("1d 1h"), "{wide:?}");
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(&api, 200, &[(variable, value)], &["tenants"]).await;
        assert_eq!(trimmed(&plain), trimmed(&without_colour(&wide)), "{variable}");
    }
    let plain = without_colour(&wide);
    let lines: Vec<_> = plain.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
    assert_eq!(lines, ["CUSTOMER", "Fabrikam", "Contoso", "", "2"], "the worst first: {plain}");
    let narrow = on_a_terminal(&api, 80, &[("NO_COLOR", "1")], &["tenants"]).await;
    assert!(narrow.contains(CONTOSO) && narrow.contains(FABRIKAM), "an id that a person copies is whole: {narrow}");
    let widest = narrow.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?} {narrow}");
}

#[tokio::test]
async fn lists_lead_to_the_next_command() {
    let tenants = [tenant(CONTOSO, "Contoso", "active", None, 20), tenant(FABRIKAM, "Fabrikam", "active", None, 20)];
    let failures = json!([{"tenant_id": FABRIKAM, "code": "throttled", "reason": null}]);
    let invitation = json!({"invitation_id": "0b7c5a52-58b2-4d6c-9a44-8d6b0c6f0a11", "customer": "Contoso", "status": "used", "expires_at": "2026-11-22T10:00:00Z", "expected_tenant": CONTOSO});
    let row = json!({"tenant_id": CONTOSO, "A": "a"});
    let mut untagged = incident(CONTOSO, "7", "One");
    untagged["incident"]["customTags"] = json!([]);
    let api = Api::of(vec![
        ("GET", "/tenants".into(), json!({"tenants": tenants, "next": null})),
        (
            "GET",
            "/incidents".into(),
            json!({"incidents": [incident(CONTOSO, "7", "One")], "failures": failures, "next": null}),
        ),
        ("GET", format!("/tenants/{CONTOSO}/incidents/7"), untagged),
        ("GET", "/invitations".into(), json!({"invitations": [invitation], "next": null})),
        ("POST", "/hunting".into(), json!({"hunt_id": "h", "status": "done", "results": [row], "failures": failures})),
        ("DELETE", format!("/tenants/{CONTOSO}"), json!({"tenant_id": CONTOSO, "purged": {}, "access_ended": true})),
    ])
    .await;
    let plain = async |arguments: &[&str]| on_a_terminal(&api, 80, &[("NO_COLOR", "1")], arguments).await;
    let missing = format!("mandate: Fabrikam ({FABRIKAM}) is missing: throttled");
    let incidents = plain(&["incidents"]).await;
    assert!(
        incidents.contains(&missing) && incidents.contains("`mandate incident TENANT ID` shows one"),
        "{incidents}"
    );
    assert!(plain(&["hunt", "DeviceInfo"]).await.contains(&missing));
    assert!(plain(&["invitations"]).await.contains(CONTOSO), "an id that a person copies is whole");
    assert!(trimmed(&plain(&["incident", CONTOSO, "7"]).await).contains(&"Tags         –"));
    assert!(plain(&["offboard", CONTOSO, "--yes"]).await.contains("Deleted: nothing, as before."));
}

#[tokio::test]
async fn rows_written_to_the_terminal_are_harmless() {
    let table = json!({"schema": [{"name": ATTACK, "type": "String"}], "failures": [], "results": [{"tenant_id": CONTOSO, ATTACK: ATTACK}]});
    let api = Api::of(vec![("POST", "/hunting".into(), table)]).await;
    let csv = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("terminal.csv");
    let _ = std::fs::remove_file(&csv);
    std::os::unix::fs::symlink("/dev/tty", &csv).unwrap();
    for (file, shown) in
        [("/dev/tty", "\\u001b[2J"), ("/dev/stdout", "\\u001b[2J"), (csv.to_str().unwrap(), "\\u{1b}[2J")]
    {
        let written = on_a_terminal(&api, 300, &[], &["hunt", "DeviceInfo", "--out", file]).await;
        is_harmless(&written);
        assert!(written.contains(shown), "{file}: {written:?}");
    }
}

#[tokio::test]
async fn description_of_an_incident_is_one_paragraph() {
    let mut found = incident(CONTOSO, "7", "Title");
    found["incident"]["description"] = json!("One line.\nAnother.\r\nA third.");
    let api = Api::of(vec![("GET", format!("/tenants/{CONTOSO}/incidents/7"), found)]).await;
    let shown = on_a_terminal(&api, 200, &[("NO_COLOR", "1")], &["incident", CONTOSO, "7"]).await;
    assert!(shown.contains("\n\nOne line.\nAnother.\nA third.\n\n1 alert\n"), "{shown}");
}

#[tokio::test]
async fn times_are_local_on_a_terminal_and_utc_in_requests() {
    let api = Api::of(vec![
        (
            "GET",
            "/incidents".into(),
            json!({"incidents": [incident(CONTOSO, "7", "One")], "failures": [], "next": null}),
        ),
        ("GET", "/tenants".into(), json!({"tenants": [], "next": null})),
    ])
    .await;
    let shown = on_a_terminal(&api, 200, &[("TZ", "XYZ-5:30")], &["incidents", "--since", "2026-11-22T10:00"]).await;
    assert!(shown.contains("2026-11-22 15:28:00"), "{shown}");
    let mut found = incident(CONTOSO, "7", "One");
    // Graph has an offset, Defender has none.
    found["incident"]["comments"] = json!([
        {"comment": "seen", "createdByDisplayName": "Olivia", "createdDateTime": "2026-11-22T10:00:00Z"},
        {"comment": "done", "createdBy": "Olivia", "createdTime": "2026-11-22T10:30:00.1234567"},
    ]);
    let one = Api::of(vec![("GET", format!("/tenants/{CONTOSO}/incidents/7"), found)]).await;
    let shown = on_a_terminal(&one, 200, &[("TZ", "XYZ-5:30")], &["incident", CONTOSO, "7"]).await;
    assert!(shown.contains("2026-11-22 15:30:00 Olivia: seen"), "{shown}");
    assert!(shown.contains("2026-11-22 16:00:00 Olivia: done"), "{shown}");
    let list = api.received().into_iter().find(|request| request.path == "/incidents").unwrap();
    assert!(list.query.contains("from=2026-11-22T04%3A30%3A00Z"), "{}", list.query);
}
