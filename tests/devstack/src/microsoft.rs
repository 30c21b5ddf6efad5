//! Microsoft as the functions see it: the simulator, or the real hosts.

use std::net::TcpListener;

use serde_json::{Value, json};
use sim::{App, Sim, SimOptions, TenantSeed};

use crate::{error::StackError, stack::Ports};

/// The partner's own tenant, where both apps are registered.
pub(crate) const HOME_TENANT_ID: &str = "11733a9e-0000-4000-8000-000000000000";
/// The app role of the rotation's own app. It permits changes to the apps that it owns.
const ROTATION_ROLE: &str = "Application.ReadWrite.OwnedBy";
/// The app roles that the partner's app requests.
const APP_ROLES: [&str; 4] =
    ["SecurityIncident.ReadWrite.All", "ThreatHunting.Read.All", "Incident.ReadWrite.All", "AdvancedHunting.Read.All"];

/// An app registration in the simulator with its first client secret.
#[derive(Debug)]
pub(crate) struct SimulatedApp {
    pub(crate) client_id: &'static str,
    pub(crate) client_secret: &'static str,
}

impl SimulatedApp {
    /// The app's credential in the JSON format of the secret in Secrets Manager.
    pub(crate) fn credential(&self) -> Value {
        json!({ "client_id": self.client_id, "client_secret": self.client_secret })
    }
}

/// The Microsoft that the functions call.
#[derive(Debug)]
pub(crate) enum Microsoft {
    Real,
    Simulated(Sim),
}

impl Microsoft {
    /// Starts a simulator on these ports.
    pub(crate) async fn simulate(ports: Ports) -> Result<Self, StackError> {
        let options = SimOptions { entra_port: ports.entra, graph_port: ports.graph, defender_port: ports.defender };
        let sim = Sim::start(options).await;
        let sim = sim.map_err(|error| StackError::SimulatorFailed { detail: error.to_string() })?;
        Ok(Self::Simulated(sim))
    }

    pub(crate) fn sim(&self) -> Option<&Sim> {
        match self {
            Self::Real => None,
            Self::Simulated(sim) => Some(sim),
        }
    }

    /// Registers the partner's app as in `infra/entra` and the rotation's app as in `infra/README.md`. Does nothing at the
    /// real Microsoft.
    pub(crate) fn register_apps(&self, app: &SimulatedApp, rotator: &SimulatedApp, redirect_uri: &str) {
        let Some(sim) = self.sim() else { return };
        sim.add_tenant(TenantSeed {
            tenant_id: HOME_TENANT_ID.to_owned(),
            domain: "litware.example".to_owned(),
            display_name: "Litware".to_owned(),
            ..TenantSeed::default()
        });
        sim.register_app(App {
            client_id: app.client_id.to_owned(),
            display_name: "Litware Security".to_owned(),
            home_tenant_id: HOME_TENANT_ID.to_owned(),
            requested_roles: APP_ROLES.map(str::to_owned).to_vec(),
            wids: true,
            client_secrets: vec![app.client_secret.to_owned()],
            redirect_uris: vec![redirect_uri.to_owned()],
            owners: vec![rotator.client_id.to_owned()],
            ..App::default()
        });
        // The rotation tests a new secret in the partner's own tenant, where the app needs no roles for that.
        sim.grant(HOME_TENANT_ID, app.client_id, &[]);
        sim.register_app(App {
            client_id: rotator.client_id.to_owned(),
            display_name: "Litware Security Rotation".to_owned(),
            home_tenant_id: HOME_TENANT_ID.to_owned(),
            requested_roles: vec![ROTATION_ROLE.to_owned()],
            client_secrets: vec![rotator.client_secret.to_owned()],
            single_tenant: true,
            ..App::default()
        });
        sim.grant(HOME_TENANT_ID, rotator.client_id, &[ROTATION_ROLE]);
    }

    /// Registers the app of a separate sign-in as `mandate register --sign-in-only` does. Does nothing at the real
    /// Microsoft.
    pub(crate) fn register_sign_in(&self, app: &SimulatedApp, redirect_uri: &str) {
        let Some(sim) = self.sim() else { return };
        sim.register_app(App {
            client_id: app.client_id.to_owned(),
            display_name: "Litware Security Sign-in".to_owned(),
            home_tenant_id: HOME_TENANT_ID.to_owned(),
            wids: true,
            client_secrets: vec![app.client_secret.to_owned()],
            redirect_uris: vec![redirect_uri.to_owned()],
            ..App::default()
        });
    }

    /// The variables that direct a function to the simulator's hosts; none for the real Microsoft.
    pub(crate) fn function_environment(&self) -> Vec<(String, String)> {
        let Some(sim) = self.sim() else {
            return Vec::new();
        };
        vec![
            ("ENTRA_AUTHORITY_HOST".to_owned(), sim.entra_url().to_owned()),
            ("GRAPH_ENDPOINT".to_owned(), sim.graph_url().to_owned()),
            ("DEFENDER_ENDPOINT".to_owned(), sim.defender_url().to_owned()),
        ]
    }
}

/// Fails if one of Microsoft's ports is taken. Called before anything is started.
pub(crate) fn check_ports(ports: Ports) -> Result<(), StackError> {
    for port in [ports.entra, ports.graph, ports.defender] {
        TcpListener::bind(("127.0.0.1", port)).map_err(|error| port_error(port, error))?;
    }
    Ok(())
}

/// Returns the stack's error for a port that cannot be opened.
pub(crate) fn port_error(port: u16, source: std::io::Error) -> StackError {
    if source.kind() == std::io::ErrorKind::AddrInUse {
        StackError::PortTaken { port }
    } else {
        StackError::Io { doing: format!("listening on port {port}"), source }
    }
}
