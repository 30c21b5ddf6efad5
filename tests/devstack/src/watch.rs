//! `cargo dev`: a stack that stays up, with customers whose incidents go on changing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sim::Sim;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::interval;

use devstack::{Console, Failed, LogLine, Progress as _, Stack};

use crate::journey;
use crate::keyboard;
use crate::world::{CONTOSO, FABRIKAM, NORTHWIND};

const LOOK: Duration = Duration::from_secs(1);
/// Between two things that happen at the customers.
const LIFE: Duration = Duration::from_secs(8);

/// Seeds, onboards two of three customers, and says what to do with the third.
pub(crate) async fn introduce(stack: &Stack, sim: &Sim, console: &mut Console) -> Result<(), Failed> {
    for customer in [&CONTOSO, &FABRIKAM, &NORTHWIND] {
        customer.seed(sim);
    }
    console.step("onboarding Contoso and Northwind");
    journey::onboard(stack, &CONTOSO).await?;
    journey::onboard(stack, &NORTHWIND).await?;
    let link = journey::invite(stack, FABRIKAM.name, None).await?;
    console.line("");
    console.line(&format!("HTTP API    {}", stack.api_url()));
    console.line(&format!(
        "Microsoft   {} (login), {} (Graph), {} (Defender)",
        sim.entra_url(),
        sim.graph_url(),
        sim.defender_url()
    ));
    console.line(&format!("AWS         {} (region {}, any keys)", stack.aws().endpoint(), devstack::REGION));
    console.line("Logs        target/devstack/logs (--logs prints them here)");
    console.line("Rotation    r and Enter replaces the app's client secret");
    console.line("");
    console.line("Contoso (by Graph) and Northwind (by Defender) are onboarded. Fabrikam waits for its administrator:");
    console.line(&format!("open this link, sign in as {} and accept.", FABRIKAM.administrator));
    console.line("");
    console.line(&format!("  {link}"));
    console.line("");
    Ok(())
}

/// Says how a real customer is onboarded.
pub(crate) async fn introduce_live(stack: &Stack, console: &mut Console) -> Result<(), Failed> {
    let link = journey::invite(stack, "Live customer", None).await?;
    console.line("");
    console.line(&format!("HTTP API    {}", stack.api_url()));
    console.line(&format!("AWS         {} (region {}, any keys)", stack.aws().endpoint(), devstack::REGION));
    console.line("Microsoft   the real one");
    console.line("");
    console.line(&format!("The app registration needs the redirect URI {}/consent/callback.", stack.api_url()));
    console.line("Then an administrator of a customer's tenant opens this link:");
    console.line("");
    console.line(&format!("  {link}"));
    console.line("");
    Ok(())
}

/// Prints what is delivered, until it is dropped.
pub(crate) async fn watch(stack: &Stack, mut logs: Option<Receiver<LogLine>>, console: &mut Console) -> Failed {
    let mut look = interval(LOOK);
    let mut life = interval(LIFE);
    // Its first tick would come at once.
    life.reset();
    let mut turn = 0;
    let mut seen = Seen::default();
    let mut keyboard = keyboard::lines();
    loop {
        tokio::select! {
            _ = look.tick() => {
                for failure in stack.take_failures() {
                    console.error(&format!("{failure} (the next event starts a new process)"));
                }
                if let Err(failed) = seen.print_new(stack, console).await {
                    return failed;
                }
            }
            _ = life.tick() => {
                if let Some(sim) = stack.sim() {
                    let customers = [&CONTOSO, &NORTHWIND, &FABRIKAM];
                    customers[turn % customers.len()].happen(sim, turn / customers.len());
                    turn += 1;
                }
            }
            Some(typed) = keyboard.recv() => {
                if typed.trim() == "r" {
                    rotate(stack, console).await;
                }
            }
            Some(printed) = next_line(&mut logs) => console.line(&format!("{} {}", printed.binary, printed.line)),
        }
    }
}

/// A rotation that fails is told, and changes nothing else.
async fn rotate(stack: &Stack, console: &mut Console) {
    console.step("replacing the app's client secret");
    match stack.rotate().await {
        Ok(()) => console.line("The app has a new client secret. The one before works until the next rotation."),
        Err(error) => console.error(&error.to_string()),
    }
}

/// The next log line, where logs are wanted; lines that came too fast are left out.
async fn next_line(logs: &mut Option<Receiver<LogLine>>) -> Option<LogLine> {
    let logs = logs.as_mut()?;
    loop {
        match logs.recv().await {
            Ok(line) => return Some(line),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

/// What was printed already.
#[derive(Debug, Default)]
struct Seen {
    events: usize,
    customers: BTreeMap<String, String>,
}

impl Seen {
    async fn print_new(&mut self, stack: &Stack, console: &mut Console) -> Result<(), Failed> {
        let events = stack.events_after(self.events).await?;
        for event in &events {
            let detail = &event["detail"];
            if event["detail-type"] == "Tenant Status Changed" {
                self.status(detail, console);
            } else if let Some(object) = detail["object"].as_str() {
                for line in stack.lines_of(object).await? {
                    console.line(&self.delivered(&line));
                }
            }
        }
        self.events += events.len();
        Ok(())
    }

    fn status(&mut self, detail: &Value, console: &mut Console) {
        let (tenant_id, customer) = (text(&detail["tenant_id"]), text(&detail["customer"]));
        let reason = detail["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
        console.line(&format!("{customer} is {}{reason}", text(&detail["to"])));
        self.customers.insert(tenant_id.to_owned(), customer.to_owned());
    }

    fn delivered(&self, line: &Value) -> String {
        let tenant_id = text(&line["tenant_id"]);
        let customer = self.customers.get(tenant_id).map_or(tenant_id, String::as_str);
        let incident = &line["incident"];
        // Graph's name, or Defender's.
        let title = incident["displayName"].as_str().or(incident["incidentName"].as_str()).unwrap_or_default();
        let time = text(&line["fetched_at"]).get(11..19).unwrap_or_default();
        format!(
            "{time}  {customer:<10} {id:>5}  {change:<8}  {severity:<13} {title}",
            id = text(&line["incident_id"]),
            change = text(&line["change"]),
            severity = text(&incident["severity"]).to_lowercase(),
        )
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_incident_is_one_line() {
        let mut seen = Seen::default();
        seen.customers.insert("t".to_owned(), "Contoso".to_owned());
        let graph = json!({
            "tenant_id": "t", "incident_id": "7", "change": "created", "fetched_at": "2026-01-02T03:04:05Z",
            "incident": { "displayName": "Phishing", "severity": "high" },
        });
        assert_eq!(seen.delivered(&graph), "03:04:05  Contoso        7  created   high          Phishing");
        let defender = json!({
            "tenant_id": "u", "incident_id": "8", "change": "merged", "fetched_at": "2026-01-02T03:04:05Z",
            "incident": { "incidentName": "Malware", "severity": "Informational" },
        });
        assert_eq!(seen.delivered(&defender), "03:04:05  u              8  merged    informational Malware");
    }
}
