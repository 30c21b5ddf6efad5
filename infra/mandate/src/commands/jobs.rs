//! Backfills and sweeps, and their progress.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::{Session, text};
use crate::{
    args::{Backfill, Job},
    output::Field,
    problem::Problem,
    text::{safe_json, shown},
    time::local,
};

/// The interval in which `--follow` reads the progress.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);

impl Session {
    /// Starts a backfill or a sweep.
    pub(crate) async fn start_job(&self, kind: &str, args: &Backfill) -> Result<(), Problem> {
        let mut body = json!({"kind": kind});
        for (name, at) in [("from", args.from), ("to", args.to)] {
            if let Some(at) = at {
                body[name] = json!(at.utc());
            }
        }
        let tenant = args.one.tenant_id.to_string();
        let started = self.api.post(&["tenants", &tenant, "sync"], Some(&body)).await?;
        let job_id = text(&started, "job_id");
        if args.follow {
            return self.follow_job(&tenant, job_id).await;
        }
        if self.out.is_json() {
            return self.out.object(&started);
        }
        self.out.say(format_args!("The {kind} is queued. Its progress: mandate job {tenant} {}", shown(job_id)))
    }

    pub(crate) async fn job(&self, args: &Job) -> Result<(), Problem> {
        let tenant = args.one.tenant_id.to_string();
        let path = ["tenants", &tenant, "sync", &args.job_id];
        if args.follow {
            return self.follow_job(&tenant, &args.job_id).await;
        }
        let job = if args.cancel { self.api.delete(&path).await? } else { self.api.get(&path, &[]).await? };
        self.show_job(&job)
    }

    fn show_job(&self, job: &Value) -> Result<(), Problem> {
        if self.out.is_json() {
            return self.out.object(job);
        }
        let time = |name: &str| Field::from(local(text(job, name), &self.out.zone));
        self.out.pairs(vec![
            ("Job", text(job, "job_id").into()),
            ("Kind", text(job, "kind").into()),
            ("Status", text(job, "status").into()),
            ("Progress", Field::from(format!("{:.0} %", fraction(job) * 100.0))),
            ("From", time("from")),
            ("To", time("to")),
            ("Read up to", time("covered_until")),
            ("Delivered", Field::from(safe_json(&job["delivered"]))),
        ])
    }

    /// Shows the progress until the job ends. A job that fails or is cancelled is a problem.
    async fn follow_job(&self, tenant: &str, job_id: &str) -> Result<(), Problem> {
        let bar = self.bar();
        let mut last = Value::Null;
        let job = loop {
            let job = self.get_patiently(&["tenants", tenant, "sync", job_id], &[], &bar).await?;
            if self.out.is_json() && job != last {
                self.out.object(&job)?;
            }
            bar.set_position(per_mille(&job));
            bar.set_message(format!(
                "{} {}, {} delivered",
                shown(text(&job, "kind")),
                shown(text(&job, "status")),
                safe_json(&job["delivered"])
            ));
            if !matches!(text(&job, "status"), "queued" | "running") {
                break job;
            }
            last = job;
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        };
        bar.finish_and_clear();
        if !self.out.is_json() {
            self.show_job(&job)?;
        }
        match text(&job, "status") {
            "done" => Ok(()),
            status => Err(Problem::new(&format!("job_{status}"), format!("The job ended as {status}."))
                .advise("`mandate tenant ID` shows the tenant's state; the log of incident-fetch has the cause.")),
        }
    }

    /// A bar on standard error, or nothing where that is no terminal.
    pub(crate) fn bar(&self) -> ProgressBar {
        let target =
            if self.out.shows_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1000), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {wide_msg}") {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar
    }
}

fn fraction(job: &Value) -> f64 {
    job["fraction"].as_f64().unwrap_or_default().clamp(0.0, 1.0)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the fraction is between 0 and 1")]
fn per_mille(job: &Value) -> u64 {
    (fraction(job) * 1000.0) as u64
}
