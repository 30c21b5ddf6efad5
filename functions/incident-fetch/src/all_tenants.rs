//! Live reads over all active tenants, for a person who waits.

use std::{collections::BTreeSet, time::Duration};

use futures_util::StreamExt;
use serde_json::Value;
use shared::{
    error::Result,
    http::Deadline,
    lambda::{
        event::{HttpRequest, HttpResponse},
        runtime::tenant_span,
    },
    registry::{
        position::PageSizes,
        tenants::{Status, Tenant},
    },
    tenant::TenantId,
};
use tracing::Instrument;

use crate::{
    App,
    live::{ListBody, ListRequest, MAX_RESPONSE_BYTES, RESPONSE_RESERVE, Row, TenantPage, escaped_len, tenant_failure},
};

/// The number of tenants that are read at the same time for a person who waits.
pub(crate) const CONCURRENT_TENANTS: usize = 8;

/// The time for one tenant of a list over all, so that a few slow tenants do not use up the time of the others.
const TENANT_TIMEOUT: Duration = Duration::from_secs(10);

impl App {
    /// `GET /incidents`, the list over all active tenants.
    pub(crate) async fn list_all_incidents(&self, request: &HttpRequest, deadline: Deadline) -> Result<HttpResponse> {
        let now = self.clock.now();
        let list = ListRequest::parse(request, None, now)?;
        // A tenant that failed on a page before is named again, and not read: its list would have a gap.
        let (failed, mut failures): (BTreeSet<TenantId>, Vec<Value>) = list.failures().into_iter().unzip();
        let tenants = self.active_tenants().await?;
        let ids: Vec<TenantId> = tenants.iter().map(|tenant| tenant.tenant_id).collect();
        let feeds = self.registry.feeds(&ids).await?;
        let tenants = tenants.into_iter().filter(|tenant| !failed.contains(&tenant.tenant_id)).map(|tenant| {
            let feed = feeds.get(&tenant.tenant_id).cloned();
            let sizes = feed.map(|mut feed| *feed.page_sizes(tenant.api)).unwrap_or_default();
            (tenant, sizes)
        });
        let pages = futures_util::stream::iter(tenants)
            .map(|(tenant, sizes)| self.page_or_failure(tenant, sizes, &list, deadline))
            .buffer_unordered(CONCURRENT_TENANTS);
        let mut pages = Box::pin(pages);
        let mut page = TenantPage::default();
        while let Some(outcome) = pages.next().await {
            match outcome {
                Ok(of_tenant) => merge_into_page(&mut page, of_tenant, list.limit as usize),
                Err(failure) => failures.push(failure),
            }
        }
        let next =
            page.complete_to.map(|complete_to| list.with_failures(&failures).next(complete_to, now)).transpose()?;
        let incidents = page.rows.into_iter().map(|row| row.incident).collect();
        Ok(HttpResponse::json(200, &ListBody { incidents, failures: Some(failures), next }))
    }

    /// Reads a tenant's rows of the list. The error is the entry in `failures`.
    async fn page_or_failure(
        &self,
        tenant: Tenant,
        sizes: PageSizes,
        list: &ListRequest,
        deadline: Deadline,
    ) -> Result<TenantPage, Value> {
        let work = async {
            let deadline = deadline.at_most(TENANT_TIMEOUT);
            // Half of the reserve is for this tenant to end, the other half for the response.
            let (reading, all) = (deadline.reserving(RESPONSE_RESERVE), deadline.reserving(RESPONSE_RESERVE / 2));
            let page = all.run(Box::pin(self.tenant_page(&tenant, sizes, list, reading))).await;
            page.map_err(|error| tenant_failure(&tenant.tenant_id.to_string(), &error))
        };
        work.instrument(tenant_span(&tenant.tenant_id)).await
    }

    /// Reads all active tenants from the table.
    pub(crate) async fn active_tenants(&self) -> Result<Vec<Tenant>> {
        self.registry.all_tenants(Some(Status::Active)).await
    }
}

/// Merges a tenant's rows into a page. The page keeps as many of the newest rows as the limit and the response's size
/// allow, and no row from where on some may be missing.
fn merge_into_page(page: &mut TenantPage, of_tenant: TenantPage, limit: usize) {
    page.rows.extend(of_tenant.rows);
    page.rows.sort_by(|one, other| one.position.cmp(&other.position));
    page.complete_to = [page.complete_to.take(), of_tenant.complete_to].into_iter().flatten().min();
    let complete = |row: &Row| page.complete_to.as_ref().is_none_or(|complete_to| row.position <= *complete_to);
    let mut bytes = 0;
    let fitting = page.rows.iter().take(limit).take_while(|row| {
        bytes += escaped_len(row.incident.get());
        bytes <= MAX_RESPONSE_BYTES && complete(row)
    });
    let kept = fitting.count();
    if page.rows.get(kept).is_some_and(complete)
        && let Some(last) = kept.checked_sub(1).and_then(|last| page.rows.get(last))
    {
        page.complete_to = Some(last.position.clone());
    }
    page.rows.truncate(kept);
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use shared::{
        incident::record::{Alerts, Record},
        microsoft::IncidentApi,
    };

    use super::*;
    use crate::live::page::Position;

    fn tenant(number: u32) -> TenantId {
        format!("{number:08}-2222-4333-8444-abcdefabcdef").parse().unwrap()
    }

    fn position(tenant: TenantId, second: u32) -> Position {
        let json = format!(r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T10:00:{second:02}Z"}}"#);
        Position::of(tenant, &Record::parse(json.as_bytes(), &tenant, IncidentApi::Graph, Alerts::Included).unwrap())
    }

    /// A tenant's page: rows of `bytes` at these seconds, with none missing up to `complete_to`.
    fn page(number: u32, bytes: usize, seconds: &[u32], complete_to: Option<u32>) -> TenantPage {
        let row = |second: &u32| Row {
            position: position(tenant(number), *second),
            incident: RawValue::from_string("1".repeat(bytes)).unwrap(),
        };
        let complete_to = complete_to.map(|second| position(tenant(number), second));
        TenantPage { rows: seconds.iter().map(row).collect(), complete_to }
    }

    fn merged(pages: Vec<TenantPage>, limit: usize) -> (usize, Option<Position>) {
        let mut merged = TenantPage::default();
        for page in pages {
            merge_into_page(&mut merged, page, limit);
        }
        (merged.rows.len(), merged.complete_to)
    }

    #[test]
    fn page_ends_where_the_first_of_its_tenants_does() {
        let small = || page(1, 10, &[50, 40, 30, 20, 10], None);
        assert_eq!(merged(vec![small(), page(2, 10, &[45], None)], 10), (6, None));
        let short = || page(2, 10, &[45, 35], Some(35));
        for pages in [vec![small(), short()], vec![short(), small()]] {
            assert_eq!(merged(pages, 10), (4, Some(position(tenant(2), 35))), "rows beyond it may be missing");
        }
        assert_eq!(merged(vec![small(), short()], 3), (3, Some(position(tenant(1), 40))));
        assert_eq!(merged(vec![small(), page(2, 10, &[], Some(55))], 10), (0, Some(position(tenant(2), 55))));
        let large = page(2, MAX_RESPONSE_BYTES, &[45], None);
        assert_eq!(merged(vec![small(), large], 10), (1, Some(position(tenant(1), 50))));
    }
}
