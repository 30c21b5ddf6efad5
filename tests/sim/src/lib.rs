//! A stand-in for Microsoft: Entra, Microsoft Graph and the Defender XDR API on loopback. It is strict and keeps
//! state.
//!
//! The same server is a library for tests and a program (`cargo run -p sim -- --help`). It follows Microsoft's
//! documents
//! and imports nothing of the code under test.

mod browser;
mod caller;
mod clock;
mod control;
mod defender;
mod entra;
mod faults;
mod graph;
mod http;
mod list;
mod odata;
mod respond;
mod serve;
mod store;
#[cfg(test)]
mod testing;
mod update;
mod world;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use jiff::Timestamp;
use tokio::sync::watch;

pub use clock::SimClock;
pub use entra::keys::{OldKey, self_signed};
pub use faults::{Fault, FaultKind, Host, RetryAfter};
pub use store::{
    APPLICATION_ADMINISTRATOR, Alert, AlertCategories, App, AppRole, CLOUD_APPLICATION_ADMINISTRATOR, CallbackErrors,
    Comment, EvidenceSet, FederatedCredential, GLOBAL_ADMINISTRATOR, Giant, HuntingColumn, HuntingTable, Incident,
    IncidentSeed, PERSONAL_ACCOUNTS, PRIVILEGED_ROLE_ADMINISTRATOR, Propagation, Resource, TenantSeed, User,
};
pub use world::{Behaviour, Call, Limits, ListBehaviour, NextLink, Order};

use browser::PageWalk;
use entra::keys::Keys;
use serve::{Shared, bind, serve};
use world::World;

/// Ports on 127.0.0.1; 0 is any free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimOptions {
    /// Port of the login host.
    pub entra_port: u16,
    /// Port of Microsoft Graph.
    pub graph_port: u16,
    /// Port of the Defender XDR API.
    pub defender_port: u16,
}

/// The button that a person presses on the consent page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Consent is granted if the person may grant it.
    Accept,
    /// The browser returns to the app with an error.
    Cancel,
}

/// A running simulator. Clones are handles of the same one; dropping the last stops it.
#[derive(Clone, Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    clock: SimClock,
    urls: Arc<[String; 3]>,
    /// The servers stop when the last sender is gone.
    _running: Arc<watch::Sender<bool>>,
}

impl Sim {
    /// Opens the three ports and serves until the last handle is dropped.
    pub async fn start(options: SimOptions) -> std::io::Result<Self> {
        let ports = [options.entra_port, options.graph_port, options.defender_port];
        let listeners = [bind(ports[0]).await?, bind(ports[1]).await?, bind(ports[2]).await?];
        let mut urls = [String::new(), String::new(), String::new()];
        for (url, listener) in urls.iter_mut().zip(&listeners) {
            *url = format!("http://{}", listener.local_addr()?);
        }
        let clock = SimClock::default();
        let shared = Arc::new(Shared::new(World::new(clock.clone(), urls.clone(), Keys::new()?)));
        let (running, stop) = watch::channel(false);
        for (host, listener) in [Host::Entra, Host::Graph, Host::Defender].into_iter().zip(listeners) {
            serve(listener, host, Arc::clone(&shared), stop.clone());
        }
        Ok(Self { shared, clock, urls: Arc::new(urls), _running: Arc::new(running) })
    }

    /// `http://127.0.0.1:PORT` of the login host.
    pub fn entra_url(&self) -> &str {
        &self.urls[Host::Entra as usize]
    }

    /// `http://127.0.0.1:PORT` of Microsoft Graph.
    pub fn graph_url(&self) -> &str {
        &self.urls[Host::Graph as usize]
    }

    /// `http://127.0.0.1:PORT` of the Defender XDR API.
    pub fn defender_url(&self) -> &str {
        &self.urls[Host::Defender as usize]
    }

    /// The clock of this simulator, which tests may move.
    pub fn clock(&self) -> &SimClock {
        &self.clock
    }

    /// Writes one line for each request to standard error, without its query and body.
    pub fn set_verbose(&self, verbose: bool) {
        self.shared.verbose.store(verbose, Ordering::Relaxed);
    }

    /// Plants the apps, tenants, grants and incidents of a JSON document, as `POST /_sim/seed` does.
    pub fn seed(&self, json: &str) -> serde_json::Result<()> {
        serde_json::from_str::<control::Seed>(json)?.plant(&mut self.shared.world());
        Ok(())
    }

    /// Registers an app, or replaces the registration with its client ID.
    pub fn register_app(&self, app: App) {
        let mut world = self.shared.world();
        let record = store::AppRecord::new(app, world.now());
        world.apps.insert(record.app.client_id.clone(), record);
    }

    /// Adds a client secret to an app, valid between two times.
    pub fn add_client_secret(&self, client_id: &str, secret: &str, start: Timestamp, end: Timestamp) {
        if let Some(record) = self.shared.world().apps.get_mut(client_id) {
            record.passwords.push(store::Password {
                key_id: clock::guid(),
                secret: secret.to_owned(),
                display_name: None,
                start,
                end,
                usable_from: start,
            });
        }
    }

    /// Removes a client secret from an app; Entra refuses it with 7000215 from then on.
    pub fn remove_client_secret(&self, client_id: &str, secret: &str) {
        if let Some(record) = self.shared.world().apps.get_mut(client_id) {
            record.passwords.retain(|password| password.secret != secret);
        }
    }

    /// Ends a client secret's validity now; Entra refuses it with 7000222 from then on.
    pub fn expire_client_secret(&self, client_id: &str, secret: &str) {
        let mut world = self.shared.world();
        let now = world.now();
        if let Some(record) = world.apps.get_mut(client_id) {
            record.passwords.iter_mut().filter(|known| known.secret == secret).for_each(|known| known.end = now);
        }
    }

    /// The client secrets that are registered, oldest first.
    pub fn client_secrets(&self, client_id: &str) -> Vec<String> {
        let world = self.shared.world();
        let passwords = world.apps.get(client_id).map(|record| record.passwords.as_slice()).unwrap_or_default();
        passwords.iter().map(|password| password.secret.clone()).collect()
    }

    /// The key ID of a registered client secret.
    pub fn client_secret_key_id(&self, client_id: &str, secret: &str) -> Option<String> {
        let world = self.shared.world();
        let mut passwords = world.apps.get(client_id)?.passwords.iter();
        passwords.find(|password| password.secret == secret).map(|password| password.key_id.clone())
    }

    /// Adds a tenant, or replaces the one with its ID.
    pub fn add_tenant(&self, seed: TenantSeed) {
        self.shared.world().tenants.insert(seed.tenant_id.clone(), store::Tenant::new(seed));
    }

    /// Changes a tenant's settings, e.g. its licence or the shape of its error callbacks.
    pub fn update_tenant(&self, tenant_id: &str, change: impl FnOnce(&mut TenantSeed)) {
        if let Some(tenant) = self.shared.world().tenants.get_mut(tenant_id) {
            change(&mut tenant.seed);
        }
    }

    /// Removes a tenant; Entra reports it as not found (90002) from then on.
    pub fn remove_tenant(&self, tenant_id: &str) {
        self.shared.world().tenants.remove(tenant_id);
    }

    /// Grants an app roles, as if an administrator had consented. The resource follows from the role's name.
    pub fn grant(&self, tenant_id: &str, client_id: &str, roles: &[&str]) {
        let roles: BTreeSet<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        let mut world = self.shared.world();
        world.grant(tenant_id, client_id, &roles);
        if let Some(principal) = world.ensure_service_principal(tenant_id, client_id) {
            principal.enabled = true;
        }
    }

    /// Removes single roles from an app. Tokens that were issued before keep them.
    pub fn revoke_roles(&self, tenant_id: &str, client_id: &str, roles: &[&str]) {
        if let Some(principal) = self.shared.world().ensure_service_principal(tenant_id, client_id) {
            for granted in principal.roles.values_mut() {
                granted.retain(|role| !roles.contains(&role.as_str()));
            }
        }
    }

    /// Removes an app's service principal from a tenant; Entra refuses the app with 7000229 from then on. Tokens that
    /// were issued before remain valid.
    pub fn revoke(&self, tenant_id: &str, client_id: &str) {
        if let Some(tenant) = self.shared.world().tenants.get_mut(tenant_id) {
            tenant.principals.remove(client_id);
        }
    }

    /// Disables an app's service principal; Entra refuses the app with 7000112 from then on.
    pub fn disable_service_principal(&self, tenant_id: &str, client_id: &str) {
        self.set_enabled(tenant_id, client_id, false);
    }

    /// Enables a disabled service principal of an app.
    pub fn enable_service_principal(&self, tenant_id: &str, client_id: &str) {
        self.set_enabled(tenant_id, client_id, true);
    }

    fn set_enabled(&self, tenant_id: &str, client_id: &str, enabled: bool) {
        if let Some(principal) = self.shared.world().ensure_service_principal(tenant_id, client_id) {
            principal.enabled = enabled;
        }
    }

    /// The roles that an app holds in a tenant, on both resources. `None` if it has no service principal there.
    pub fn granted(&self, tenant_id: &str, client_id: &str) -> Option<Vec<String>> {
        let world = self.shared.world();
        let principal = world.tenants.get(tenant_id)?.principals.get(client_id)?;
        Some(principal.roles.values().flatten().cloned().collect())
    }

    /// Adds an incident and returns its number. The number is empty if there is no such tenant.
    pub fn put_incident(&self, tenant_id: &str, seed: IncidentSeed) -> String {
        let mut world = self.shared.world();
        let now = world.now();
        world.tenants.get_mut(tenant_id).map(|tenant| tenant.put_incident(seed, now).to_string()).unwrap_or_default()
    }

    /// Changes an incident and returns `true`, or `false` if there is no such incident.
    /// The time of last update moves to now, and past its old value, unless the change sets it.
    pub fn update_incident(&self, tenant_id: &str, id: &str, change: impl FnOnce(&mut Incident)) -> bool {
        let mut world = self.shared.world();
        let now = world.now();
        let Some((tenant, id)) = world.tenants.get_mut(tenant_id).zip(id.parse().ok()) else { return false };
        tenant.update(id, now, change)
    }

    /// Changes an incident without moving its time of last update. `false` if there is no such incident.
    pub fn change_incident_silently(&self, tenant_id: &str, id: &str, change: impl FnOnce(&mut Incident)) -> bool {
        let mut world = self.shared.world();
        let Some((tenant, id)) = world.tenants.get_mut(tenant_id).zip(id.parse().ok()) else { return false };
        tenant.change_silently(id, change)
    }

    /// Merges an incident into another. It becomes `redirected`, and its alerts move to the other. `false` if either
    /// is missing.
    pub fn merge_incident(&self, tenant_id: &str, from: &str, into: &str) -> bool {
        let (Ok(from), Ok(into)) = (from.parse(), into.parse()) else { return false };
        self.shared.world().merge(tenant_id, from, into)
    }

    /// Moves alerts to an incident, or to a new one, as Graph's `moveAlerts` does. Returns the target. `None`: an alert or
    /// the target is unknown.
    pub fn move_alerts(&self, tenant_id: &str, alert_ids: &[String], into: Option<&str>) -> Option<String> {
        let into = into.map(str::parse).transpose().ok()?;
        Some(self.shared.world().move_alerts(tenant_id, alert_ids, into)?.to_string())
    }

    /// Hides an incident until [`Sim::set_visible_from`] shows it. `false` if there is no such incident.
    pub fn hide_incident(&self, tenant_id: &str, id: &str) -> bool {
        self.change_incident_silently(tenant_id, id, |incident| incident.hidden = true)
    }

    /// Shows an incident only from a time on, even if its last update is older (an incident that is indexed late).
    pub fn set_visible_from(&self, tenant_id: &str, id: &str, from: Timestamp) -> bool {
        self.change_incident_silently(tenant_id, id, |incident| {
            incident.hidden = false;
            incident.visible_from = Some(from);
        })
    }

    /// The latest version of an incident.
    pub fn incident(&self, tenant_id: &str, id: &str) -> Option<Incident> {
        let id: u64 = id.parse().ok()?;
        Some(self.shared.world().tenants.get(tenant_id)?.incidents.get(&id)?.incident.clone())
    }

    /// All incidents of a tenant in the order of their numbers.
    pub fn incidents(&self, tenant_id: &str) -> Vec<Incident> {
        let world = self.shared.world();
        let incidents = world.tenants.get(tenant_id).map(|tenant| tenant.incidents.values());
        incidents.into_iter().flatten().map(|stored| stored.incident.clone()).collect()
    }

    /// Adds or replaces a table that hunting queries read.
    pub fn put_hunting_table(&self, tenant_id: &str, table: HuntingTable) {
        if let Some(tenant) = self.shared.world().tenants.get_mut(tenant_id) {
            tenant.hunting.retain(|known| known.name != table.name);
            tenant.hunting.push(table);
        }
    }

    /// Adds a fault. Of several that match, the earlier one takes effect first.
    pub fn fault(&self, fault: Fault) {
        self.shared.world().faults.0.push(fault);
    }

    /// Removes all faults that were added.
    pub fn clear_faults(&self) {
        self.shared.world().faults.0.clear();
    }

    /// The faults that can still take effect.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.world().faults.0.clone()
    }

    /// Limits the calls to a host: for one tenant, or without one for each tenant that has no limits of its own.
    pub fn set_limits(&self, host: Host, tenant_id: Option<&str>, limits: Limits) {
        self.shared.world().limits.insert((host, tenant_id.map(str::to_owned)), limits);
    }

    /// Changes the choices that Microsoft's documents leave open.
    pub fn configure(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.world().behaviour);
    }

    /// Signs with a new key from now on. Fails only if no key can be generated.
    pub fn roll_keys(&self, old_key: OldKey) -> std::io::Result<()> {
        self.shared.world().keys.roll(old_key)
    }

    /// Issues an access token without a request to the token endpoint. It is valid for one hour.
    pub fn issue_token(&self, tenant_id: &str, client_id: &str, roles: &[&str], resource: Resource) -> String {
        entra::issue_app_token(&mut self.shared.world(), tenant_id, client_id, roles, resource)
    }

    /// Completes the sign-in that a URL starts, as a user (by name or object ID).
    /// Returns the URL that the browser is redirected to, or the HTML of an error page.
    pub fn sign_in(&self, authorize_url: &str, tenant_id: &str, user: &str) -> Result<String, String> {
        PageWalk { url: authorize_url, tenant_id, user, decision: None }.complete(&self.shared)
    }

    /// Completes the admin consent that a URL starts, as a user. Returns the URL that the browser is redirected to,
    /// or the HTML of an error page.
    pub fn consent(
        &self,
        consent_url: &str,
        tenant_id: &str,
        user: &str,
        decision: Decision,
    ) -> Result<String, String> {
        PageWalk { url: consent_url, tenant_id, user, decision: Some(decision) }.complete(&self.shared)
    }

    /// All requests so far, in order, without those to `/_sim`.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.world().calls.clone()
    }

    /// Removes all recorded requests.
    pub fn clear_calls(&self) {
        self.shared.world().calls.clear();
    }

    /// The number of recorded requests to a host for a tenant.
    pub fn count(&self, host: Host, tenant_id: &str) -> usize {
        let world = self.shared.world();
        world.calls.iter().filter(|call| call.host == host && call.tenant_id.as_deref() == Some(tenant_id)).count()
    }
}
