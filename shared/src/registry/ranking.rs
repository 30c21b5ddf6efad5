//! The order of tenants by lag, as it was when a list began. It is kept for the pages of that list: lags move between two
//! pages, and a list that was ordered anew would skip tenants and show others twice.

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Registry,
    table::{number, text, to_item},
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
        let put = |(index, part): (usize, &[TenantId])| {
            let stretch = Stretch { total: tenants.len(), tenants: part.to_vec(), expires_at };
            async move {
                let mut item = to_item(&stretch)?;
                item.insert("pk".into(), text(pk(id)));
                item.insert("sk".into(), text(sk(index)));
                item.insert("expires_at".into(), number(expires_at));
                self.put(item).send().await.map(drop).map_err(|error| Error::aws("dynamodb:PutItem", &error))
            }
        };
        let writes = stream::iter(tenants.chunks(TENANTS_PER_ITEM).enumerate().map(put));
        writes.buffer_unordered(CONCURRENT_WRITES).try_collect().await
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
