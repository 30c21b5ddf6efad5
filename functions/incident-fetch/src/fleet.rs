//! Reads incidents over all active tenants while somebody waits.

use futures_util::StreamExt;
use serde_json::Value;
use shared::{
    error::Result,
    event::{HttpRequest, HttpResponse},
    http::Deadline,
    registry::tenants::{Status, Tenant},
};

use crate::{
    App,
    live::{LARGEST_ANSWER, Listed, Part, Row, Wanted, failure},
};

/// Tenants that are asked at the same time while somebody waits.
pub(crate) const AT_ONCE: usize = 8;

impl App {
    /// `GET /incidents`.
    pub(crate) async fn list_fleet(&self, request: &HttpRequest, deadline: Deadline) -> Result<HttpResponse> {
        let now = self.clock.now();
        let wanted = Wanted::read(request, None, now)?;
        let tenants = self.active_tenants().await?;
        let wanted_by_all = &wanted;
        let parts = futures_util::stream::iter(tenants)
            .map(|tenant| async move {
                // Time is left to answer with those that were read.
                let own = deadline.reserving(std::time::Duration::from_millis(1500));
                let part = own.run(Box::pin(self.part(&tenant, wanted_by_all, own))).await;
                (tenant.tenant_id, part)
            })
            .buffer_unordered(AT_ONCE);
        let mut parts = Box::pin(parts);
        let (mut rows, mut failures, mut more): (Vec<Row>, Vec<Value>, bool) = (Vec::new(), Vec::new(), false);
        while let Some((tenant, part)) = parts.next().await {
            match part {
                Ok(Part { rows: some, more: beyond }) => {
                    rows.extend(some);
                    more |= beyond;
                    more |= keep_newest(&mut rows, wanted.limit);
                }
                Err(error) => failures.push(failure(&tenant, &error)),
            }
        }
        let next = match rows.last() {
            Some(last) if more => Some(wanted.next(&last.position, now)?),
            _ => None,
        };
        let incidents = rows.into_iter().map(|row| row.incident).collect();
        Ok(HttpResponse::json(200, &Listed { incidents, failures: Some(failures), next }))
    }

    /// All tenants that are active.
    pub(crate) async fn active_tenants(&self) -> Result<Vec<Tenant>> {
        let mut tenants = Vec::new();
        let mut next = None;
        loop {
            let page = self.registry.tenants(Some(Status::Active), 100, next.as_deref()).await?;
            tenants.extend(page.items);
            next = page.next;
            if next.is_none() {
                return Ok(tenants);
            }
        }
    }
}

/// Keeps the newest rows, as many as are wanted and as fit into an answer; tells whether any were dropped.
fn keep_newest(rows: &mut Vec<Row>, limit: usize) -> bool {
    rows.sort_by(|one, other| one.position.cmp(&other.position));
    let mut size = 0;
    let fitting = rows.iter().take_while(|row| {
        size += row.incident.get().len();
        size <= LARGEST_ANSWER
    });
    let kept = fitting.count().max(1).min(limit);
    let dropped = rows.len() > kept;
    rows.truncate(kept);
    dropped
}
