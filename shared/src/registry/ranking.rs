//! The order of tenants by lag, as it was when a list began. It is kept for the pages of that list: lags move between two
//! pages, and a list that was ordered again would skip tenants and show others twice.

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Registry,
    table::{text, to_item},
};
use crate::{
    error::{Error, Result},
    tenant::TenantId,
};

/// The number of tenants in one item, which is read for each page.
const TENANTS_PER_ITEM: usize = 1_000;

/// The time for which the order is kept.
const RANKING_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// The number of items that are written at the same time.
const CONCURRENT_WRITES: usize = 16;

/// A page of tenants in an order that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedPage {
    /// The tenants of the page, in their order.
    pub tenants: Vec<TenantId>,
    /// The number of tenants before the next page. `None` on the last page.
    pub next: Option<usize>,
}

/// A stretch of the order.
#[derive(Debug, Serialize, Deserialize)]
struct Stretch {
    /// The number of tenants in the whole order.
    total: usize,
    tenants: Vec<TenantId>,
    expires_at: i64,
}

fn pk(id: Uuid) -> String {
    format!("RANKING#{id}")
}

fn sk(stretch: usize) -> String {
    format!("TENANTS#{stretch}")
}

impl Registry {
    /// Keeps an order of tenants for the later pages of a list.
    pub async fn keep_ranking(&self, id: Uuid, tenants: &[TenantId], now: Timestamp) -> Result<()> {
        let expires_at = (now + RANKING_LIFETIME).as_second();
        let stretch = |part: &[TenantId]| Stretch { total: tenants.len(), tenants: part.to_vec(), expires_at };
        let stretches: Vec<Stretch> = tenants.chunks(TENANTS_PER_ITEM).map(stretch).collect();
        let writes = stretches.into_iter().enumerate().map(|(index, stretch)| self.put_stretch(id, index, stretch));
        stream::iter(writes).buffer_unordered(CONCURRENT_WRITES).try_collect().await
    }

    async fn put_stretch(&self, id: Uuid, index: usize, stretch: Stretch) -> Result<()> {
        let mut item = to_item(&stretch)?;
        item.insert("pk".into(), text(pk(id)));
        item.insert("sk".into(), text(sk(index)));
        let put = self.put(item).send().await;
        put.map(drop).map_err(|error| Error::aws("dynamodb:PutItem", &error))
    }

    /// Reads at most `limit` tenants of an order that is kept, after the first `skipped` ones. A page may be shorter.
    ///
    /// # Errors
    /// [`Error::Gone`] for an order that is no longer kept, or never was.
    pub async fn ranked(&self, id: Uuid, skipped: usize, limit: usize, now: Timestamp) -> Result<RankedPage> {
        let (stretch, inside) = (skipped / TENANTS_PER_ITEM, skipped % TENANTS_PER_ITEM);
        let stored: Option<Stretch> = self.get(&pk(id), &sk(stretch)).await?;
        let stored = stored.filter(|stored| now.as_second() < stored.expires_at).ok_or(Error::Gone)?;
        let tenants: Vec<TenantId> = stored.tenants.into_iter().skip(inside).take(limit).collect();
        let shown = skipped + tenants.len();
        Ok(RankedPage { tenants, next: (shown < stored.total).then_some(shown) })
    }
}
