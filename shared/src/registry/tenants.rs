//! Tenants: who they are, how they stand, and since when.

use std::collections::BTreeMap;

use futures_util::{TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Item, Page, Registry, Versioned, breaker::is_rest, tenant_pk, text, to_item};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::{Reason, TenantId},
};

/// How a tenant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Consent was given, but it is not usable yet.
    Pending,
    /// Polled and readable.
    Active,
    /// Stopped by the operator or by a reason.
    Paused,
    /// Gone; only a new invitation brings it back.
    Offboarded,
}

impl Status {
    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Offboarded => "offboarded",
        }
    }
}

/// One tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// The directory.
    pub tenant_id: TenantId,
    /// The customer's name, as the operator calls it.
    pub customer: String,
    /// How it stands.
    pub status: Status,
    /// Why it is not active, where there is a reason.
    pub reason: Option<Reason>,
    /// The surface that its incidents are read from.
    pub api: IncidentApi,
    /// App roles seen in its tokens, of both surfaces.
    pub roles: Vec<String>,
    /// When an administrator consented last.
    pub consented_at: Option<Timestamp>,
    /// Who consented: the name that the directory gives the person, or the object id.
    pub consented_by: Option<String>,
    /// When it became active for the first time since it was (re-)onboarded: where its feed starts.
    pub activated_at: Option<Timestamp>,
    /// When it was offboarded.
    pub offboarded_at: Option<Timestamp>,
    /// While pending: since when, how often it was tried, and when it may be tried again.
    pub verification: Option<Verification>,
    /// Counts writes; each is on condition that nobody else wrote in between.
    pub revision: u64,
}

/// How far the check of a fresh consent has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// When the consent came back.
    pub since: Timestamp,
    /// Tries so far.
    pub tries: u32,
    /// No try before this time, whoever asks.
    pub next_try_at: Timestamp,
}

/// The item: the tenant with its keys.
#[derive(Serialize)]
struct Stored<'a> {
    pk: String,
    sk: &'static str,
    listing: &'static str,
    listed_at: String,
    #[serde(flatten)]
    tenant: &'a Tenant,
}

const PROFILE: &str = "PROFILE";
/// How many items are deleted at a time.
const DELETIONS: usize = 16;

const LISTING: &str = "tenants";

impl Registry {
    /// A tenant, read consistently.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<Option<Tenant>> {
        self.get(&tenant_pk(tenant), PROFILE).await
    }

    /// A tenant that must be there, offboarded or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a tenant that was never onboarded.
    pub async fn known_tenant(&self, tenant: &TenantId) -> Result<Tenant> {
        self.tenant(tenant).await?.ok_or(Error::NotFound)
    }

    /// A tenant that must be active.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::TenantNotActive`] with its reason.
    pub async fn active_tenant(&self, tenant: &TenantId) -> Result<Tenant> {
        let tenant = self.known_tenant(tenant).await?;
        if tenant.status == Status::Active { Ok(tenant) } else { Err(Error::TenantNotActive(tenant.reason)) }
    }

    /// Writes a new tenant (`revision` 0).
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is one already.
    pub async fn create_tenant(&self, tenant: &Tenant) -> Result<()> {
        self.create(tenant).await
    }

    /// Reads a tenant, changes it and writes it, again and again until nobody else wrote in between. Returns the tenant
    /// before and after. `change` may refuse with an error; nothing is written then, nor when it changes nothing.
    pub async fn change_tenant(
        &self,
        tenant: &TenantId,
        change: impl FnMut(&mut Tenant) -> Result<()>,
    ) -> Result<(Tenant, Tenant)> {
        self.change(&tenant_pk(tenant), PROFILE, change).await
    }

    /// Tenants in the order of their identifiers, of one status or of all.
    pub async fn tenants(&self, status: Option<Status>, limit: u32, next: Option<&str>) -> Result<Page<Tenant>> {
        self.list(LISTING, false, limit, next, |tenant: &Tenant| status.is_none_or(|status| tenant.status == status))
            .await
    }

    /// Deletes everything that is kept of a tenant, and tells how many items of which kind; but not its profile, and not
    /// until when Microsoft must not be asked for it, which stays true and expires by itself.
    pub async fn purge_tenant(&self, tenant: &TenantId) -> Result<BTreeMap<String, u64>> {
        self.keep_throttling(tenant).await?;
        let mut purged = BTreeMap::new();
        let mut start = None;
        loop {
            let answer = self
                .client
                .query()
                .table_name(&self.table)
                .key_condition_expression("pk = :pk")
                .expression_attribute_values(":pk", text(tenant_pk(tenant)))
                .projection_expression("pk, sk")
                .consistent_read(true)
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| Error::aws("dynamodb:Query", &error))?;
            let keys = answer
                .items
                .unwrap_or_default()
                .into_iter()
                .filter_map(|mut item| item.remove("sk")?.as_s().ok().cloned());
            let doomed: Vec<String> = keys.filter(|sk| sk != PROFILE && !is_rest(sk)).collect();
            for sk in &doomed {
                let kind = sk.split('#').next().unwrap_or_default().to_ascii_lowercase();
                *purged.entry(kind).or_insert(0) += 1;
            }
            stream::iter(doomed.into_iter().map(Ok))
                .try_for_each_concurrent(DELETIONS, |sk| async move {
                    self.client
                        .delete_item()
                        .table_name(&self.table)
                        .key("pk", text(tenant_pk(tenant)))
                        .key("sk", text(sk))
                        .send()
                        .await
                        .map(drop)
                        .map_err(|error| Error::aws("dynamodb:DeleteItem", &error))
                })
                .await?;
            start = answer.last_evaluated_key;
            if start.is_none() {
                return Ok(purged);
            }
        }
    }
}

impl Versioned for Tenant {
    const NAME: &'static str = "tenant";

    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }

    fn item(&self) -> Result<Item> {
        to_item(&Stored {
            pk: tenant_pk(&self.tenant_id),
            sk: PROFILE,
            listing: LISTING,
            listed_at: self.tenant_id.to_string(),
            tenant: self,
        })
    }
}
