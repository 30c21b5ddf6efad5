//! `cargo dev` without `--once`: a stack that keeps running, with customers whose incidents keep changing.

use std::{collections::BTreeMap, time::Duration};

use devstack::{Console, Failed, LogLine, Progress as _, Stack};
use serde_json::Value;
use sim::Sim;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{interval, interval_at},
};

use crate::{
    customers::{CONTOSO, FABRIKAM, NORTHWIND},
    journey, keyboard,
};

/// The interval in which new events and failures are printed.
const PRINT_INTERVAL: Duration = Duration::from_secs(1);
/// The interval in which an incident of a customer changes.
const CHANGE_INTERVAL: Duration = Duration::from_secs(8);

/// Creates three customers and onboards two of them. Prints all addresses and the consent link of the third.
pub(crate) async fn prepare(stack: &Stack, sim: &Sim, console: &mut Console) -> Result<(), Failed> {
    for customer in [&CONTOSO, &FABRIKAM, &NORTHWIND] {
        customer.seed(sim);
    }
    console.step("onboarding Contoso and Northwind");
    journey::onboard(stack, &CONTOSO).await?;
    journey::onboard(stack, &NORTHWIND).await?;
    let link = journey::invite(stack, FABRIKAM.name, None).await?;
    let operator_line = operator_line(stack, console).await?;
    console.line("");
    console.line(&format!("HTTP API    {}", stack.api_url()));
    console.line(&format!("Try         {operator_line}"));
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

/// Prints all addresses and a consent link for a real tenant.
pub(crate) async fn prepare_live(stack: &Stack, console: &mut Console) -> Result<(), Failed> {
    let link = journey::invite(stack, "Live customer", None).await?;
    let operator_line = operator_line(stack, console).await?;
    console.line("");
    console.line(&format!("HTTP API    {}", stack.api_url()));
    console.line(&format!("Try         {operator_line}"));
    console.line(&format!("AWS         {} (region {}, any keys)", stack.aws().endpoint(), devstack::REGION));
    console.line("Microsoft   the real one");
    console.line("");
    console.line(&format!("The app registration needs the redirect URI {}/consent/callback", stack.api_url()));
    console.line(
        "and the application permission SecurityIncident.Read.All of Microsoft Graph; `mandate register` makes one.",
    );
    console.line("Then an administrator of a customer's tenant opens this link:");
    console.line("");
    console.line(&format!("  {link}"));
    console.line("");
    Ok(())
}

/// Builds the operator's program. Returns a command of it to try, with its path from here.
async fn operator_line(stack: &Stack, console: &mut Console) -> Result<String, Failed> {
    console.step("building the operator's program");
    let path = devstack::build_operator(console).await?.display().to_string();
    let here = std::env::current_dir().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    let path = path.strip_prefix(&here).unwrap_or(&path);
    Ok(format!("{path} --api {} tenants", stack.api_url()))
}

/// Prints deliveries, status changes and failures until the future is dropped. Returns only an error.
pub(crate) async fn run(stack: &Stack, mut logs: Option<Receiver<LogLine>>, console: &mut Console) -> Failed {
    let mut print_ticks = interval(PRINT_INTERVAL);
    let mut change_ticks = interval_at(devstack::instant() + CHANGE_INTERVAL, CHANGE_INTERVAL);
    let mut turn = 0;
    let mut printer = EventPrinter::default();
    let mut keyboard = keyboard::lines();
    loop {
        tokio::select! {
            _ = print_ticks.tick() => {
                for failure in stack.take_failures() {
                    console.error(&format!("{failure} (the next event starts a new process)"));
                }
                if let Err(failed) = printer.print_new(stack, console).await {
                    return failed;
                }
            }
            _ = change_ticks.tick() => {
                if let Some(sim) = stack.sim() {
                    let customers = [&CONTOSO, &NORTHWIND, &FABRIKAM];
                    customers[turn % customers.len()].change_one_incident(sim, turn / customers.len());
                    turn += 1;
                }
            }
            Some(typed) = keyboard.recv() => {
                if typed.trim() == "r" {
                    rotate(stack, console).await;
                }
            }
            Some(log) = next_line(&mut logs) => console.line(&format!("{} {}", log.binary, log.line)),
        }
    }
}

/// Rotates the client secret. A failure is printed and does not end the program.
async fn rotate(stack: &Stack, console: &mut Console) {
    console.step("replacing the app's client secret");
    match stack.rotate().await {
        Ok(()) => console.line("The app has a new client secret. The previous one works until the next rotation."),
        Err(error) => console.error(&error.to_string()),
    }
}

/// Returns the next log line, or `None` without `--logs`. Skips lines that came faster than they could be printed.
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

/// Prints each event once.
#[derive(Debug, Default)]
struct EventPrinter {
    printed_events: usize,
    customers: BTreeMap<String, String>,
}

impl EventPrinter {
    async fn print_new(&mut self, stack: &Stack, console: &mut Console) -> Result<(), Failed> {
        let events = stack.events_after(self.printed_events).await?;
        for event in &events {
            let detail = &event["detail"];
            if event["detail-type"] == "Tenant Status Changed" {
                self.print_status(detail, console);
            } else if let Some(object) = detail["object"].as_str() {
                for line in stack.incident_lines(object).await? {
                    console.line(&self.incident_row(&line));
                }
            }
        }
        self.printed_events += events.len();
        Ok(())
    }

    fn print_status(&mut self, detail: &Value, console: &mut Console) {
        let (tenant_id, customer) = (text(&detail["tenant_id"]), text(&detail["customer"]));
        let reason = detail["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
        console.line(&format!("{customer} is {}{reason}", text(&detail["to"])));
        self.customers.insert(tenant_id.to_owned(), customer.to_owned());
    }

    fn incident_row(&self, line: &Value) -> String {
        let tenant_id = text(&line["tenant_id"]);
        let customer = self.customers.get(tenant_id).map_or(tenant_id, String::as_str);
        let incident = &line["incident"];
        // Graph calls it displayName, Defender incidentName.
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
    fn incident_is_printed_as_one_line() {
        let mut printer = EventPrinter::default();
        printer.customers.insert("t".to_owned(), "Contoso".to_owned());
        let graph = json!({
            "tenant_id": "t", "incident_id": "7", "change": "created", "fetched_at": "2026-01-02T03:04:05Z",
            "incident": { "displayName": "Phishing", "severity": "high" },
        });
        assert_eq!(printer.incident_row(&graph), "03:04:05  Contoso        7  created   high          Phishing");
        let defender = json!({
            "tenant_id": "u", "incident_id": "8", "change": "merged", "fetched_at": "2026-01-02T03:04:05Z",
            "incident": { "incidentName": "Malware", "severity": "Informational" },
        });
        assert_eq!(printer.incident_row(&defender), "03:04:05  u              8  merged    informational Malware");
    }
}
