//! Live reads: incidents of one tenant for a person who waits.
//!
//! [`request`] parses what the caller wants, [`list`] reads windows of the list from the newest backwards, [`page`]
//! collects the newest incidents within the bounds of a response, and [`render`] writes them.

mod list;
pub(crate) mod page;
mod render;
mod request;

use std::time::Duration;

use serde_json::value::RawValue;
use shared::{
    error::{Call, Error, Result},
    http::Deadline,
    incident::record::Alerts,
    incident_api::{
        client::{CallBudget, TenantClient},
        list::ListedRecord,
    },
    lambda::event::{HttpRequest, HttpResponse},
    registry::tenants::Tenant,
    tenant::TenantId,
};

use crate::App;

use self::{page::truncate_to_fit, render::Renderer, request::response_format};
pub(crate) use self::{
    page::{MAX_RESPONSE_BYTES, Row, TenantPage, escaped_len},
    render::{ListBody, ResponseFormat, tenant_failure},
    request::{ListRequest, enum_member},
};

/// The part of a caller's time that is kept for the response.
pub(crate) const RESPONSE_RESERVE: Duration = Duration::from_millis(1500);

/// The largest incident that is read for a person who waits. It may be larger than a response, which can leave its
/// alerts out.
const MAX_INCIDENT_BYTES: usize = 16 << 20;

impl App {
    /// `GET /tenants/{tenant_id}/incidents`, the list of one tenant.
    pub(crate) async fn list_incidents(
        &self,
        id: TenantId,
        request: &HttpRequest,
        deadline: Deadline,
    ) -> Result<HttpResponse> {
        let now = self.clock.now();
        let list = ListRequest::parse(request, Some(id), now);
        let tenant = self.registry.active_tenant(&id).await?;
        let list = list?;
        let feed = self.registry.feed(&id).await?;
        let sizes = feed.map(|mut feed| *feed.page_sizes(tenant.api)).unwrap_or_default();
        let page = self.tenant_page(&tenant, sizes, &list, deadline.reserving(RESPONSE_RESERVE)).await?;
        let next = page.complete_to.map(|complete_to| list.next(complete_to, now)).transpose()?;
        let incidents = page.rows.into_iter().map(|row| row.incident).collect();
        Ok(HttpResponse::json(200, &ListBody { incidents, failures: None, next }))
    }

    /// `GET /tenants/{tenant_id}/incidents/{incident_id}`, one incident.
    pub(crate) async fn get_incident(
        &self,
        id: TenantId,
        incident_id: &str,
        request: &HttpRequest,
        deadline: Deadline,
    ) -> Result<HttpResponse> {
        let parameters = request.parameters(&["format"]);
        let tenant = self.registry.active_tenant(&id).await?;
        let format = response_format(parameters?.get("format").copied())?;
        let incident = self.read_incident(&tenant, incident_id, format, deadline).await?;
        Ok(HttpResponse::json(200, &incident))
    }

    /// Reads one incident and renders it.
    pub(crate) async fn read_incident(
        &self,
        tenant: &Tenant,
        incident_id: &str,
        format: ResponseFormat,
        deadline: Deadline,
    ) -> Result<Box<RawValue>> {
        let mut client = self.client(tenant, deadline);
        let raw = client.incident(incident_id, Alerts::Included, MAX_INCIDENT_BYTES).await?;
        let malformed = Error::Malformed { call: Call::GetIncident };
        let parsed = ListedRecord::of(raw, &tenant.tenant_id, tenant.api, Alerts::Included);
        let record = parsed.map_err(|_| malformed.clone())?.into_record();
        if record.incident_id != incident_id {
            return Err(malformed);
        }
        let rendered = match truncate_to_fit(record) {
            Some(record) => Renderer::new(self, tenant, format).render(record).await?,
            None => None,
        };
        rendered.ok_or_else(|| Error::Conflict {
            detail: "The incident is too large for one response. The bucket holds its delivered versions.".into(),
            reason: None,
        })
    }

    /// The tenant's incident API, paid for out of the table's budget.
    pub(crate) fn client(&self, tenant: &Tenant, deadline: Deadline) -> TenantClient<'_> {
        self.incidents.of(tenant.tenant_id, tenant.api, CallBudget::Table, deadline)
    }
}
