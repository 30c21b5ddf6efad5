//! The tenants that were active a moment ago, so that a warm request reads nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use shared::{
    clock::Clock,
    error::Result,
    registry::{Registry, tenants::Tenant},
    tenant::TenantId,
};

/// The age up to which a tenant that was read as active counts as active. A pause or an offboarding by another function
/// stops tokens within this time.
const MAX_AGE: SignedDuration = SignedDuration::from_secs(30);

/// The most tenants that are kept.
const MAX_TENANTS: usize = 2_000;

/// The active tenants, read from the registry at most once in [`MAX_AGE`]. A tenant that is not active is read each time.
pub(crate) struct ActiveTenants {
    registry: Registry,
    clock: Clock,
    kept: Mutex<HashMap<TenantId, KeptTenant>>,
}

struct KeptTenant {
    tenant: Arc<Tenant>,
    /// The time at which the read began.
    read_at: Timestamp,
}

impl KeptTenant {
    fn is_recent(&self, now: Timestamp) -> bool {
        (SignedDuration::ZERO..MAX_AGE).contains(&now.duration_since(self.read_at))
    }
}

impl ActiveTenants {
    pub(crate) fn new(registry: Registry, clock: Clock) -> Self {
        Self { registry, clock, kept: Mutex::new(HashMap::new()) }
    }

    /// A tenant that is active, or was less than [`MAX_AGE`] ago.
    ///
    /// # Errors
    /// [`Error::NotFound`](shared::error::Error::NotFound), or
    /// [`Error::TenantNotActive`](shared::error::Error::TenantNotActive) with the tenant's reason.
    pub(crate) async fn get(&self, tenant_id: &TenantId) -> Result<Arc<Tenant>> {
        let now = self.clock.now();
        if let Some(kept) = self.kept().get(tenant_id).filter(|kept| kept.is_recent(now)) {
            return Ok(kept.tenant.clone());
        }
        let tenant = Arc::new(self.registry.active_tenant(tenant_id).await?);
        let mut kept = self.kept();
        if kept.len() >= MAX_TENANTS {
            kept.retain(|_, kept| kept.is_recent(now));
        }
        if kept.len() < MAX_TENANTS {
            kept.insert(*tenant_id, KeptTenant { tenant: tenant.clone(), read_at: now });
        }
        Ok(tenant)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<TenantId, KeptTenant>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
