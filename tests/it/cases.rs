//! Table tests: some cases at a time, and the first failure hides no other.

use std::pin::Pin;

use tokio::task::{JoinError, LocalSet};

/// The number of cases that run at the same time.
const AT_A_TIME: usize = 4;

type Case = Pin<Box<dyn Future<Output = ()>>>;

/// The cases of one test, each with its name.
#[derive(Default)]
pub(crate) struct Cases(Vec<(String, Case)>);

impl Cases {
    /// Adds a case under the name that its failure is reported with.
    pub(crate) fn add(&mut self, name: String, case: impl Future<Output = ()> + 'static) {
        self.0.push((name, Box::pin(case)));
    }

    /// Runs all cases. Panics with the names and messages of those that failed.
    pub(crate) async fn run(mut self) {
        let mut failures = Vec::new();
        while !self.0.is_empty() {
            let tasks = LocalSet::new();
            let batch = self.0.drain(..self.0.len().min(AT_A_TIME));
            let running: Vec<_> = batch.map(|(name, case)| (name, tasks.spawn_local(case))).collect();
            tasks.await;
            for (name, case) in running {
                if let Err(failure) = case.await {
                    failures.push(format!("{name}: {}", message(failure)));
                }
            }
        }
        assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    }
}

fn message(failure: JoinError) -> String {
    let panic = failure.into_panic();
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
