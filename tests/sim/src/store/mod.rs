//! The contents of Microsoft's directory and incident store: apps, and tenants with people, consents and incidents.

mod app;
mod incident;
mod resource;
mod tenant;

pub use app::{App, FederatedCredential};
pub(crate) use app::{AppRecord, Password, years_after};
pub(crate) use incident::EvidenceSamples;
pub use incident::{Alert, AlertCategories, Comment, EvidenceSet, Giant, Incident, IncidentSeed};
pub use resource::{
    APPLICATION_ADMINISTRATOR, AppRole, CLOUD_APPLICATION_ADMINISTRATOR, GLOBAL_ADMINISTRATOR, PERSONAL_ACCOUNTS,
    PRIVILEGED_ROLE_ADMINISTRATOR, Resource,
};
pub use tenant::{CallbackErrors, HuntingColumn, HuntingTable, Propagation, TenantSeed, User};
pub(crate) use tenant::{ServicePrincipal, Tenant};
