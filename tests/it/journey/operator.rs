//! The whole job by `mandate` alone: an operator onboards a customer, sees its incidents, finds out why it is paused, hunts
//! over all tenants and offboards it; an agent looks on through MCP.

use std::{path::PathBuf, time::Duration};

use devstack::{Browser, Quiet};
use serde_json::{Value, json};
use sim::{HuntingColumn, HuntingTable};
use tokio::process::Command;

use super::harness::{APP, CONTOSO, Customer, FABRIKAM, StackHarness};

/// The time in which each command ends.
const LIMIT: Duration = Duration::from_mins(2);

/// An operator with the program and the address of the API.
struct Operator {
    program: PathBuf,
    address: String,
}

impl Operator {
    /// Runs a command; its exit status, and the objects that it printed.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().env("MANDATE_API", &self.address);
        let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await;
        let output = output.unwrap_or_else(|_| panic!("{arguments:?} goes on after {LIMIT:?}")).unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let objects = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), objects, String::from_utf8(output.stderr).unwrap())
    }

    /// The objects that a command prints which must succeed.
    async fn objects(&self, arguments: &[&str]) -> Vec<Value> {
        let (status, objects, said) = self.run(arguments).await;
        assert_eq!(status, Some(0), "{arguments:?}: {said}");
        objects
    }

    /// The one object that a command prints which must succeed.
    async fn object(&self, arguments: &[&str]) -> Value {
        let mut objects = self.objects(arguments).await;
        assert_eq!(objects.len(), 1, "{arguments:?}: {objects:?}");
        objects.remove(0)
    }

    /// Invites a customer, lets its administrator consent, and polls until the program calls the tenant active.
    async fn onboard(&self, harness: &StackHarness, customer: &Customer, named: &[&str]) {
        let invitation = self.object(&[&["invite", customer.name], named].concat()).await;
        let link = invitation["consent_url"].as_str().unwrap();
        let page = Browser::new().unwrap().consent(link, customer.tenant_id, customer.administrator).await.unwrap();
        assert_eq!(page.status, 200, "{}", page.html);
        self.until(harness, customer, "active").await;
        let used = self.objects(&["invitations"]).await;
        let one = used.iter().find(|one| one["invitation_id"] == invitation["invitation_id"]).unwrap();
        assert_eq!(one["status"], "used");
    }

    async fn until(&self, harness: &StackHarness, customer: &Customer, status: &str) {
        harness
            .until(format!("{} is {status}", customer.name), async || {
                let tenant = self.object(&["tenant", customer.tenant_id]).await;
                let reached = tenant["status"] == status;
                if !reached {
                    harness.poll().await;
                }
                reached
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_does_the_whole_job_with_the_program_alone() {
    let harness = StackHarness::start("operator", &[]).await;
    let program = devstack::build_operator(&Quiet).await.unwrap();
    let operator = Operator { program, address: harness.stack.api_url().to_owned() };
    for customer in [CONTOSO, FABRIKAM] {
        harness.seed(&customer);
        harness.incident(&customer, &format!("First of {}", customer.name), 30);
        let column = |name: &str| HuntingColumn { name: name.to_owned(), kind: "String".to_owned() };
        let row = json!({"DeviceName": format!("host of {}", customer.name)}).as_object().cloned().unwrap();
        let table =
            HuntingTable { name: "DeviceInfo".to_owned(), columns: vec![column("DeviceName")], rows: vec![row] };
        harness.sim.put_hunting_table(customer.tenant_id, table);
    }
    operator.onboard(&harness, &CONTOSO, &["--tenant", CONTOSO.domain]).await;
    operator.onboard(&harness, &FABRIKAM, &[]).await;
    sees_the_incidents(&harness, &operator).await;
    works_through_defender(&harness, &operator).await;
    finds_out_why_it_is_paused(&harness, &operator).await;
    harness.while_messages_are_delivered(hunts(&operator)).await;
    harness.while_messages_are_delivered(agent_looks_on(&operator)).await;
    offboards(&harness, &operator).await;
    harness.nothing_failed().await;
    harness.end().await;
}

async fn sees_the_incidents(harness: &StackHarness, operator: &Operator) {
    harness.delivered(2).await;
    let incidents = operator.objects(&["incidents", "--severity", "high", "--since", "2h"]).await;
    assert_eq!(incidents.len(), 2, "{incidents:?}");
    let one = operator.object(&["incident", CONTOSO.tenant_id, "1"]).await;
    assert_eq!(one["incident"]["displayName"], "First of Contoso");
    let arguments = ["set", CONTOSO.tenant_id, "1", "--status", "in_progress", "--assigned-to", "ada@partner.example"];
    let changed = operator.object(&arguments).await;
    assert_eq!(changed["incident"]["assignedTo"], "ada@partner.example");
    let claims = operator.object(&["token", CONTOSO.tenant_id, "--claims"]).await;
    assert_eq!((&claims["tid"], &claims["appid"]), (&json!(CONTOSO.tenant_id), &json!(APP)));
    let job = operator.object(&["backfill", CONTOSO.tenant_id, "--from", "2d"]).await;
    harness.stack.drain_queue().await.unwrap();
    let done = operator.objects(&["job", CONTOSO.tenant_id, job["job_id"].as_str().unwrap(), "--follow"]).await;
    assert_eq!(done.last().unwrap()["status"], "done");
}

/// The same commands where the tenant is read through Defender, whose incidents have other members.
async fn works_through_defender(harness: &StackHarness, operator: &Operator) {
    // As if the administrator had consented to the other API, too.
    harness.sim.grant(CONTOSO.tenant_id, APP, &["Incident.ReadWrite.All"]);
    let moved = operator.object(&["change", CONTOSO.tenant_id, "--incident-api", "defender"]).await;
    assert_eq!((&moved["api"], &moved["status"]), (&json!("defender"), &json!("active")));
    let listed = operator.object(&["incidents", "--tenant", CONTOSO.tenant_id, "--since", "2h"]).await;
    assert_eq!((&listed["api"], &listed["incident_id"]), (&json!("defender"), &json!("1")));
    let one = operator.object(&["incident", CONTOSO.tenant_id, "1"]).await;
    assert_eq!(one["incident"]["incidentName"], "First of Contoso");
    let arguments = ["set", CONTOSO.tenant_id, "1", "--status", "active", "--comment", "checked"];
    let changed = operator.object(&arguments).await;
    assert_eq!(changed["incident"]["status"], "Active");
    let moved = operator.object(&["change", CONTOSO.tenant_id, "--incident-api", "graph"]).await;
    assert_eq!(moved["api"], "graph");
}

async fn finds_out_why_it_is_paused(harness: &StackHarness, operator: &Operator) {
    harness.sim.update_tenant(FABRIKAM.tenant_id, |tenant| tenant.defender_licensed = false);
    operator.until(harness, &FABRIKAM, "paused").await;
    let worst = operator.objects(&["tenants"]).await.remove(0);
    assert_eq!((&worst["customer"], &worst["reason"]), (&json!("Fabrikam"), &json!("resource_absent")));
    let (status, _, said) = operator.run(&["incidents", "--tenant", FABRIKAM.tenant_id]).await;
    assert_eq!(status, Some(1));
    assert!(
        said.contains("tenant_not_active") && said.contains("resource_absent") && said.contains("licence"),
        "{said}"
    );
    harness.sim.update_tenant(FABRIKAM.tenant_id, |tenant| tenant.defender_licensed = true);
    let resumed = operator.object(&["resume", FABRIKAM.tenant_id]).await;
    assert_eq!(resumed["status"], "active", "{resumed}");
}

async fn hunts(operator: &Operator) {
    let mut rows = operator.objects(&["hunt", "DeviceInfo | take 5", "--timespan", "7d"]).await;
    rows.sort_by_key(|row| row["DeviceName"].to_string());
    let expected = [CONTOSO, FABRIKAM]
        .map(|customer| json!({"tenant_id": customer.tenant_id, "DeviceName": format!("host of {}", customer.name)}));
    assert_eq!(rows, expected);
    let (status, _, said) = operator.run(&["hunt", "NoSuchTable", "--tenant", CONTOSO.tenant_id]).await;
    assert_eq!(status, Some(1), "{said}");
}

/// A session of the official client in another language.
async fn agent_looks_on(operator: &Operator) {
    let python = devstack::interpreter().await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/journey/agent.py");
    let mut command = Command::new(python);
    command.arg(script).arg(&operator.program).args([&operator.address, CONTOSO.tenant_id]);
    let output =
        tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await.expect("the session ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["tools"].as_array().unwrap().len(), 7, "{report}");
    assert_eq!(report["customer"], "Contoso");
    assert_eq!(report["title"], "First of Contoso");
    assert_eq!(report["rows"], 2);
    assert_eq!(report["refused"], "query_leaves_tenant");
}

async fn offboards(harness: &StackHarness, operator: &Operator) {
    let (status, _, said) = operator.run(&["offboard", FABRIKAM.tenant_id]).await;
    assert_eq!(status, Some(2), "{said}");
    let receipt = operator.object(&["offboard", FABRIKAM.tenant_id, "--yes"]).await;
    assert_eq!(receipt["access_ended"], false);
    harness.sim.revoke(FABRIKAM.tenant_id, APP);
    let receipt = operator.object(&["offboard", FABRIKAM.tenant_id, "--yes"]).await;
    assert_eq!(receipt["access_ended"], true);
    let left: Vec<_> = operator.objects(&["tenants", "--status", "active"]).await;
    assert_eq!((left.len(), &left[0]["customer"]), (1, &json!("Contoso")));
}
