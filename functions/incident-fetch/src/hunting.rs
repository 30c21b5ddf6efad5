//! One hunting query over many tenants, one table back.

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
    all_tenants::AT_ONCE,
    live::{LARGEST_ANSWER, RESERVE, failure, length},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hunt {
    query: String,
    /// As the caller wrote them: what is no identifier is told like one that nobody knows.
    tenants: Option<Vec<String>>,
    timespan: Option<String>,
}

/// A column, as Microsoft describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// What one tenant answers.
#[derive(Debug, Deserialize)]
struct Table {
    #[serde(default)]
    schema: Vec<Column>,
    #[serde(default)]
    results: Vec<Map<String, Value>>,
}

/// The table over all tenants.
#[derive(Debug, Serialize)]
struct Joined {
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
        let all = hunt.tenants.is_none();
        let tenants = match hunt.tenants {
            None => self.active_tenants().await?.into_iter().map(|tenant| tenant.tenant_id.to_string()).collect(),
            Some(mut named) => {
                named.sort_unstable();
                named.dedup();
                named
            }
        };
        let answers = futures_util::stream::iter(tenants)
            .map(|named| self.table_of(named, all, &body, deadline))
            .buffer_unordered(AT_ONCE);
        let mut answers = Box::pin(answers);
        let mut joined = Joined { schema: Vec::new(), results: Vec::new(), failures: Vec::new() };
        let mut size = 0;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok((tenant, table)) => size += joined.add(tenant, table),
                Err(failure) => joined.failures.push(failure),
            }
            if size > LARGEST_ANSWER {
                return Err(Error::InvalidRequest(
                    "The results are too large for one answer. Ask for fewer rows or tenants.".into(),
                ));
            }
        }
        Ok(HttpResponse::json(200, &joined))
    }

    /// What a tenant answers, or the entry of one that could not be asked. Whether it is active may be known.
    async fn table_of(
        &self,
        named: String,
        is_active: bool,
        body: &Value,
        deadline: Deadline,
    ) -> Result<(TenantId, Table), Value> {
        let id = named.parse::<TenantId>();
        let span = id.as_ref().map_or_else(|_| Span::none(), tenant_span);
        let work = async {
            let own = deadline.reserving(RESERVE);
            let asked = async {
                let id = id?;
                if !is_active {
                    self.registry.active_tenant(&id).await?;
                }
                Ok((id, self.hunt_in(id, body, own).await?))
            };
            own.run(asked).await.map_err(|error| failure(&named, &error))
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

impl Joined {
    /// Adds a tenant's rows; tells about how long they are on their way.
    fn add(&mut self, tenant: TenantId, table: Table) -> usize {
        for column in table.schema {
            if self.schema.iter().all(|known| known.name != column.name) {
                self.schema.push(column);
            }
        }
        let mut size = 0;
        for mut row in table.results {
            // Ours wins over a column of that name: whose row it is must never be in doubt.
            row.insert("tenant_id".into(), json!(tenant));
            size += serde_json::to_string(&row).map_or(0, |text| length(&text));
            self.results.push(row);
        }
        size
    }
}
