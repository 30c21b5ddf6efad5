//! `testdata/function.py` as a function, for the tests of everything that invokes functions.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    ambient,
    error::FunctionError,
    log_book::LogBook,
    pool::{FunctionSpec, Pool},
    runtime_api::RuntimeApi,
};

/// The test function behind a Runtime API of its own. Its log directory is deleted when this is dropped.
pub(crate) struct TestFunction {
    pub(crate) pool: Arc<Pool>,
    pub(crate) logs: Arc<LogBook>,
}

impl Drop for TestFunction {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.logs.directory());
    }
}

impl TestFunction {
    /// A function whose processes have these variables and a `PATH`.
    pub(crate) async fn new(environment: &[(&str, &str)]) -> Self {
        let directory = std::env::temp_dir().join(format!("devstack-{}", ambient::request_id()));
        let logs = LogBook::open(&directory).unwrap();
        let variables = [("PATH", "/usr/bin:/bin:/usr/local/bin")].iter().chain(environment);
        let spec = FunctionSpec {
            name: "stack-Function-1".to_owned(),
            binary: "function".to_owned(),
            arn: "arn:aws:lambda:eu-central-1:123456789012:function:stack-Function-1".to_owned(),
            timeout: Duration::from_secs(20),
            environment: variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            max_processes: 2,
        };
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/function.py");
        let pool = Pool::new(spec, program, Arc::new(RuntimeApi::start().await.unwrap()), Arc::clone(&logs));
        Self { pool, logs }
    }

    /// Invokes the function with an event that says what the process does.
    pub(crate) async fn invoke(&self, action: &str) -> Result<Value, FunctionError> {
        self.pool.invoke(&json!({ "do": action })).await
    }
}
