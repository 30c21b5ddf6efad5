//! The tenants: their customers, their states, and the times at which these changed.

use std::collections::BTreeMap;

use futures_util::{TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Page, Registry,
    listing::Order,
    table::{Item, ItemKey, Versioned, from_item, string, text, to_item},
    tenant_pk,
};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::{Reason, TenantId},
    text::UnknownWord,
};

/// The state of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub enum Status {
    /// Consent was given, and has not been verified yet.
    Pending,
    /// Its incidents are polled, and callers may read them.
    Active,
    /// Polling is stopped, by the operator or for a reason.
    Paused,
    /// Its data is deleted. Only a new invitation makes it pending again.
    Offboarded,
    /// A status of a newer release. This one neither polls the tenant nor lets anybody read it.
    Unknown(UnknownWord),
}

impl Status {
    /// All statuses that this release knows.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Active, Self::Paused, Self::Offboarded];

    /// The interface's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Offboarded => "offboarded",
            Self::Unknown(word) => word.as_str(),
        }
    }
}

impl From<String> for Status {
    fn from(text: String) -> Self {
        Self::ALL.into_iter().find(|known| known.as_str() == text).unwrap_or(Self::Unknown(UnknownWord::of(&text)))
    }
}

impl From<Status> for &'static str {
    fn from(status: Status) -> Self {
        status.as_str()
    }
}

/// One customer's directory, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// The identifier of the directory.
    pub tenant_id: TenantId,
    /// The customer's name, chosen by the operator.
    pub customer: String,
    /// The state after the last write.
    pub status: Status,
    /// The reason for which it is not active, if there is one.
    pub reason: Option<Reason>,
    /// The API that its incidents are read from.
    pub api: IncidentApi,
    /// The app roles in its access tokens, of both APIs.
    pub roles: Vec<String>,
    /// The time of the last admin consent.
    pub consented_at: Option<Timestamp>,
    /// The person who consented: the name in the directory, or the object id.
    pub consented_by: Option<String>,
    /// True if that person's ID token proved a directory role that may consent.
    #[serde(default)]
    pub role_proven: bool,
    /// The invitation that made this record for its customer. One that only renews it is not kept.
    #[serde(default)]
    pub bound_by: Option<String>,
    /// The time at which it first became active since its onboarding. Its feed starts there.
    pub activated_at: Option<Timestamp>,
    /// The time at which the operator last paused it. Only a later invitation may undo the pause.
    #[serde(default)]
    pub operator_paused_at: Option<Timestamp>,
    /// The time of its offboarding.
    pub offboarded_at: Option<Timestamp>,
    /// The verification of its consent, while it is pending and not waiting for the operator. An active tenant has one after
    /// a further consent, until its roles are read again.
    pub verification: Option<Verification>,
    /// The changes of status that no event was sent for yet, in their order. Each is stored in the write that makes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unannounced: Vec<StatusChange>,
    /// Its last 20 states, the present one last. A record that replaces one of another customer has none of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<PastStatus>,
    /// The number of writes. Each write has the condition that the stored number is the one that was read.
    pub revision: u64,
}

impl Tenant {
    /// A record that no consent is applied to yet.
    pub fn new(tenant_id: TenantId, customer: String, status: Status, api: IncidentApi) -> Self {
        Self {
            tenant_id,
            customer,
            status,
            reason: None,
            api,
            roles: Vec::new(),
            consented_at: None,
            consented_by: None,
            role_proven: false,
            bound_by: None,
            activated_at: None,
            operator_paused_at: None,
            offboarded_at: None,
            verification: None,
            unannounced: Vec::new(),
            history: Vec::new(),
            revision: 0,
        }
    }

    /// Marks its status as a change from another one, made at `now`, that is to be announced. `None`: the record is new to
    /// its customer.
    pub fn mark_unannounced(&mut self, from: Option<Status>, now: Timestamp) {
        self.history.push(PastStatus { at: now, status: self.status, reason: self.reason });
        self.history.drain(..self.history.len().saturating_sub(MAX_HISTORY));
        self.unannounced.push(StatusChange {
            customer: self.customer.clone(),
            from,
            to: self.status,
            reason: self.reason,
            revision: self.revision,
        });
    }

    /// Makes it pending, with the first try of its verification due at `now`. Until a try shows more, it waits for Entra to
    /// know the consent.
    pub fn start_verification(&mut self, now: Timestamp) {
        (self.status, self.reason) = (Status::Pending, Some(Reason::ConsentMissing));
        self.verification = Some(Verification::new(now));
    }

    /// The key by which lists are in the order of customers, whatever the letter case of their names. A customer's tenants
    /// are in the order of their identifiers.
    fn place_in_list(&self) -> String {
        // No name has a tab, and no other letter of a name comes before it.
        format!("{}\t{}", self.customer.to_lowercase(), self.tenant_id)
    }

    /// True if it is active, or was since its onboarding. Such a tenant belongs to its customer.
    pub fn was_active(&self) -> bool {
        self.status == Status::Active || self.activated_at.is_some()
    }

    /// True if it is pending until the operator confirms its customer.
    pub fn waits_for_operator(&self) -> bool {
        self.status == Status::Pending && self.reason == Some(Reason::Operator)
    }

    /// True if only the operator, or a later invitation, makes it active again.
    pub fn is_paused_by_operator(&self) -> bool {
        self.status == Status::Paused && self.reason == Some(Reason::Operator)
    }
}

/// The number of states that a tenant's history has, at most. A tenant that goes up and down all day stays a small item.
const MAX_HISTORY: usize = 20;

/// A state of a tenant and the time at which it began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastStatus {
    /// The time of the change.
    pub at: Timestamp,
    /// The status after the change.
    pub status: Status,
    /// The reason for it, if there is one.
    pub reason: Option<Reason>,
}

/// A change of a tenant's status or of its reason, as `Tenant Status Changed` reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusChange {
    /// The customer's name at the change.
    pub customer: String,
    /// The status before. `None`: the customer had no such tenant.
    pub from: Option<Status>,
    /// The status after the change.
    pub to: Status,
    /// The reason for it, if there is one.
    pub reason: Option<Reason>,
    /// The tenant's revision before the change. No other change has it.
    pub revision: u64,
}

/// The state of the verification of a new consent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// The time of the consent.
    pub since: Timestamp,
    /// The number of tries so far.
    pub tries: u32,
    /// The time before which no function tries again.
    pub next_try_at: Timestamp,
}

impl Verification {
    /// A verification that starts at `now`, with its first try due at once.
    pub fn new(now: Timestamp) -> Self {
        Self { since: now, tries: 0, next_try_at: now }
    }
}

pub(super) const SORT_KEY: &str = "PROFILE";
const LISTING: &str = "tenants";

/// The number of items that are deleted at the same time.
const CONCURRENT_DELETES: usize = 16;

/// The stored form of a tenant, with its keys.
#[derive(Serialize)]
struct Stored<'a> {
    pk: String,
    sk: &'static str,
    listing: &'static str,
    listed_at: String,
    #[serde(flatten)]
    tenant: &'a Tenant,
}

impl Registry {
    /// Reads a tenant with a consistent read.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<Option<Tenant>> {
        self.get_item(&tenant_pk(tenant), SORT_KEY).await?.map(Tenant::read).transpose()
    }

    /// Reads a tenant that must exist. It may be offboarded.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a tenant that never consented.
    pub async fn known_tenant(&self, tenant: &TenantId) -> Result<Tenant> {
        self.tenant(tenant).await?.ok_or(Error::NotFound)
    }

    /// Reads a tenant that must be active.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::TenantNotActive`] with the tenant's reason.
    pub async fn active_tenant(&self, tenant: &TenantId) -> Result<Tenant> {
        let tenant = self.known_tenant(tenant).await?;
        if tenant.status == Status::Active { Ok(tenant) } else { Err(Error::TenantNotActive(tenant.reason)) }
    }

    /// Writes a new tenant (`revision` 0).
    ///
    /// # Errors
    /// [`Error::Conflict`] when the tenant exists.
    pub async fn create_tenant(&self, tenant: &Tenant) -> Result<()> {
        self.create(tenant).await
    }

    /// Reads a tenant, changes it and writes it, again if another writer came in between. Returns the tenant before and
    /// after. Nothing is written if `change` fails or changes nothing. A change of the status or its reason is added to the
    /// history, with the time `now`, and marked in the same write; `Events::announce_status` sends its event.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant, [`Error::Conflict`] when other writers were faster eight times, and the
    /// errors of `change`.
    pub async fn change_tenant(
        &self,
        tenant: &TenantId,
        now: Timestamp,
        mut change: impl FnMut(&mut Tenant) -> Result<()>,
    ) -> Result<(Tenant, Tenant)> {
        let marked = |tenant: &mut Tenant| {
            let (status, reason, marks) = (tenant.status, tenant.reason, tenant.unannounced.len());
            change(tenant)?;
            // A record that is new to its customer is marked by the change itself.
            if (tenant.status, tenant.reason) != (status, reason) && tenant.unannounced.len() == marks {
                tenant.mark_unannounced(Some(status), now);
            }
            Ok(())
        };
        self.change(&tenant_pk(tenant), SORT_KEY, marked).await
    }

    /// Clears the marks of changes whose events were sent.
    pub async fn clear_announced(&self, tenant: &TenantId, changes: &[StatusChange]) -> Result<()> {
        let clear = |stored: &mut Tenant| {
            stored.unannounced.retain(|change| !changes.contains(change));
            Ok(())
        };
        self.change(&tenant_pk(tenant), SORT_KEY, clear).await.map(drop)
    }

    /// Reads a page of tenants in the order of their customers, of one status or of all.
    pub async fn tenants(&self, status: Option<Status>, limit: u32, next: Option<&str>) -> Result<Page<Tenant>> {
        let keep = |tenant: &Tenant| status.is_none_or(|status| tenant.status == status);
        self.list(LISTING, Order::Ascending, limit, next, keep).await
    }

    /// Reads all tenants in the order of their customers, of one status or of all.
    pub async fn all_tenants(&self, status: Option<Status>) -> Result<Vec<Tenant>> {
        Ok(self.tenants(status, u32::MAX, None).await?.items)
    }

    /// Reads many tenants with consistent reads, in no order. Unknown ones are left out.
    pub async fn tenants_of(&self, tenants: &[TenantId]) -> Result<Vec<Tenant>> {
        let keys = tenants.iter().map(|tenant| ItemKey::of_tenant(tenant, SORT_KEY)).collect();
        self.batch_get(keys).await?.into_iter().map(from_item).collect()
    }

    /// Deletes all items of a tenant but its profile. Returns the number of deleted items by kind. The throttling times
    /// stay and expire by themselves.
    pub async fn purge_tenant(&self, tenant: &TenantId) -> Result<BTreeMap<String, u64>> {
        self.keep_throttling(tenant).await?;
        let pk = tenant_pk(tenant);
        let mut pages = self
            .query()
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", text(&pk))
            .projection_expression("pk, sk")
            .consistent_read(true)
            .into_paginator()
            .send();
        let mut purged = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let items = page.map_err(|error| Error::aws("dynamodb:Query", &error))?.items.unwrap_or_default();
            let doomed: Vec<&str> =
                items.iter().filter_map(|item| string(item, "sk")).filter(|sk| *sk != SORT_KEY).collect();
            for sk in &doomed {
                let kind = sk.split('#').next().unwrap_or_default().to_ascii_lowercase();
                *purged.entry(kind).or_insert(0) += 1;
            }
            stream::iter(doomed.into_iter().map(Ok))
                .try_for_each_concurrent(CONCURRENT_DELETES, |sk| self.delete(&pk, sk))
                .await?;
        }
        Ok(purged)
    }
}

impl Versioned for Tenant {
    const NAME: &'static str = "tenant";

    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }

    /// A tenant on an API of a newer release has a status of that release, too: this one cannot read its incidents.
    fn read(mut item: Item) -> Result<Self> {
        if string(&item, "api").is_some_and(|api| api.parse::<IncidentApi>().is_err()) {
            item.insert("api".into(), text(IncidentApi::Graph.as_str()));
            item.insert("status".into(), text("unknown"));
        }
        from_item(item)
    }

    fn item(&self) -> Result<Item> {
        to_item(&Stored {
            pk: tenant_pk(&self.tenant_id),
            sk: SORT_KEY,
            listing: LISTING,
            listed_at: self.place_in_list(),
            tenant: self,
        })
    }
}
