//! The operator's own token for Microsoft Graph: from a file, a device code or the Azure CLI.

use std::{io::Write, path::Path, time::Duration};

use serde_json::Value;
use shared::{
    http::{Endpoint, HttpClient},
    text::Secret,
};

use crate::{
    args::Register,
    problem::{Problem, innermost},
    text::shown,
};

/// The public client of the Azure CLI, which every tenant knows.
const AZURE_CLI: &str = "04b07795-8ddb-461a-bbee-02f9e1bf7b46";

/// The polling interval of a device code whose response names none (RFC 8628, section 3.2).
const DEFAULT_INTERVAL_SECONDS: u64 = 5;

/// The longest wait for the Azure CLI. It renews its own session at Entra, and asks nobody anything.
const AZURE_CLI_TIMEOUT: Duration = Duration::from_mins(1);

/// Returns an access token for Graph.
pub(super) async fn token(args: &Register, http: &HttpClient) -> Result<Secret, Problem> {
    match (&args.token_file, &args.device_code) {
        (Some(file), _) => from_file(file),
        (None, Some(tenant)) => DeviceCode { args, http }.token(tenant).await,
        (None, None) => from_azure_cli("az", &args.graph, AZURE_CLI_TIMEOUT).await,
    }
}

fn from_file(file: &Path) -> Result<Secret, Problem> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Problem::new("usage", format!("{}: {error}.", file.display())))?;
    Ok(Secret::new(text.trim().to_owned()))
}

async fn from_azure_cli(program: &str, graph: &str, limit: Duration) -> Result<Secret, Problem> {
    let arguments = ["account", "get-access-token", "--resource", graph, "--query", "accessToken", "-o", "tsv"];
    let output = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, output).await.map_err(|_| {
        let detail = format!("The Azure CLI did not respond within {} seconds.", limit.as_secs());
        Problem::new("no_graph_token", detail).advise("Run `az login` again, or use --device-code TENANT.")
    })?;
    let output = output.map_err(|_| {
        Problem::new("no_graph_token", "The Azure CLI (`az`) is not installed.")
            .advise("Install it, or use --device-code TENANT or --token-file FILE.")
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Problem::new("no_graph_token", format!("The Azure CLI returned no token: {}", said.trim()))
            .advise("Run `az login --tenant YOUR-TENANT --allow-no-subscriptions`."));
    }
    Ok(Secret::new(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// The device authorization grant (RFC 8628): the person signs in on another device.
struct DeviceCode<'a> {
    args: &'a Register,
    http: &'a HttpClient,
}

impl DeviceCode<'_> {
    async fn token(&self, tenant: &str) -> Result<Secret, Problem> {
        let scope = format!("{}/Application.ReadWrite.All", self.args.graph.trim_end_matches('/'));
        let started = self.post(tenant, "devicecode", &[("client_id", AZURE_CLI), ("scope", &scope)]).await?;
        let (Some(device_code), Some(user_code), Some(address)) =
            (started["device_code"].as_str(), started["user_code"].as_str(), started["verification_uri"].as_str())
        else {
            return Err(refused(&started));
        };
        let instruction = format!("Open {} and enter the code {}.", shown(address), shown(user_code));
        let _ = writeln!(std::io::stderr().lock(), "{instruction}");
        let mut wait = started["interval"].as_u64().unwrap_or(DEFAULT_INTERVAL_SECONDS);
        loop {
            tokio::time::sleep(Duration::from_secs(wait)).await;
            let form = [
                ("client_id", AZURE_CLI),
                ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
                ("device_code", device_code),
            ];
            let response = self.post(tenant, "token", &form).await?;
            if let Some(token) = response["access_token"].as_str() {
                return Ok(Secret::new(token.to_owned()));
            }
            match response["error"].as_str() {
                Some("authorization_pending") => {}
                Some("slow_down") => wait += DEFAULT_INTERVAL_SECONDS,
                _ => return Err(refused(&response)),
            }
        }
    }

    async fn post(&self, tenant: &str, endpoint: &str, form: &[(&str, &str)]) -> Result<Value, Problem> {
        let host: Endpoint =
            self.args.login_host().parse().map_err(|_| Problem::new("usage", "--login is not a host."))?;
        let mut url = host.join("/");
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend([tenant, "oauth2", "v2.0", endpoint]);
        }
        let sent = self.http.post(url).form(form).timeout(Duration::from_secs(30)).send().await;
        let response = sent.map_err(|error| {
            Problem::new("unreachable", format!("The sign-in cannot be reached: {}.", innermost(&error)))
        })?;
        Ok(response.json().await.unwrap_or_default())
    }
}

fn refused(response: &Value) -> Problem {
    let said = response["error_description"].as_str().and_then(|text| text.lines().next()).unwrap_or("no reason given");
    Problem::new("no_graph_token", format!("The sign-in was refused: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[tokio::test]
    async fn azure_cli_that_does_not_respond_is_given_up() {
        use std::os::unix::fs::PermissionsExt;
        let file = std::env::temp_dir().join(format!("mandate-az-{}", std::process::id()));
        std::fs::write(&file, "#!/bin/sh\nexec sleep 60\n").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o700)).unwrap();
        let outcome = from_azure_cli(file.to_str().unwrap(), "https://graph.example", Duration::from_millis(300)).await;
        std::fs::remove_file(&file).unwrap();
        let problem = outcome.map(|_| ()).unwrap_err();
        assert_eq!(problem.code, "no_graph_token");
        assert!(problem.detail.contains("did not respond"), "{problem}");
    }
}
