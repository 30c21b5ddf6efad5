//! Microsoft: the simulator, or the real one.

use std::net::TcpListener;

use sim::{App, Sim, SimOptions};

use crate::error::StackError;
use crate::stack::Ports;

/// The partner's own tenant, which nobody signs in to.
const HOME_TENANT_ID: &str = "11733a9e-0000-4000-8000-000000000000";
const ROLES: [&str; 4] =
    ["SecurityIncident.ReadWrite.All", "ThreatHunting.Read.All", "Incident.ReadWrite.All", "AdvancedHunting.Read.All"];

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

    /// Registers the partner's app as `infra/entra` describes it.
    pub(crate) fn register_app(&self, client_id: &str, client_secret: &str, redirect_uri: &str) {
        if let Some(sim) = &self.0 {
            sim.register_app(App {
                client_id: client_id.to_owned(),
                display_name: "Litware Security".to_owned(),
                home_tenant_id: HOME_TENANT_ID.to_owned(),
                requested_roles: ROLES.map(str::to_owned).to_vec(),
                wids: true,
                client_secrets: vec![client_secret.to_owned()],
                redirect_uris: vec![redirect_uri.to_owned()],
                ..App::default()
            });
        }
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
