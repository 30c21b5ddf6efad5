//! One hunting query over many tenants. The response is one table.

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shared::{
    error::{Call, Error, Result},
    http::Deadline,
    incident_api::client::CallBudget,
    lambda::{
        event::{HttpRequest, HttpResponse},
        runtime::tenant_span,
    },
    microsoft::IncidentApi,
    tenant::{Reason, TenantId},
};
use tracing::{Instrument, Span};

use crate::{
    App,
    all_tenants::CONCURRENT_TENANTS,
    live::{MAX_RESPONSE_BYTES, RESPONSE_RESERVE, escaped_len, tenant_failure},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hunt {
    query: String,
    /// The identifiers as the caller wrote them. A malformed one is reported as `not_found`, exactly like an unknown one.
    tenants: Option<Vec<String>>,
    timespan: Option<String>,
}

/// A tenant that the query runs in.
enum HuntedTenant {
    /// A tenant that the table lists as active.
    Active(TenantId),
    /// An identifier as the caller wrote it. Its tenant may be unknown or not active.
    Named(String),
}

/// A column, as Microsoft describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// The result of one tenant.
#[derive(Debug, Deserialize)]
struct Table {
    #[serde(default)]
    schema: Vec<Column>,
    #[serde(default)]
    results: Vec<Map<String, Value>>,
}

/// The table over all tenants.
#[derive(Debug, Serialize)]
struct JoinedTable {
    schema: Vec<Column>,
    results: Vec<Map<String, Value>>,
    failures: Vec<Value>,
}

impl App {
    /// `POST /hunting`.
    pub(crate) async fn hunt(&self, request: &HttpRequest, deadline: Deadline) -> Result<HttpResponse> {
        let shape = "`query` and, if wanted, `tenants` (a list of tenant ids) and `timespan` (ISO 8601, like P7D), and no others";
        let hunt: Hunt = request.json(shape)?;
        if hunt.query.trim().is_empty() {
            return Err(Error::InvalidRequest("`query` must not be empty.".into()));
        }
        let mut body = json!({"Query": hunt.query});
        if let Some(timespan) = hunt.timespan {
            body["Timespan"] = json!(timespan);
        }
        let tenants: Vec<HuntedTenant> = match hunt.tenants {
            None => self.active_tenants().await?.iter().map(|tenant| HuntedTenant::Active(tenant.tenant_id)).collect(),
            Some(mut named) => {
                named.sort_unstable();
                named.dedup();
                named.into_iter().map(HuntedTenant::Named).collect()
            }
        };
        let tables = futures_util::stream::iter(tenants)
            .map(|tenant| self.table_or_failure(tenant, &body, deadline))
            .buffer_unordered(CONCURRENT_TENANTS);
        let mut tables = Box::pin(tables);
        let mut joined = JoinedTable { schema: Vec::new(), results: Vec::new(), failures: Vec::new() };
        let mut bytes = 0;
        while let Some(outcome) = tables.next().await {
            match outcome {
                Ok((tenant, table)) => bytes += joined.add(tenant, table),
                Err(failure) => joined.failures.push(failure),
            }
            if bytes > MAX_RESPONSE_BYTES {
                return Err(Error::InvalidRequest(
                    "The results are too large for one response. Ask for fewer rows or tenants.".into(),
                ));
            }
        }
        Ok(HttpResponse::json(200, &joined))
    }

    /// Runs the query in one tenant. The error is the entry in `failures`.
    async fn table_or_failure(
        &self,
        tenant: HuntedTenant,
        body: &Value,
        deadline: Deadline,
    ) -> Result<(TenantId, Table), Value> {
        let (name, id, known_active) = match tenant {
            HuntedTenant::Active(id) => (id.to_string(), Ok(id), true),
            HuntedTenant::Named(name) => {
                let id = name.parse::<TenantId>();
                (name, id, false)
            }
        };
        let span = id.as_ref().map_or_else(|_| Span::none(), tenant_span);
        let work = async {
            let deadline = deadline.reserving(RESPONSE_RESERVE);
            let table = async {
                let id = id?;
                if !known_active {
                    self.registry.active_tenant(&id).await?;
                }
                Ok((id, self.hunt_in(id, body, deadline).await?))
            };
            deadline.run(table).await.map_err(|error| tenant_failure(&name, &error))
        };
        work.instrument(span).await
    }

    async fn hunt_in(&self, id: TenantId, body: &Value, deadline: Deadline) -> Result<Table> {
        let mut client = self.incidents.of(id, IncidentApi::Graph, CallBudget::Table, deadline);
        client.hunt(body).await.map_err(|error| match error {
            Error::Refused(Reason::RoleMissing) => Error::Conflict {
                detail: "The customer has not consented to hunting.".into(),
                reason: Some(Reason::RoleMissing),
            },
            Error::Upstream { status: 400, call: Call::Hunt } => {
                Error::InvalidRequest("Microsoft does not accept the query.".into())
            }
            other => other,
        })
    }
}

impl JoinedTable {
    /// Adds a tenant's rows and returns their length, as [`escaped_len`] counts.
    fn add(&mut self, tenant: TenantId, table: Table) -> usize {
        for column in table.schema {
            if self.schema.iter().all(|known| known.name != column.name) {
                self.schema.push(column);
            }
        }
        let mut bytes = 0;
        for mut row in table.results {
            // Our column replaces one of the same name. The owner of a row must never be in doubt.
            row.insert("tenant_id".into(), json!(tenant));
            bytes += serde_json::to_string(&row).map_or(0, |json| escaped_len(&json));
            self.results.push(row);
        }
        bytes
    }
}
