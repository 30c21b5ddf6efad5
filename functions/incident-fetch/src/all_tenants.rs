//! Reads incidents over all active tenants while somebody waits.

use futures_util::StreamExt;
use serde_json::Value;
use shared::{
    error::Result,
    http::Deadline,
    lambda::{
        event::{HttpRequest, HttpResponse},
        runtime::tenant_span,
    },
    registry::tenants::{Status, Tenant},
};
use tracing::Instrument;

use crate::{
    App,
    live::{LARGEST_ANSWER, Listed, Part, RESERVE, Row, Wanted, failure, length},
};

/// Tenants that are asked at the same time while somebody waits.
pub(crate) const AT_ONCE: usize = 8;

impl App {
    /// `GET /incidents`.
    pub(crate) async fn list_fleet(&self, request: &HttpRequest, deadline: Deadline) -> Result<HttpResponse> {
        let now = self.clock.now();
        let wanted = Wanted::read(request, None, now)?;
        let tenants = self.active_tenants().await?;
        let parts = futures_util::stream::iter(tenants)
            .map(|tenant| self.part_of_all(tenant, &wanted, deadline))
            .buffer_unordered(AT_ONCE);
        let mut parts = Box::pin(parts);
        let (mut page, mut failures) = (Part::default(), Vec::new());
        while let Some(part) = parts.next().await {
            match part {
                Ok(part) => join(&mut page, part, wanted.limit as usize),
                Err(failure) => failures.push(failure),
            }
        }
        let next = page.until.map(|until| wanted.next(until, now)).transpose()?;
        let incidents = page.rows.into_iter().map(|row| row.incident).collect();
        Ok(HttpResponse::json(200, &Listed { incidents, failures: Some(failures), next }))
    }

    /// A tenant's part of the list, or the entry of one that could not be read.
    async fn part_of_all(&self, tenant: Tenant, wanted: &Wanted, deadline: Deadline) -> Result<Part, Value> {
        let work = async {
            // Half of what is left to answer is left to come to an end here, and the other half to answer in.
            let (asking, all) = (deadline.reserving(RESERVE), deadline.reserving(RESERVE / 2));
            let part = all.run(Box::pin(self.part(&tenant, wanted, asking))).await;
            part.map_err(|error| failure(&tenant.tenant_id.to_string(), &error))
        };
        work.instrument(tenant_span(&tenant.tenant_id)).await
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

/// Joins a tenant's part to a page: as many of the newest rows as are wanted and as fit into an answer, and none from
/// where on not all are known.
fn join(page: &mut Part, part: Part, limit: usize) {
    page.rows.extend(part.rows);
    page.rows.sort_by(|one, other| one.position.cmp(&other.position));
    page.until = [page.until.take(), part.until].into_iter().flatten().min();
    let known = |row: &Row| page.until.as_ref().is_none_or(|until| row.position <= *until);
    let mut size = 0;
    let fitting = page.rows.iter().take(limit).take_while(|row| {
        size += length(row.incident.get());
        size <= LARGEST_ANSWER && known(row)
    });
    let kept = fitting.count();
    if page.rows.get(kept).is_some_and(known)
        && let Some(last) = kept.checked_sub(1).and_then(|last| page.rows.get(last))
    {
        page.until = Some(last.position.clone());
    }
    page.rows.truncate(kept);
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use shared::{
        incident::record::{Alerts, Record},
        tenant::TenantId,
    };

    use super::*;
    use crate::live::Position;

    fn tenant(number: u32) -> TenantId {
        format!("{number:08}-2222-4333-8444-abcdefabcdef").parse().unwrap()
    }

    fn position(tenant: TenantId, second: u32) -> Position {
        let json = format!(r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T10:00:{second:02}Z"}}"#);
        Position::of(tenant, &Record::parse(json.as_bytes(), &tenant, Alerts::Included).unwrap())
    }

    /// A tenant's part: rows of so many bytes at these seconds, all that there are until one.
    fn part(number: u32, bytes: usize, seconds: &[u32], until: Option<u32>) -> Part {
        let row = |second: &u32| Row {
            position: position(tenant(number), *second),
            incident: RawValue::from_string("1".repeat(bytes)).unwrap(),
        };
        Part { rows: seconds.iter().map(row).collect(), until: until.map(|second| position(tenant(number), second)) }
    }

    fn joined(parts: Vec<Part>, limit: usize) -> (usize, Option<Position>) {
        let mut page = Part::default();
        for part in parts {
            join(&mut page, part, limit);
        }
        (page.rows.len(), page.until)
    }

    #[test]
    fn a_page_ends_where_the_first_of_its_parts_does() {
        let small = || part(1, 10, &[50, 40, 30, 20, 10], None);
        assert_eq!(joined(vec![small(), part(2, 10, &[45], None)], 10), (6, None));
        let short = || part(2, 10, &[45, 35], Some(35));
        for parts in [vec![small(), short()], vec![short(), small()]] {
            assert_eq!(joined(parts, 10), (4, Some(position(tenant(2), 35))), "what is beyond is not all there is");
        }
        assert_eq!(joined(vec![small(), short()], 3), (3, Some(position(tenant(1), 40))));
        assert_eq!(joined(vec![small(), part(2, 10, &[], Some(55))], 10), (0, Some(position(tenant(2), 55))));
        let large = part(2, LARGEST_ANSWER, &[45], None);
        assert_eq!(joined(vec![small(), large], 10), (1, Some(position(tenant(1), 50))));
    }
}
