//! Lists of tenants, from the registry alone.

use std::fmt;

use serde_json::json;
use shared::{
    error::Result,
    lambda::event::HttpResponse,
    random::random_uuid,
    registry::{
        Page,
        tenants::{Status, Tenant},
    },
    tenant::TenantId,
};
use uuid::Uuid;

use crate::{
    AdminRequest, App,
    input::{PageRequest, invalid},
    tenants::TenantView,
};

impl App {
    /// `GET /tenants`: a page of all tenants, or of those with a `status`.
    pub(crate) async fn list_tenants(&self, request: &AdminRequest<'_>) -> Result<HttpResponse> {
        let parameters = request.http.parameters(&["status", "sort", "limit", "next"])?;
        let PageRequest { limit, next } = PageRequest::parse(&parameters)?;
        let status = parameters.get("status").map(|text| parse_status(text)).transpose()?;
        let sort = parameters.get("sort").map(|text| parse_sort(text)).transpose()?;
        let ranked = next.and_then(RankingPosition::parse);
        let page = match (sort, ranked, next) {
            (Some(Sort::Customer), Some(_), _) | (Some(Sort::Lag), None, Some(_)) => {
                return Err(invalid("`next` is not one that this list gave."));
            }
            (Some(Sort::Lag) | None, Some(position), _) => self.ranked_page(position, limit).await?,
            (Some(Sort::Lag), None, None) => self.worst_first(status, limit).await?,
            (Some(Sort::Customer) | None, None, _) => self.clients.registry.tenants(status, limit, next).await?,
        };
        let ids: Vec<TenantId> = page.items.iter().map(|tenant| tenant.tenant_id).collect();
        let registry = &self.clients.registry;
        let (feeds, open) = tokio::try_join!(registry.feeds(&ids), registry.open_incidents(&ids))?;
        let now = self.clock.now();
        let views = page.items.iter().map(|tenant| {
            let id = &tenant.tenant_id;
            TenantView::new(tenant, feeds.get(id), open.get(id).copied().unwrap_or_default(), now)
        });
        let tenants: Vec<TenantView<'_>> = views.collect();
        Ok(HttpResponse::json(200, &json!({"tenants": tenants, "next": page.next})))
    }

    /// The first page of tenants by lag, the largest first. Those without a cursor come last, by customer. The order is
    /// kept for the other pages.
    async fn worst_first(&self, status: Option<Status>, limit: u32) -> Result<Page<Tenant>> {
        let registry = &self.clients.registry;
        let mut tenants = registry.all_tenants(status).await?;
        let ids: Vec<TenantId> = tenants.iter().map(|tenant| tenant.tenant_id).collect();
        let cursors = registry.cursors(&ids).await?;
        tenants.sort_by_key(|tenant| {
            let cursor = cursors.get(&tenant.tenant_id);
            (cursor.is_none(), cursor.copied())
        });
        let shown = limit as usize;
        if tenants.len() <= shown {
            return Ok(Page { items: tenants, next: None });
        }
        let order: Vec<TenantId> = tenants.iter().map(|tenant| tenant.tenant_id).collect();
        let ranking = random_uuid(self.random.as_ref())?;
        registry.keep_ranking(ranking, &order, self.clock.now()).await?;
        tenants.truncate(shown);
        Ok(Page { items: tenants, next: Some(RankingPosition { ranking, skipped: shown }.to_string()) })
    }

    /// A further page of tenants in the order that the first page had. The tenants are as they are now.
    async fn ranked_page(&self, position: RankingPosition, limit: u32) -> Result<Page<Tenant>> {
        let RankingPosition { ranking, skipped } = position;
        let registry = &self.clients.registry;
        let ranked = registry.ranked(ranking, skipped, limit as usize, self.clock.now()).await?;
        let mut items = registry.tenants_of(&ranked.tenants).await?;
        items.sort_by_key(|tenant| ranked.tenants.iter().position(|id| *id == tenant.tenant_id));
        let next = ranked.next.map(|skipped| RankingPosition { ranking, skipped }.to_string());
        Ok(Page { items, next })
    }
}

/// The order of a list of tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Customer,
    Lag,
}

fn parse_sort(text: &str) -> Result<Sort> {
    match text {
        "customer" => Ok(Sort::Customer),
        "lag" => Ok(Sort::Lag),
        _ => Err(invalid("`sort` must be customer or lag.")),
    }
}

/// The `next` of a list by lag: the order that is kept for it, and the number of tenants that were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RankingPosition {
    ranking: Uuid,
    skipped: usize,
}

impl RankingPosition {
    /// Parses a `next`. `None`: it is that of another list. No `next` of those has a dot.
    fn parse(next: &str) -> Option<Self> {
        let (ranking, skipped) = next.strip_prefix("lag.")?.split_once('.')?;
        Some(Self { ranking: ranking.parse().ok()?, skipped: skipped.parse().ok()? })
    }
}

impl fmt::Display for RankingPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lag.{}.{}", self.ranking, self.skipped)
    }
}

fn parse_status(text: &str) -> Result<Status> {
    Status::ALL
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or_else(|| invalid("`status` must be pending, active, paused or offboarded."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_four_words() {
        assert_eq!(parse_status("paused").unwrap(), Status::Paused);
        for wrong in ["", "Paused", "gone"] {
            assert!(parse_status(wrong).is_err(), "{wrong}");
        }
    }
}
