//! Microsoft: the simulator, or the real one.

use std::net::TcpListener;

use serde_json::{Value, json};
use sim::{App, Sim, SimOptions, TenantSeed};

use crate::{error::StackError, stack::Ports};

/// The partner's own tenant, which nobody signs in to.
pub(crate) const HOME_TENANT_ID: &str = "11733a9e-0000-4000-8000-000000000000";
/// What the rotation's own app may do: change the apps that it owns.
const OWNED: &str = "Application.ReadWrite.OwnedBy";
const ROLES: [&str; 4] =
    ["SecurityIncident.ReadWrite.All", "ThreatHunting.Read.All", "Incident.ReadWrite.All", "AdvancedHunting.Read.All"];

/// An app in the simulator, and the secret that it has from the start.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) client_id: &'static str,
    pub(crate) client_secret: &'static str,
}

impl Registered {
    /// What stands in Secrets Manager.
    pub(crate) fn credential(&self) -> Value {
        json!({ "client_id": self.client_id, "client_secret": self.client_secret })
    }
}

/// Who the functions speak to.
#[derive(Debug)]
pub(crate) struct Microsoft(Option<Sim>);

impl Microsoft {
    pub(crate) fn real() -> Self {
        Self(None)
    }

    pub(crate) fn simulated(sim: Sim) -> Self {
        Self(Some(sim))
    }

    pub(crate) async fn start(ports: Ports) -> Result<Self, StackError> {
        let options = SimOptions { entra_port: ports.entra, graph_port: ports.graph, defender_port: ports.defender };
        let sim = Sim::start(options).await;
        let sim = sim.map_err(|error| StackError::SimulatorFailed { detail: error.to_string() })?;
        Ok(Self(Some(sim)))
    }

    pub(crate) fn sim(&self) -> Option<&Sim> {
        self.0.as_ref()
    }

    /// Registers the partner's app as `infra/entra` describes it, and the rotation's as `infra/README.md` does.
    pub(crate) fn register_apps(&self, app: &Registered, rotator: &Registered, redirect_uri: &str) {
        let Some(sim) = &self.0 else { return };
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
            requested_roles: ROLES.map(str::to_owned).to_vec(),
            wids: true,
            client_secrets: vec![app.client_secret.to_owned()],
            redirect_uris: vec![redirect_uri.to_owned()],
            owners: vec![rotator.client_id.to_owned()],
            ..App::default()
        });
        // A new secret is proven in the partner's own tenant, where the app needs no roles for that.
        sim.grant(HOME_TENANT_ID, app.client_id, &[]);
        sim.register_app(App {
            client_id: rotator.client_id.to_owned(),
            display_name: "Litware Security Rotation".to_owned(),
            home_tenant_id: HOME_TENANT_ID.to_owned(),
            requested_roles: vec![OWNED.to_owned()],
            client_secrets: vec![rotator.client_secret.to_owned()],
            single_tenant: true,
            ..App::default()
        });
        sim.grant(HOME_TENANT_ID, rotator.client_id, &[OWNED]);
    }

    /// The hosts, where they are not Microsoft's own.
    pub(crate) fn function_environment(&self) -> Vec<(String, String)> {
        let Some(sim) = &self.0 else {
            return Vec::new();
        };
        vec![
            ("ENTRA_AUTHORITY_HOST".to_owned(), sim.entra_url().to_owned()),
            ("GRAPH_ENDPOINT".to_owned(), sim.graph_url().to_owned()),
            ("DEFENDER_ENDPOINT".to_owned(), sim.defender_url().to_owned()),
        ]
    }
}

/// Says which port is taken, before anything is started.
pub(crate) fn check_ports(ports: Ports) -> Result<(), StackError> {
    for port in [ports.entra, ports.graph, ports.defender] {
        TcpListener::bind(("127.0.0.1", port)).map_err(|error| port_error(port, error))?;
    }
    Ok(())
}

/// Why a port cannot be listened on.
pub(crate) fn port_error(port: u16, source: std::io::Error) -> StackError {
    if source.kind() == std::io::ErrorKind::AddrInUse {
        StackError::PortTaken { port }
    } else {
        StackError::Io { doing: format!("listening on port {port}"), source }
    }
}
