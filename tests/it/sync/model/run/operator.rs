//! The operator as a third actor: acts while a request of a worker waits.

use std::collections::BTreeMap;

use aws_double::{AwsFault, Event, FaultPosition, TABLE};
use shared::{
    microsoft::IncidentApi,
    registry::{
        Registry,
        jobs::JobStatus,
        tenants::{Status, Tenant},
    },
    tenant::Reason,
};

use super::{super::history::OperatorAction, Run};

impl Run<'_> {
    /// The operator acts while a request of the worker waits; then the worker goes on.
    pub(super) async fn operated(&mut self, id: &str, body: &str, request: u32, action: OperatorAction) {
        let turn = self.turn % 2;
        let (worker, aws) = (self.workers[turn].clone(), self.harness.aws.clone());
        let held = vec![(FaultPosition::Request(request), AwsFault::HeldBefore)];
        aws.account().plan(&worker.life, held);
        let mut working = std::pin::pin!(worker.hand_over(id, body));
        let answer = tokio::select! {
            answer = &mut working => answer,
            () = aws.held() => {
                self.act(action).await;
                let before = aws.account().events.len();
                aws.release();
                let answer = working.await;
                // What was on its way when the operator acted may arrive.
                let later = batches(&aws.account().events[before..]);
                if later > 1 && matches!(action, OperatorAction::Pause | OperatorAction::Offboard) {
                    self.wrong.push(format!("{later} batches were delivered after {action:?}"));
                }
                // It is no fault of AWS.
                aws.account().acted_faults.pop();
                answer
            }
        };
        self.ended(turn, id, &answer);
    }

    async fn act(&mut self, action: OperatorAction) {
        let registry = self.registry();
        let now = self.clock.now();
        match action {
            OperatorAction::Pause => {
                self.change_tenant(|tenant| {
                    (tenant.status, tenant.reason) = (Status::Paused, Some(Reason::Operator));
                    tenant.operator_paused_at = Some(now);
                })
                .await;
                registry.stop_feed(&self.tenant).await.unwrap();
                self.status = Status::Paused;
            }
            OperatorAction::CancelJobs => {
                let open = registry.feed(&self.tenant).await.unwrap().unwrap().open_jobs;
                for id in open {
                    let job = registry.cancel_job(&self.tenant, &id, now).await.unwrap();
                    if job.is_some_and(|job| job.status == JobStatus::Cancelled) {
                        self.cancelled.push(id);
                    }
                }
            }
            OperatorAction::SwitchApi => self.switch().await,
            OperatorAction::Offboard => {
                self.change_tenant(|tenant| {
                    (tenant.status, tenant.reason) = (Status::Offboarded, None);
                    (tenant.activated_at, tenant.offboarded_at) = (None, Some(now));
                })
                .await;
                registry.stop_feed(&self.tenant).await.unwrap();
                registry.purge_tenant(&self.tenant).await.unwrap();
                self.status = Status::Offboarded;
            }
        }
    }

    pub(super) async fn resume(&mut self) {
        self.status = Status::Active;
        self.change_tenant(|tenant| (tenant.status, tenant.reason) = (Status::Active, None)).await;
        self.registry().open_feed(&self.tenant, self.clock.now()).await.unwrap();
    }

    pub(super) fn registry(&mut self) -> Registry {
        let (_, config) = self.harness.life(1);
        Registry::new(&config, TABLE.into())
    }

    async fn change_tenant(&mut self, change: impl Fn(&mut Tenant)) {
        let change = |tenant: &mut Tenant| {
            change(tenant);
            Ok(())
        };
        let now = self.clock.now();
        self.registry().change_tenant(&self.tenant.clone(), now, change).await.unwrap();
    }

    pub(super) async fn switch(&mut self) {
        self.api = match self.api {
            IncidentApi::Graph => IncidentApi::Defender,
            IncidentApi::Defender => IncidentApi::Graph,
        };
        self.switched = true;
        let api = self.api;
        self.change_tenant(|tenant| tenant.api = api).await;
    }

    /// Nothing is delivered of a tenant that was offboarded, whatever message is left.
    pub(super) async fn tick_of_offboarded(&mut self) {
        let before = self.harness.aws.account().objects.len();
        let body = self.poll();
        self.workers[0].hand_over("after the end", &body).await;
        if self.harness.aws.account().objects.len() > before {
            self.wrong.push("something was delivered of an offboarded tenant".into());
        }
    }
}

/// The number of batches that these events are about. A batch has one object for each day.
fn batches(events: &[Event]) -> usize {
    let mut objects: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events.iter().filter(|event| event.detail_type == "Incidents Delivered") {
        let object = event.detail["object"].as_str().unwrap_or_default();
        *objects.entry(object.rsplit_once('/').map_or(object, |(day, _)| day)).or_default() += 1;
    }
    objects.into_values().max().unwrap_or_default()
}
